// Package cri asks the node's container runtime, over its socket (the Container
// Runtime Interface, k8s.io/cri-api runtime/v1), which pods run and where their
// network namespaces are. The runtime only says where to look: that a network
// namespace is a pod's is proven by the kernel, by the cgroup of the process that
// holds it. It starts and stops nothing.
//
// The few fields that it needs are read from the messages by hand, with bounds:
// the generated code for all of the interface would cost each agent 0.6 MB, on
// disk and in memory.
//
// A Client is safe for concurrent use.
package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/agent/netns"
)

const (
	listMethod   = "/runtime.v1.RuntimeService/ListPodSandbox"
	statusMethod = "/runtime.v1.RuntimeService/PodSandboxStatus"
	// maxMessage bounds an answer; a list of a thousand pods with their
	// annotations is far below.
	maxMessage = 16 << 20
	askTimeout = 5 * time.Second
)

// Client finds the pods of one node.
type Client struct {
	conn *grpc.ClientConn
	proc string // the host's /proc
	home netns.ID
	log  *slog.Logger

	// known are sandboxes that were verified; a sandbox keeps its network
	// namespace for as long as it lives.
	mu    sync.Mutex
	known map[string]*verified
}

// verified is a sandbox that was looked at: a pod's, or, when place is nil, one
// that shares the node's network namespace.
type verified struct {
	place *cni.Place
	// complaint was logged, so that it is not again at every look.
	complaint string
}

// New makes a Client of the runtime that serves a unix socket, such as
// /run/containerd/containerd.sock. Nothing is asked yet. proc is where the
// processes of the whole node are seen, "/proc" when the agent shares the node's
// PID namespace, as it must. It must run in the node's network namespace.
func New(socket, proc string, log *slog.Logger) (*Client, error) {
	home, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open node's network namespace: %w", err)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithAuthority("localhost"), // as kubelet: a path is no authority
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{}), grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("container runtime's socket %s: %w", socket, err), home.Close())
	}
	return &Client{conn: conn, proc: proc, home: home.ID(), log: log, known: map[string]*verified{}}, home.Close()
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// bytesCodec passes messages as they are on the wire.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data
	return nil
}

func (c *Client) ask(ctx context.Context, method string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var response []byte
	if err := c.conn.Invoke(ctx, method, request, &response); err != nil {
		return nil, fmt.Errorf("ask the container runtime at %s: %w; remedy: is --cri-socket the one that kubelet uses?", c.conn.Target(), err)
	}
	return response, nil
}

// Running implements cni.Runtime. A sandbox that cannot be verified is left out,
// and said in the log once.
func (c *Client) Running(ctx context.Context) ([]cni.Place, error) {
	list, err := c.ask(ctx, listMethod, listReady())
	if err != nil {
		return nil, err
	}
	sandboxes, err := decodeList(list)
	if err != nil {
		return nil, fmt.Errorf("list of the container runtime: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := make(map[string]*verified, len(sandboxes))
	var places []cni.Place
	for _, sandbox := range sandboxes {
		known := c.known[sandbox.id]
		if known == nil || known.complaint != "" {
			if known, err = c.look(ctx, sandbox, known); err != nil {
				return nil, err
			}
		}
		alive[sandbox.id] = known
		if known.place != nil {
			places = append(places, *known.place)
		}
	}
	c.known = alive
	return places, nil
}

// look verifies one sandbox. An error is the runtime's or ctx's.
func (c *Client) look(ctx context.Context, sandbox sandbox, before *verified) (*verified, error) {
	if sandbox.odd != "" {
		if before == nil {
			c.log.Warn("sandbox is left out, and the others are known: what the container runtime says of it cannot be read; remedy: remove it (crictl rmp), if it is no pod",
				"sandbox", sandbox.id, "error", sandbox.odd)
		}
		return &verified{complaint: sandbox.odd}, nil
	}
	if !sandbox.isPod() {
		if before == nil {
			c.log.Warn("sandbox is no pod of kubelet's, and stays outside the mesh: it has no id, or no pod's name, namespace or UID",
				"workload", sandbox.key, "sandbox", sandbox.id)
		}
		return &verified{complaint: "no pod"}, nil
	}
	answer, err := c.ask(ctx, statusMethod, statusOf(sandbox.id))
	if ctx.Err() != nil {
		return nil, err
	}
	var place *cni.Place
	if err == nil {
		place, err = c.verify(sandbox, answer)
	}
	if err == nil {
		return &verified{place: place}, nil
	}
	// It may be gone since the list was made; the others are known all the same.
	v := &verified{complaint: err.Error()}
	if before == nil || before.complaint != v.complaint {
		c.log.Warn("running pod is not known to be where the runtime says", "workload", sandbox.key, "sandbox", sandbox.id, "error", err)
	}
	return v, nil
}
