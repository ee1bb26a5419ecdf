package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
)

type discoveryStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

func (c *Client) dialOptions() []grpc.DialOption {
	own := []grpc.DialOption{
		grpc.WithTransportCredentials(c.cfg.Credentials),
		// The operator is in the cluster: a proxy named in the environment is
		// for what is outside.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(2 * resources.MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 10 * time.Second}),
	}
	return append(own, c.cfg.DialOptions...)
}

// stream opens one connection and follows it to its end. The connection is its
// own, so that each attempt shows its own error and its own certificate.
func (c *Client) stream(ctx context.Context) error {
	conn, err := grpc.NewClient(c.cfg.Target, c.dialOptions()...)
	if err != nil {
		return fmt.Errorf("connect to operator %s: %w", c.cfg.Target, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("connect to operator %s: %w", c.cfg.Target, err)
	}
	base, older := c.held, c.older
	c.older = false
	if c.resync {
		base = nil
	}
	if older {
		base = base.Older()
	}
	err = c.subscribe(stream, base, older)
	if err == nil || errors.Is(err, io.EOF) { // the status says more
		err = c.awaitAccepted(stream)
	}
	if err != nil {
		c.older = !older && status.Code(err) == codes.InvalidArgument
		return fmt.Errorf("subscribe: %w", err)
	}
	c.cfg.Logger.Info("operator connected", "target", c.cfg.Target)
	c.update(func(s *Status) { s.Connected = true; s.Since = time.Now(); s.Connects++ })
	defer c.update(func(s *Status) { s.Connected, s.Current = false, false; s.Since = time.Now() })
	return c.receive(stream, base)
}

// awaitAccepted waits until the operator has accepted the subscription.
func (c *Client) awaitAccepted(stream discoveryStream) error {
	header, err := stream.Header()
	if err != nil {
		return err
	}
	if len(header.Get(acceptedHeader)) == 0 {
		if _, err = stream.Recv(); err == nil {
			err = errors.New("the other end is not an operator of Heddle")
		}
		return err
	}
	if c.cfg.Waypoint == nil {
		return nil
	}
	return c.cfg.Waypoint.Learn(header.Get(keysHeader), header.Get(rootsHeader))
}

// subscribe asks for everything of each kind, Commit last, and says what is
// held. What is held of one kind is split into messages below MaxMessage.
func (c *Client) subscribe(stream discoveryStream, base *resources.Set, older bool) error {
	node, kinds := &corev3.Node{Id: c.cfg.Node, UserAgentName: "heddle-agent"}, resources.AgentKinds()
	if c.cfg.Waypoint != nil {
		node.UserAgentName, kinds = "heddle-waypoint", resources.WaypointKinds()
	}
	var held []resources.Ref
	commitVersions := map[string]string{}
	if base != nil {
		held = base.Refs()
		commitVersions[resources.CommitName] = base.Commit.Version()
	}
	ask := func(k resources.Kind, versions map[string]string) error {
		err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: k.TypeURL(),
			ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: versions})
		node = nil // the first message of a stream is enough
		return err
	}
	for _, k := range kinds {
		if older && k.Newer() {
			continue
		}
		versions, size := map[string]string{}, 0
		for ; len(held) > 0 && held[0].Kind == k; held = held[1:] {
			if size += len(held[0].Name) + len(held[0].Version) + 16; size > resources.MaxMessage-4<<10 {
				if err := ask(k, versions); err != nil {
					return err
				}
				versions, size = map[string]string{}, 0
			}
			versions[held[0].Name] = held[0].Version
		}
		if err := ask(k, versions); err != nil {
			return err
		}
	}
	return ask(resources.KindCommit, commitVersions)
}

// receive stages and applies rounds until the stream ends.
func (c *Client) receive(stream discoveryStream, base *resources.Set) error {
	staged := resources.NewStaging(base)
	for {
		msg, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("follow operator: %w", err)
		}
		k, err := resources.KindOf(msg.GetTypeUrl())
		if err != nil {
			return fmt.Errorf("follow operator: %w", err)
		}
		if k != resources.KindCommit {
			if err := answer(stream, msg, stage(staged, k, msg)); err != nil {
				return err
			}
			continue
		}
		refused := c.closeRound(staged, msg)
		if refused != nil {
			if err := answer(stream, msg, refused.Reason); err != nil {
				return err
			}
			if refused.Resync {
				c.resync = true
				// Ending the stream now could lose the answer on its way.
				if err := stream.CloseSend(); err != nil {
					return err
				}
				drained(stream)
				return fmt.Errorf("apply configuration: %w: asking for all of it again", refused.Reason)
			}
			staged = staged.Restart()
			continue
		}
		if err := answer(stream, msg, nil); err != nil {
			return err
		}
		staged = resources.NewStaging(c.held)
	}
}

// drained waits until the operator has seen the end of the stream.
func drained(stream discoveryStream) {
	for {
		if _, err := stream.Recv(); err != nil {
			return // the operator's status: the refusal says more
		}
	}
}

func stage(staged *resources.Staging, k resources.Kind, msg *discoveryv3.DeltaDiscoveryResponse) error {
	var errs []error
	for _, r := range msg.GetResources() {
		if url := r.GetResource().GetTypeUrl(); url != msg.GetTypeUrl() {
			err := fmt.Errorf("a %.100q among the %s resources", url, k)
			staged.Break(err)
			return err
		}
		if err := staged.Add(k, r.GetName(), r.GetVersion(), r.GetResource().GetValue()); err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range msg.GetRemovedResources() {
		if err := staged.Remove(k, name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// closeRound applies what is staged under the commit of msg. A Commit response
// without a resource says that what is held is the newest.
func (c *Client) closeRound(staged *resources.Staging, msg *discoveryv3.DeltaDiscoveryResponse) *resources.Refusal {
	began := time.Now()
	if len(msg.GetResources()) == 0 {
		if !staged.Empty() {
			return c.refuse(&resources.Refusal{Reason: errors.New("a round ended without a commit"), Resync: true})
		}
		c.confirm()
		return nil
	}
	decoded, err := resources.DecodeCommit(msg.GetResources()[0].GetResource().GetValue())
	if err != nil {
		return c.refuse(&resources.Refusal{Reason: err, Resync: true})
	}
	var applied *resources.Commit
	if c.held != nil {
		applied = &c.held.Commit
	}
	h, view, refused := staged.Close(decoded, c.cfg.Node, c.cfg.Keys(), applied)
	if refused != nil {
		return c.refuse(refused)
	}
	if err := c.apply(h, view, began); err != nil {
		return c.refuse(&resources.Refusal{Reason: err})
	}
	c.confirm()
	c.saveSoon(h)
	c.cfg.Logger.Info("configuration applied", "revision", h.Commit.Revision, "epoch", h.Commit.Epoch,
		"resources", h.Len(), "changed", staged.Changes(), "took", time.Since(began))
	return nil
}

// confirm notes that what is applied is the operator's newest.
func (c *Client) confirm() {
	c.progress, c.resync = true, false
	c.update(func(s *Status) { s.Current, s.FromLastGood, s.LastError = true, false, "" })
}

func (c *Client) refuse(r *resources.Refusal) *resources.Refusal {
	r.Reason = fmt.Errorf("refuse configuration: %w", r.Reason)
	c.cfg.Logger.Error("configuration refused: going on with what is applied", "error", r.Reason)
	c.update(func(s *Status) {
		s.Refused++
		s.Current, s.LastError, s.LastErrorAt = false, r.Reason.Error(), time.Now()
	})
	return r
}

// answer acknowledges a message, or refuses it with a reason.
func answer(stream discoveryStream, msg *discoveryv3.DeltaDiscoveryResponse, reason error) error {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: msg.GetTypeUrl(), ResponseNonce: msg.GetNonce()}
	if reason != nil {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: truncate(reason.Error(), 1000)}
	}
	if err := stream.Send(req); err != nil {
		return fmt.Errorf("answer operator: %w", err)
	}
	return nil
}
