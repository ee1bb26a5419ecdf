package trace

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// patience is how long what comes is waited for: the race detector and a slow machine have time.
const patience = 3 * time.Minute

// collector is one of OTLP. It is asked for by its name, as any other would be.
type collector struct {
	mu    sync.Mutex
	spans []*tracepb.Span
	of    map[string]string // the resource's attributes
	err   error
	hold  chan struct{} // closed when it may answer
}

func (c *collector) export(ctx context.Context, in *tracepb.TracesData) error {
	select {
	case <-c.hold:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	for _, r := range in.GetResourceSpans() {
		c.of = map[string]string{}
		for _, a := range r.GetResource().GetAttributes() {
			c.of[a.GetKey()] = a.GetValue().GetStringValue()
		}
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
	return nil
}

func (c *collector) got() []*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans
}

// start runs a collector until the test ends.
func (c *collector) start(t *testing.T) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.WaitForHandlers(true))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "opentelemetry.proto.collector.trace.v1.TraceService", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Export", Handler: func(_ any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := &tracepb.TracesData{}
			if err := read(in); err != nil {
				return nil, err
			}
			return &emptypb.Empty{}, c.export(ctx, in)
		}}}}, c)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return "http://" + l.Addr().String()
}

// counts are spans by outcome.
type counts struct {
	mu sync.Mutex
	of map[string]int
}

func (c *counts) add(outcome string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[outcome] += n
}

func (c *counts) get(outcome string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[outcome]
}

// start runs an Exporter, and returns what ends it.
func start(t *testing.T, endpoint string) (*Exporter, *counts, func()) {
	t.Helper()
	counted := &counts{of: map[string]int{}}
	e, err := New(Config{Endpoint: endpoint, Waypoint: mesh.Key{Namespace: "shop", Name: "waypoint"}, Replica: "waypoint-1", Version: "v1", Count: counted.add, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return e, counted, end
}

func opened() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func request(status int) *flow.Request {
	return &flow.Request{Start: time.Unix(1700000000, 0), Duration: time.Millisecond, Service: "shop/cart:80", Verdict: mesh.VerdictAllow, Reason: "PolicyAllow",
		Source: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "web"}}, Destination: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "cart-1"}},
		HTTP: flow.HTTP{Method: "GET", Path: "/cart/*", Status: status, Route: "HTTPRoute shop/cart rules[0]", Backend: "shop/cart:80", Tries: 3, First: "status 503"}}
}

func TestSpan(t *testing.T) {
	c := &collector{hold: opened()}
	e, counted, end := start(t, c.start(t))
	var at Context
	at.Read(fields("traceparent: 00-" + theTrace + "-" + theSpan + "-01"))
	at.Begin(nil, "", "")
	e.Add(&at, request(502))
	end() // what is left goes, too
	spans := c.got()
	if len(spans) != 1 || counted.get(Sent) != 1 {
		t.Fatalf("%d spans came, %v", len(spans), counted.of)
	}
	s := spans[0]
	if fmt.Sprintf("%x %x %x", s.GetTraceId(), s.GetParentSpanId(), s.GetSpanId()) != fmt.Sprintf("%s %s %x", theTrace, theSpan, at.Span[:]) || s.GetName() != "GET /cart/*" ||
		s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != 1_000_000 || s.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("the span is %v", s)
	}
	of := map[string]string{}
	for _, a := range s.GetAttributes() {
		of[a.GetKey()] = a.GetValue().GetStringValue() + fmt.Sprint(a.GetValue().GetIntValue())
	}
	for key, want := range map[string]string{"http.request.method": "GET0", "http.route": "/cart/*0", "http.response.status_code": "502", "http.request.resend_count": "2",
		"heddle.service": "shop/cart:800", "heddle.source.workload": "shop/web0", "heddle.destination.workload": "shop/cart-10", "heddle.first_error": "status 5030", "error.type": "5020"} {
		if of[key] != want {
			t.Errorf("%s is %q, want %q", key, of[key], want)
		}
	}
	if s.GetStatus().GetMessage() != "" {
		t.Errorf("the status says %q of what the workload answered", s.GetStatus().GetMessage())
	}
	for status, reason := range map[int]string{503: "Overloaded", 0: "ClientGone"} {
		r := request(status)
		r.Own, r.Reason = true, reason
		own := (&Span{Request: *r}).proto()
		kind := ""
		for _, a := range own.GetAttributes() {
			if a.GetKey() == "error.type" {
				kind = a.GetValue().GetStringValue()
			}
		}
		if kind != reason || own.GetStatus().GetMessage() != reason {
			t.Errorf("%d of the waypoint's own: error.type is %q, the status %q", status, kind, own.GetStatus().GetMessage())
		}
	}
	if fmt.Sprint(c.of) != "map[service.instance.id:waypoint-1 service.name:waypoint service.namespace:shop service.version:v1]" {
		t.Errorf("the resource is %v", c.of)
	}
}

// TestSlowCollector: the queue has an end, and what is beyond it is counted.
func TestSlowCollector(t *testing.T) {
	c := &collector{hold: make(chan struct{})}
	e, counted, end := start(t, c.start(t))
	var at Context
	at.Begin(nil, "", "")
	const all = 3 * maxQueued
	for range all {
		e.Add(&at, request(200))
	}
	// On a slow machine a batch or two may have waited for too long by now.
	if dropped := counted.get(Dropped); dropped == 0 || dropped > all-maxQueued || dropped < all-maxQueued-maxBatch-counted.get(Failed)-maxBatch {
		t.Errorf("%d of %d are dropped", dropped, all)
	}
	close(c.hold)
	testenv.Eventually(t, patience, "the rest has come", func() bool { return counted.get(Sent)+counted.get(Dropped)+counted.get(Failed) == all })
	end()
	if counted.get(Sent) == 0 || counted.get(Sent) > len(c.got()) {
		t.Errorf("%d are counted, %d came", counted.get(Sent), len(c.got()))
	}
}

// TestNoCollector: spans are lost and counted, and the end does not wait for what nobody takes.
func TestNoCollector(t *testing.T) {
	c := &collector{hold: opened(), err: fmt.Errorf("no room")}
	e, counted, end := start(t, c.start(t))
	var at Context
	at.Begin(nil, "", "")
	for range maxBatch {
		e.Add(&at, request(200))
	}
	testenv.Eventually(t, patience, "they are counted", func() bool { return counted.get(Failed) == maxBatch })
	end()
	silent := &collector{hold: make(chan struct{})}
	for endpoint, n := range map[string]int{"http://127.0.0.1:1": 1, silent.start(t): maxQueued} {
		e, _, end = start(t, endpoint)
		for range n {
			e.Add(&at, request(200))
		}
		began := time.Now()
		// Each batch for as long as a collector may take, it would be more than a minute.
		if end(); time.Since(began) > lastWords+30*time.Second {
			t.Errorf("%s: the end took %v", endpoint, time.Since(began))
		}
	}
}

func TestEndpoint(t *testing.T) {
	for _, wrong := range []string{"collector:4317", "http://collector", "ftp://collector:1", "http://:4317", "http://collector:4317/v1/traces", "http://a:b@collector:4317"} {
		if _, err := New(Config{Endpoint: wrong}); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
	none, err := New(Config{})
	if none != nil || err != nil {
		t.Errorf("no endpoint: %v %v", none, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := none.Run(ctx); err != nil {
		t.Error(err)
	}
}
