package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// ballot notes who leads, and whether two ever do.
type ballot struct {
	sync.Mutex
	leads   string // "" while nobody does
	terms   int
	overlap error
}

func (b *ballot) begin(name string) {
	b.Lock()
	defer b.Unlock()
	if b.leads != "" {
		b.overlap = fmt.Errorf("%s leads while %s does", name, b.leads)
	}
	b.leads = name
	b.terms++
}

func (b *ballot) end() {
	b.Lock()
	defer b.Unlock()
	b.leads = ""
}

func (b *ballot) leader() string {
	b.Lock()
	defer b.Unlock()
	return b.leads
}

// member is a replica that takes part.
type member struct {
	*Election
	cut  atomic.Bool // from the API server
	stop func()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func join(t *testing.T, s *clustertest.Server, b *ballot, name string) *member {
	t.Helper()
	m := &member{}
	way := s.Config()
	way.Timeout = Patience
	way.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if m.cut.Load() {
				return nil, errors.New("the network is gone")
			}
			return next.RoundTrip(r)
		})
	})
	client, err := typedcoordinationv1.NewForConfig(way)
	if err != nil {
		t.Fatal(err)
	}
	m.Election, err = New(Config{Client: client, Namespace: "heddle-system", Replica: name, Logger: slog.New(slog.DiscardHandler), Lead: func(ctx context.Context) error {
		b.begin(name)
		defer b.end()
		<-ctx.Done()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	t.Cleanup(m.stop)
	return m
}

// holder returns whom the Lease names.
func holder(s *clustertest.Server) string {
	lease := s.Get("/apis/coordination.k8s.io/v1/namespaces/heddle-system/leases", LeaseName)
	spec, _ := lease["spec"].(map[string]any)
	name, _ := spec["holderIdentity"].(string)
	return name
}

// TestOneLeads: one of two leads. When it is stopped, it gives the Lease back, and the other
// need not wait until that has expired.
func TestOneLeads(t *testing.T) {
	s, b := clustertest.Start(t), &ballot{}
	first := join(t, s, b, "a")
	testenv.Eventually(t, 20*time.Second, "a leads", func() bool { return b.leader() == "a" && first.Leading() && holder(s) == "a" })
	second := join(t, s, b, "b")
	time.Sleep(2 * retryPeriod)
	if second.Leading() || b.leader() != "a" {
		t.Errorf("%s leads, and the second says %v", b.leader(), second.Leading())
	}
	first.stop()
	if first.Leading() || holder(s) == "a" {
		t.Errorf("stopped, it says %v, and the Lease is of %q", first.Leading(), holder(s))
	}
	testenv.Eventually(t, leaseDuration-2*time.Second, "b leads, before the Lease would have expired", func() bool { return b.leader() == "b" && second.Leading() && holder(s) == "b" })
	if b.overlap != nil {
		t.Error(b.overlap)
	}
}

// TestOneThatIsCutOffLeadsNoMore: it still runs, and knows nothing of the other: it has
// ended what only one may do when that begins. Back again, it does not lead.
func TestOneThatIsCutOffLeadsNoMore(t *testing.T) {
	s, b := clustertest.Start(t), &ballot{}
	first := join(t, s, b, "a")
	testenv.Eventually(t, 20*time.Second, "a leads", func() bool { return b.leader() == "a" })
	second := join(t, s, b, "b")
	first.cut.Store(true)
	testenv.Eventually(t, 3*leaseDuration, "b leads", func() bool { return b.leader() == "b" && second.Leading() })
	if b.overlap != nil {
		t.Error(b.overlap)
	}
	if first.Leading() || holder(s) != "b" {
		t.Errorf("the one that is cut off says %v, and the Lease is of %q", first.Leading(), holder(s))
	}
	first.cut.Store(false)
	time.Sleep(2 * retryPeriod)
	if b.leader() != "b" || first.Leading() || b.terms != 2 {
		t.Errorf("after it is back %s leads, in term %d", b.leader(), b.terms)
	}
}

// TestLeadersErrorEndsIt: what only one may do fails for good, and whoever runs it is told.
func TestLeadersErrorEndsIt(t *testing.T) {
	s := clustertest.Start(t)
	client, err := typedcoordinationv1.NewForConfig(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	e, err := New(Config{Client: client, Namespace: "heddle-system", Replica: "a", Logger: slog.New(slog.DiscardHandler), Lead: func(context.Context) error { return wrong }})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, wrong) || e.Leading() || holder(s) == "a" {
		t.Errorf("got %v, leading %v, the Lease is of %q", err, e.Leading(), holder(s))
	}
}
