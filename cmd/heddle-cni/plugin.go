package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// plugin answers one question.
type plugin struct {
	result  io.Writer
	connect func(ctx context.Context, socket string) (net.Conn, error)
}

// While an agent is being replaced, or just started again, its socket is away
// for a moment: asking again is cheaper than a failed sandbox.
const (
	askAgain = 50 * time.Millisecond
	// patience is the part of the timeout that an agent without a socket gets.
	patience = 2
	// passTimeout is how long a pod of a namespace that never waits is asked about.
	passTimeout = 3 * time.Second
	// delTimeout bounds what a DEL, which succeeds either way, takes.
	delTimeout = 2 * time.Second
)

func connect(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := rootsocket.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// add has the pod enrolled, and passes the result of the plugins before on, byte
// for byte.
func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return types.NewError(types.ErrInvalidNetworkConfig, errNoResult.Error(), "")
	}
	if err := p.settle(cniwire.OpAdd, c, args); err != nil {
		return err
	}
	if _, err := p.result.Write(append(c.PrevResult, '\n')); err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	return nil
}

// check fails when the pod should be behind its gate and is not.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return p.settle(cniwire.OpCheck, c, args)
}

// settle returns nil when the pod may run as it is: it is protected, or does not
// belong in the mesh.
func (p *plugin) settle(op cniwire.Op, c *config, args *skel.CmdArgs) error {
	pod, isPod := parseArgs(args.Args)
	if !isPod {
		return nil // a container that somebody started beside Kubernetes
	}
	request := &cniwire.Request{
		Version: cniwire.Version, Op: op, ContainerID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName,
		Namespace: pod.namespace, Name: pod.name, UID: pod.uid, Addresses: c.addresses, Timeout: c.timeout,
	}
	if err := request.Validate(); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
	}
	passes := slices.Contains(c.PassNamespaces, pod.namespace)
	if passes { // it will not be kept waiting by an agent that hangs, either
		request.Timeout = min(c.timeout, passTimeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), request.Timeout)
	defer cancel()
	response, err := p.ask(ctx, c, request, passes)
	who := fmt.Sprintf("pod %s/%s", pod.namespace, pod.name)
	switch {
	case err != nil:
		return decideAlone(c, who, pod.namespace, passes, err)
	case response.Verdict == cniwire.Protected || response.Verdict == cniwire.Outside:
		return nil
	case response.Verdict == cniwire.Wait:
		return types.NewError(types.ErrTryAgainLater, who+" waits for the mesh: "+response.Reason, "")
	default:
		return types.NewError(types.ErrInternal, who+" cannot join the mesh: "+response.Reason, "")
	}
}

// ask puts the question to the agent. While nobody serves the socket, and when
// an agent went away over a question, it asks again: questions may be repeated.
// The error is of an agent that cannot be asked.
func (p *plugin) ask(ctx context.Context, c *config, request *cniwire.Request, once bool) (*cniwire.Response, error) {
	until := time.Now().Add(c.timeout / patience)
	for {
		response, err := p.askOnce(ctx, c.AgentSocket, request)
		if err == nil {
			return response, nil
		}
		if once || ctx.Err() != nil || time.Now().After(until) {
			return nil, err
		}
		time.Sleep(askAgain)
	}
}

func (p *plugin) askOnce(ctx context.Context, socket string, request *cniwire.Request) (_ *cniwire.Response, err error) {
	conn, err := p.connect(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
		// The agent gives up a little earlier, so that its reason is heard.
		asked := *request
		asked.Timeout = max(time.Until(deadline)-time.Second, time.Until(deadline)/2)
		request = &asked
	}
	if err := cniwire.Write(conn, request); err != nil {
		return nil, fmt.Errorf("ask on %s: %w", socket, err)
	}
	var response cniwire.Response
	if err := cniwire.Read(conn, &response); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the agent went away without an answer")
		}
		return nil, fmt.Errorf("ask on %s: %w", socket, err)
	}
	return &response, nil
}

// decideAlone decides without the agent, by its list on disk: deny before
// enroll. why is why the agent cannot be asked.
func decideAlone(c *config, who, namespace string, passes bool, why error) error {
	if passes {
		return nil
	}
	const remedy = "Kubernetes tries again by itself; if this lasts, look at the heddle-agent pod of this node"
	list, err := cniwire.LoadNamespaces(c.NamespaceList)
	known := "is not known to this node, so that it may be enrolled"
	if err == nil {
		switch list.Standing(namespace) {
		case cniwire.NotEnrolled:
			return nil
		case cniwire.Enrolled:
			known = "is enrolled"
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		known += " (" + err.Error() + ")"
	}
	return types.NewError(types.ErrTryAgainLater,
		fmt.Sprintf("%s waits for the node's Heddle agent, and namespace %s %s; %s", who, namespace, known, remedy), "the agent cannot be asked: "+why.Error())
}

// del tells the agent that the pod is gone. It has nothing of its own to undo,
// and the agent finds out by itself what it is not told.
func (p *plugin) del(args *skel.CmdArgs) error {
	return p.tell(args.StdinData, &cniwire.Request{Version: cniwire.Version, Op: cniwire.OpDel, ContainerID: args.ContainerID, Timeout: delTimeout})
}

// gc has the agent compare what it knows with what the runtime runs: that is
// surer than the list of attachments that the question carries.
func (p *plugin) gc(args *skel.CmdArgs) error {
	if err := p.tell(args.StdinData, &cniwire.Request{Version: cniwire.Version, Op: cniwire.OpGC, Timeout: delTimeout}); err != nil {
		return types.NewError(types.ErrTryAgainLater, "collecting garbage waits for the node's Heddle agent", err.Error())
	}
	return nil
}

func (p *plugin) tell(stdin []byte, request *cniwire.Request) error {
	c, err := parseConfig(stdin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), delTimeout)
	defer cancel()
	_, err = p.askOnce(ctx, c.AgentSocket, request)
	return err
}

// status says whether the plugin can answer, not whether an agent is there: a
// node that is not ready because its agent is being replaced would lose the pods
// that are not in the mesh, too.
func (p *plugin) status(args *skel.CmdArgs) error {
	if _, err := parseConfig(args.StdinData); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return nil
}
