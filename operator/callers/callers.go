// Package callers says which node's agent calls, for streams that are served for as long as
// the node is believed: by its SVID, and not once its identity is revoked. A revocation closes
// the connections of those streams.
//
// It says nothing of whoever wants certificates: package issuing refuses these by itself, and
// notes it.
//
// Callers are safe for concurrent use. Run blocks, and has no goroutine left when it returns.
package callers

import (
	"context"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Callers are the nodes whose agents call.
type Callers struct {
	td       spiffeid.TrustDomain
	snapshot func() (*mesh.View, <-chan struct{})

	streams struct {
		sync.Mutex
		live map[*stream]struct{}
	}
}

// stream is one that is served, of a node.
type stream struct {
	node string
	end  func()
}

// New returns the nodes of a trust domain; snapshot is Snapshot of the Store that has the mesh
// as it is published.
func New(td spiffeid.TrustDomain, snapshot func() (*mesh.View, <-chan struct{})) *Callers {
	c := &Callers{td: td, snapshot: snapshot}
	c.streams.live = map[*stream]struct{}{}
	return c
}

// Node returns the name of the node that calls, by the context of its stream; once the
// identity is revoked, Run closes the connection of the stream. The error is a gRPC status:
// Unauthenticated or PermissionDenied.
func (c *Callers) Node(ctx context.Context) (string, error) {
	name, err := nodeauth.PeerNodeOf(ctx, c.td)
	if err != nil {
		return "", err
	}
	// Before it is asked whether it is revoked: Run misses none in between.
	c.enter(ctx, &stream{node: name, end: func() { nodeauth.EndPeer(ctx) }})
	if c.Revoked(name) {
		return "", status.Errorf(codes.PermissionDenied, "the identity of node %s is revoked: it is told nothing, and what it reports is not believed", name)
	}
	return name, nil
}

// Revoked reports whether the identity of a node is revoked.
func (c *Callers) Revoked(node string) bool {
	view, _ := c.snapshot()
	return c.barred(view, node)
}

func (c *Callers) barred(view *mesh.View, node string) bool {
	id, err := identity.NodeID(c.td, node)
	return err == nil && view.Barred(id) // what is no name of a node has no identity
}

// enter counts a stream until its context ends.
func (c *Callers) enter(ctx context.Context, s *stream) {
	c.streams.Lock()
	c.streams.live[s] = struct{}{}
	c.streams.Unlock()
	context.AfterFunc(ctx, func() {
		c.streams.Lock()
		delete(c.streams.live, s)
		c.streams.Unlock()
	})
}

// Run ends the streams of nodes as their identities are revoked, until ctx ends.
func (c *Callers) Run(ctx context.Context) error {
	var ending sync.WaitGroup
	defer ending.Wait()
	var before *mesh.View
	for {
		view, changed := c.snapshot()
		// Who is revoked is a setting, and most changes are of something else.
		if before == nil || !view.SameSettings(before) {
			for _, s := range c.barredStreams(view) {
				ending.Go(s.end) // may wait for the other end for seconds
			}
		}
		before = view
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// barredStreams returns the streams of those that are revoked.
func (c *Callers) barredStreams(view *mesh.View) (all []*stream) {
	c.streams.Lock()
	defer c.streams.Unlock()
	known := map[string]bool{}
	for s := range c.streams.live {
		barred, ok := known[s.node]
		if !ok {
			barred = c.barred(view, s.node)
			known[s.node] = barred
		}
		if barred {
			all = append(all, s)
		}
	}
	return all
}
