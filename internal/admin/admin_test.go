package admin

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/history"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type agent struct{ err error }

func (a agent) Status(context.Context) (*meshpb.AgentStatus, error) {
	return &meshpb.AgentStatus{Node: "one"}, a.err
}

func (a agent) Connections(context.Context) ([]flow.Record, error) {
	return []flow.Record{{Node: "one", Direction: flow.DirectionOutbound}, {Node: "one", Direction: flow.DirectionInbound}}, a.err
}

func (a agent) Prove(_ context.Context, workload string) (*meshpb.ProveResponse, error) {
	if workload == "shop/none" {
		return nil, fs.ErrNotExist
	}
	return &meshpb.ProveResponse{Node: "one"}, a.err
}

// serve runs a server until the test ends and returns a client of it.
func serve(t *testing.T, path string, a Agent, change ...func(*Config)) (*flow.Ring, *Client) {
	t.Helper()
	ring := flow.NewRing(16)
	cfg := Config{Node: "n1", Socket: path, Ring: ring, Agent: a, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	var c *Client
	testenv.Eventually(t, 5*time.Second, "the server answers", func() bool {
		c, err = Dial(ctx, path)
		return err == nil
	})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return ring, c
}

func TestSocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, agent{})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
}

// TestOtherUsersAreRefused opens the file to everybody and connects as another
// user: the kernel's word on who connected must be enough.
func TestOtherUsersAreRefused(t *testing.T) {
	testenv.NeedRoot(t)
	dir, err := os.MkdirTemp("/tmp", "admin")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	serve(t, path, agent{})
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stranger := filepath.Join(dir, "stranger")
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stranger, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(stranger, "-test.run=^TestStranger$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"HEDDLE_TEST_SOCKET=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "connected, read: EOF") {
		t.Fatalf("a stranger: %v\n%s", err, out)
	}
}

// TestStranger is the other user's side of TestOtherUsersAreRefused.
func TestStranger(t *testing.T) {
	path := os.Getenv("HEDDLE_TEST_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	t.Logf("connected, read: %v", err)
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "start it again") {
		t.Errorf("dial a stale socket: %v", err)
	}
	serve(t, path, agent{})
	again, err := NewServer(Config{Socket: path, Ring: flow.NewRing(1), Agent: agent{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another program serves it") {
		t.Errorf("a second server: %v", err)
	}
}

func TestWhatIsNoSocketStays(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file: "that is no socket",
		dir:  "folder is there",
		filepath.Join(dir, strings.Repeat("x", 120)): "shorter",
		filepath.Join(dir, "none", "s"):              "no such file",
	} {
		if err := Serve(t.Context(), path, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "keep" {
		t.Errorf("the file was touched: %q, %v", data, err)
	}
}

func TestWatch(t *testing.T) {
	ring, c := serve(t, filepath.Join(t.TempDir(), "s"), agent{})
	for range 3 {
		ring.Add(flow.Record{Reason: mesh.ReasonNoPolicy})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	past, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Last: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []uint64{2, 3} {
		if m, err := past.Recv(); err != nil || m.GetFlow().GetId() != id {
			t.Fatalf("want record %d, got %v, %v", id, m, err)
		}
	}
	if _, err := past.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("want the end, got %v", err)
	}
	live, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Follow: true, Filter: &meshpb.FlowFilter{Reasons: []string{"PolicyDeny"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := live.Header(); err != nil {
		t.Fatal(err)
	}
	ring.Add(flow.Record{Reason: mesh.ReasonNoPolicy})
	ring.Add(flow.Record{Reason: mesh.ReasonPolicyDeny})
	if m, err := live.Recv(); err != nil || m.GetFlow().GetReason() != "PolicyDeny" {
		t.Fatalf("got %v, %v", m, err)
	}
	bad, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Filter: &meshpb.FlowFilter{Reasons: []string{"Nonsense"}}})
	if err == nil {
		_, err = bad.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a filter of nonsense: %v", err)
	}
}

func TestWatchersAreBounded(t *testing.T) {
	_, c := serve(t, filepath.Join(t.TempDir(), "s"), agent{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxWatchers {
		w, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Follow: true})
		if err == nil {
			_, err = w.Header()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Follow: true})
	if err == nil {
		_, err = w.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more watcher: %v", err)
	}
}

func TestAdminCalls(t *testing.T) {
	ring, c := serve(t, filepath.Join(t.TempDir(), "s"), agent{})
	ring.Add(flow.Record{})
	st, err := c.Admin.Status(t.Context(), &meshpb.StatusRequest{})
	if err != nil || st.GetNode() != "one" || st.GetFlows().GetRecords() != 1 {
		t.Errorf("status: %v, %v", st, err)
	}
	live, err := c.Admin.Connections(t.Context(), &meshpb.ConnectionsRequest{Filter: &meshpb.FlowFilter{Directions: []string{"inbound"}}})
	if err != nil || len(live.GetConnections()) != 1 {
		t.Errorf("connections: %v, %v", live, err)
	}
	if _, err = c.Admin.Connections(t.Context(), &meshpb.ConnectionsRequest{Filter: &meshpb.FlowFilter{Verdicts: []string{"x"}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("connections of nonsense: %v", err)
	}
	if p, err := c.Admin.Prove(t.Context(), &meshpb.ProveRequest{}); err != nil || p.GetNode() != "one" {
		t.Errorf("prove: %v, %v", p, err)
	}
	_, err = c.Admin.Prove(t.Context(), &meshpb.ProveRequest{Workload: "shop/none"})
	if status.Code(err) != codes.NotFound || !strings.Contains(Explain(err).Error(), "shop/none") {
		t.Errorf("prove of no pod: %v", err)
	}
}

// past is a history of one hour, or an error.
type past struct{ err error }

func (p past) Read(_ context.Context, since time.Time, yield func(*meshpb.FlowSummary) error) (*meshpb.HistoryCoverage, error) {
	if p.err != nil {
		return nil, p.err
	}
	err := errors.Join(yield(&meshpb.FlowSummary{HourNs: since.UnixNano(), Count: 3}), yield(&meshpb.FlowSummary{HourNs: since.UnixNano(), Count: 4}))
	return &meshpb.HistoryCoverage{SinceNs: since.UnixNano(), LeftOut: 2}, err
}

// opened has one connection that is open, and one that is not yet.
type opened struct{ agent }

func (opened) Connections(context.Context) ([]flow.Record, error) {
	open := flow.Record{Start: time.Now(), Reason: mesh.ReasonPolicyAllow, Verdict: mesh.VerdictAllow, Source: flow.Endpoint{Workload: mesh.Key{Namespace: "a", Name: "b"}}}
	opening := open
	opening.Reason = mesh.ReasonUnknown
	return []flow.Record{open, opening}, nil
}

// TestHistory: what is kept, what is open, and how much of it there is; or why there
// is nothing.
func TestHistory(t *testing.T) {
	_, c := serve(t, filepath.Join(t.TempDir(), "s"), opened{}, func(cfg *Config) { cfg.History = past{} })
	stream, err := c.Flows.History(t.Context(), &meshpb.HistoryRequest{SinceNs: 5, Total: true})
	if err != nil {
		t.Fatal(err)
	}
	var said []*meshpb.HistoryResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, m)
	}
	counts := map[string]uint64{}
	for _, m := range said {
		counts[m.GetSummary().GetSource().GetWorkload()] += m.GetSummary().GetCount()
	}
	if len(said) != 3 || counts[""] != 7 || counts["a/b"] != 1 ||
		said[2].GetCoverage().GetNode() != "n1" || said[2].GetCoverage().GetLeftOut() != 2 {
		t.Errorf("%v", said)
	}
	for name, tc := range map[string]struct {
		history History
		code    codes.Code
	}{"none": {nil, codes.FailedPrecondition}, "switched off": {past{history.ErrNone}, codes.FailedPrecondition}, "broken": {past{errors.New("broken")}, codes.Unknown}} {
		_, c := serve(t, filepath.Join(t.TempDir(), "s"), agent{}, func(cfg *Config) { cfg.History = tc.history })
		stream, err := c.Flows.History(t.Context(), &meshpb.HistoryRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAgentsErrorsArrive(t *testing.T) {
	_, c := serve(t, filepath.Join(t.TempDir(), "s"), agent{errors.New("the kernel is gone")})
	_, err1 := c.Admin.Status(t.Context(), &meshpb.StatusRequest{})
	_, err2 := c.Admin.Connections(t.Context(), &meshpb.ConnectionsRequest{})
	_, err3 := c.Admin.Prove(t.Context(), &meshpb.ProveRequest{})
	for _, err := range []error{err1, err2, err3} {
		if err == nil || !strings.Contains(Explain(err).Error(), "the kernel is gone") {
			t.Errorf("got %v", err)
		}
	}
}

func TestNewServerNeedsEverything(t *testing.T) {
	if _, err := NewServer(Config{}); err == nil {
		t.Error("an empty Config was accepted")
	}
}

// TestRunInPlace: a client reaches one of the two servers at every moment, the
// old one goes on with its calls, and leaves the new one's socket alone.
func TestRunInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, before := serve(t, path, agent{})
	watch, err := before.Flows.Watch(t.Context(), &meshpb.WatchFlowsRequest{Follow: true})
	if err == nil {
		_, err = watch.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	next, err := NewServer(Config{Socket: path, Ring: flow.NewRing(1), Agent: agent{errors.New("I am the next")}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	placed, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- next.RunInPlace(ctx, placed) }()
	<-placed
	after, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if _, err := after.Admin.Status(t.Context(), &meshpb.StatusRequest{}); err == nil || !strings.Contains(err.Error(), "I am the next") {
		t.Errorf("the socket does not lead to the next server: %v", err)
	}
	if _, err := before.Admin.Status(t.Context(), &meshpb.StatusRequest{}); err != nil {
		t.Errorf("the old server no longer answers who is connected: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
