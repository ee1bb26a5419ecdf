package requests_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/requests"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func good(path string) *flow.Request {
	return &flow.Request{Start: time.Now(), Service: "shop/cart:80", Verdict: mesh.VerdictAllow, Reason: "NoPolicy", Rule: -1,
		HTTP: flow.HTTP{Method: "GET", Path: path, Status: 200, Route: "HTTPRoute shop/cart rules[0]", Backend: "shop/cart:80", Tries: 1}}
}

func newLog(t testing.TB, size int) *requests.Log {
	t.Helper()
	rules, err := sample.Parse([]string{"/none=0", "1"})
	if err != nil {
		t.Fatal(err)
	}
	return requests.New(requests.Config{Waypoint: mesh.Key{Namespace: "shop", Name: "waypoint"}, Replica: "waypoint-1", Size: size, Rules: rules})
}

// serve answers as a waypoint does, and returns a client.
func serve(t *testing.T, l *requests.Log) *admin.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- admin.Serve(ctx, path, func(g *grpc.Server) { meshpb.RegisterFlowsServer(g, l) }, slog.New(slog.DiscardHandler))
	}()
	var c *admin.Client
	testenv.Eventually(t, 5*time.Second, "the socket answers", func() (there bool) {
		var err error
		c, err = admin.Dial(ctx, path)
		return err == nil
	})
	t.Cleanup(func() {
		err := c.Close()
		cancel()
		if err := errors.Join(err, <-done); err != nil {
			t.Error(err)
		}
	})
	return c
}

// shown are the flows of one answer.
func shown(t *testing.T, c *admin.Client, req *meshpb.WatchFlowsRequest) (all []*meshpb.Flow) {
	t.Helper()
	stream, err := c.Flows.Watch(t.Context(), req)
	for err == nil {
		var m *meshpb.WatchFlowsResponse
		if m, err = stream.Recv(); err == nil {
			all = append(all, m.GetFlow())
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return all
}

// TestFailuresStay: ten thousand requests that went well leave those that did not.
func TestFailuresStay(t *testing.T) {
	l := newLog(t, 8)
	for i, change := range []func(*flow.Request){
		func(r *flow.Request) { r.Status = 503 }, func(r *flow.Request) { r.Status = 0 }, func(r *flow.Request) { r.Tries, r.First = 2, "BackendReset" },
		func(r *flow.Request) { r.Verdict, r.Reason, r.Status = mesh.VerdictDeny, "PolicyDeny", 403 },
	} {
		r := good(fmt.Sprintf("/bad/%d", i))
		change(r)
		l.Add(r)
	}
	for i := range 10_000 {
		l.Add(good(fmt.Sprintf("/good/%d", i)))
	}
	c := serve(t, l)
	all := shown(t, c, &meshpb.WatchFlowsRequest{Last: 100})
	var paths []string
	for _, f := range all {
		paths = append(paths, f.GetRequest().GetPath())
	}
	if fmt.Sprint(paths) != "[/bad/0 /bad/1 /bad/2 /bad/3 /good/9996 /good/9997 /good/9998 /good/9999]" {
		t.Errorf("kept are %v", paths)
	}
	if f := all[2]; f.GetRequest().GetTries() != 2 || f.GetRequest().GetFirstError() != "BackendReset" || f.GetWaypoint() != "shop/waypoint" || f.GetNode() != "waypoint-1" ||
		f.GetService() != "shop/cart" || f.GetDirection() != "request" || f.GetId() != 3 {
		t.Errorf("a retried request is %v", f)
	}
	if last := shown(t, c, &meshpb.WatchFlowsRequest{Last: 1}); len(last) != 1 || last[0].GetRequest().GetPath() != "/good/9999" {
		t.Errorf("the newest is %v", last)
	}
	if bad := shown(t, c, &meshpb.WatchFlowsRequest{Last: 100, Filter: &meshpb.FlowFilter{Statuses: []string{"5xx", "0"}}}); len(bad) != 2 {
		t.Errorf("of 5xx and none there are %v", bad)
	}
}

// TestFollow: who follows gets each one, or is told how many it has missed.
func TestFollow(t *testing.T) {
	l := newLog(t, 64)
	l.Add(good("/before"))
	c := serve(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Follow: true, Last: 1})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetFlow().GetRequest().GetPath() != "/before" {
		t.Fatalf("%v %v", m, err)
	}
	const more = 1000
	for i := range more {
		l.Add(good(fmt.Sprintf("/%d", i)))
	}
	got, lost := 0, uint64(0)
	for last := ""; last != fmt.Sprintf("/%d", more-1); {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if lost += m.GetLost(); m.GetFlow() != nil {
			got++
			last = m.GetFlow().GetRequest().GetPath()
		}
	}
	if got+int(lost) != more || lost == 0 {
		t.Errorf("%d came and %d were missed, of %d", got, lost, more)
	}
	_, err = c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	history, err := c.Flows.History(ctx, &meshpb.HistoryRequest{})
	if err == nil {
		_, err = history.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a history: %v", err)
	}
	bad, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Filter: &meshpb.FlowFilter{Statuses: []string{"6xx"}}})
	if err == nil {
		_, err = bad.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a filter of nonsense: %v", err)
	}
}

func TestNone(t *testing.T) {
	none := requests.New(requests.Config{})
	none.Add(good("/"))
	if none.Wants("shop/cart:80", "/") {
		t.Error("nobody keeps anything, and wants it")
	}
	l := newLog(t, 2)
	if l.Wants("shop/cart:80", "/none") || !l.Wants("shop/cart:80", "/some") {
		t.Error("the rules are not gone by")
	}
}

// TestAddAllocates nothing, whoever looks.
func TestAddAllocates(t *testing.T) {
	l, r := newLog(t, 64), good("/")
	if n := testing.AllocsPerRun(1000, func() { l.Add(r) }); n > 0 {
		t.Errorf("keeping a request allocates %v times", n)
	}
}
