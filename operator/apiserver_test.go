package operator

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// cut is a way to an API server that can be cut off.
type cut struct {
	sync.Mutex
	off  bool
	open []net.Conn
}

func (c *cut) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.Lock()
	defer c.Unlock()
	if c.off {
		return nil, errors.New("the way is cut off")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		c.open = append(c.open, conn)
	}
	return conn, err
}

func (c *cut) set(off bool) {
	c.Lock()
	defer c.Unlock()
	c.off = off
	for _, conn := range c.open {
		_ = conn.Close() // whoever reads from it notices
	}
	c.open = nil
}

// TestWithoutAnAPIServer: what is known is served on, also to agents that come
// back, and certificates are issued; it is said what is wrong, and once the API
// server is back, what has changed meanwhile takes effect.
func TestWithoutAnAPIServer(t *testing.T) {
	s := newCluster(t)
	way := &cut{}
	cfg := s.Config()
	cfg.Dial = way.dial
	r := startReplicaBy(t, cfg, "heddle-operator-0")
	r.awaitReady(t)
	n1 := r.mustJoin(t, s, "n1")
	testenv.Eventually(t, 10*time.Second, "the API server's answers are timed", func() bool { return r.status(t).GetApiServer().GetTookNs() > 0 })
	way.set(true)
	testenv.Eventually(t, 30*time.Second, "the status says that the API server does not answer", func() bool {
		return strings.Contains(r.status(t).GetApiServer().GetError(), "the way is cut off")
	})
	if said := r.readiness(); said != "ok" {
		t.Errorf("readiness without an API server: %s", said)
	}
	testenv.Eventually(t, 10*time.Second, "the log says so", func() bool { return strings.Contains(r.log.String(), "the API server does not answer") })
	a := r.agent(t, n1, "n1")
	a.await(t, "an agent that comes back has its configuration", has("web"))
	csr, err := newRequest(n1.ID())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n1.Sign(t.Context(), n1.ID(), csr); err != nil {
		t.Errorf("a certificate without an API server: %v", err)
	}
	s.Put(t, core+"/namespaces/shop/pods", podObject("shop", "late", "n2", "10.0.0.9"))
	way.set(false)
	a.await(t, "what has changed meanwhile", func(v *mesh.View) bool { return has("late")(v) })
	testenv.Eventually(t, 10*time.Second, "the status is well again", func() bool { return r.status(t).GetApiServer().GetError() == "" })
	testenv.Eventually(t, 10*time.Second, "the log says so", func() bool { return strings.Contains(r.log.String(), "the API server answers again") })
}

// TestNotReadyWithoutAnAPIServer: an operator that has never read anything says
// what it waits for, and goes on by itself.
func TestNotReadyWithoutAnAPIServer(t *testing.T) {
	s := newCluster(t)
	way := &cut{off: true}
	cfg := s.Config()
	cfg.Dial = way.dial
	r := startReplicaBy(t, cfg, "heddle-operator-0")
	testenv.Eventually(t, 20*time.Second, "readiness says why", func() bool {
		said := r.readiness()
		return strings.Contains(said, "not read yet") && strings.Contains(said, "the API server does not answer: ") && strings.Contains(said, "the way is cut off")
	})
	way.set(false)
	r.awaitReady(t)
}
