package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// ticks is a clock that stands still until time passes, or until it is set.
type ticks struct {
	mu  sync.Mutex
	now time.Time
	ran time.Duration
}

func (c *ticks) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *ticks) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.ran = c.now.Add(d), c.ran+d
}

// set makes it say another time, while none passes.
func (c *ticks) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

func (c *ticks) monotonic() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ran
}

func noon() *ticks { return &ticks{now: time.Date(2026, 3, 4, 12, 5, 0, 0, time.UTC)} }

func in(t *testing.T, dir string, c *ticks, change ...func(*Config)) *History {
	t.Helper()
	cfg := Config{Dir: dir, Bounds: DefaultBounds(), Log: slog.New(slog.DiscardHandler), Now: c.Now}
	for _, f := range change {
		f(&cfg)
	}
	h := New(cfg)
	h.ran = c.monotonic
	return h
}

func connection(c *ticks, from string) flow.Record {
	return flow.Record{
		Start: c.Now().Add(-time.Second), Duration: time.Second, Node: "n1", Direction: flow.DirectionInbound, Wire: flow.Wire{Transport: flow.TransportTunnel},
		Source: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: from}, Addr: netip.MustParseAddrPort("[::ffff:10.1.0.2]:40001"),
			Identity: spiffeid.RequireFromString("spiffe://m/ns/shop/sa/" + from)},
		Destination: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "db"}, Addr: netip.MustParseAddrPort("10.1.0.3:3306"),
			Identity: spiffeid.RequireFromString("spiffe://m/ns/shop/sa/db")},
		Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: mesh.Key{Namespace: "shop", Name: "db"}, Rule: 2,
		BytesSent: 10, BytesReceived: 100, Detail: "payload must not be here",
	}
}

func read(t *testing.T, h *History, since time.Time) ([]*meshpb.FlowSummary, *meshpb.HistoryCoverage) {
	t.Helper()
	var all []*meshpb.FlowSummary
	coverage, err := h.Read(t.Context(), since, func(s *meshpb.FlowSummary) error { all = append(all, s); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return all, coverage
}

// TestSums: connections that are alike are one summary, in memory as on disk, and
// another process finds it there.
func TestSums(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "flows"), noon()
	h := in(t, dir, c)
	for i := range 3 {
		r := connection(c, "web")
		r.Source.Addr = netip.AddrPortFrom(r.Source.Addr.Addr(), uint16(40000+i))
		h.Add(r)
	}
	h.Add(connection(c, "api"))
	h.Add(flow.Record{Start: c.Now(), Direction: flow.DirectionKernel, Reason: mesh.ReasonKernelUDP, Protocol: 17, Packets: 9,
		Source: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "web"}}, Destination: flow.Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:123")}})
	h.Add(flow.Record{Direction: flow.DirectionDNS})
	rule := int32(2)
	want := &meshpb.FlowSummary{
		HourNs: c.Now().Truncate(time.Hour).UnixNano(), FirstNs: c.Now().Add(-time.Second).UnixNano(), LastNs: c.Now().UnixNano(), Node: "n1",
		Direction: "inbound", Source: &meshpb.SummaryEndpoint{Workload: "shop/web", Identity: "spiffe://m/ns/shop/sa/web", Address: "10.1.0.2"},
		Destination: &meshpb.SummaryEndpoint{Workload: "shop/db", Identity: "spiffe://m/ns/shop/sa/db"}, Port: 3306, Verdict: "allow",
		Reason: "PolicyAllow", Policy: "shop/db", Rule: &rule, Transport: "tunnel", Count: 3, BytesSent: 30, BytesReceived: 300,
	}
	check := func(h *History, when string) {
		t.Helper()
		all, coverage := read(t, h, time.Time{})
		if len(all) != 3 || coverage.GetSinceNs() != want.GetHourNs() || len(coverage.GetDamaged()) != 0 {
			t.Fatalf("%s: %v, %v", when, all, coverage)
		}
		for _, s := range all {
			switch {
			case s.GetDirection() == "kernel":
				if s.GetReason() != "KernelUDP" || s.GetProtocol() != 17 || s.GetPort() != 123 || s.GetCount() != 1 {
					t.Errorf("%s: the drop of a datagram is %v", when, s)
				}
			case s.GetSource().GetWorkload() == "shop/web" && !proto.Equal(s, want):
				t.Errorf("%s: %v, want %v", when, s, want)
			}
		}
	}
	check(h, "in memory")
	h.Flush()
	check(h, "on disk and in memory")
	check(in(t, dir, c), "to another process")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v: %v", err, files)
	}
	info, _ := files[0].Info()
	if folder, _ := os.Stat(dir); info.Mode() != 0o600 || folder.Mode().Perm() != 0o700 {
		t.Errorf("modes %v and %v", info.Mode(), folder.Mode())
	}
	if all, _ := read(t, h, c.Now().Add(time.Hour)); len(all) != 0 {
		t.Errorf("of a later hour: %v", all)
	}
}

// TestTwoProcesses: an agent and its successor write of the same hour.
func TestTwoProcesses(t *testing.T) {
	dir, c := t.TempDir(), noon()
	old, next := in(t, dir, c), in(t, dir, c)
	old.Add(connection(c, "web"))
	next.Add(connection(c, "web"))
	next.Flush()
	old.Flush()
	all, _ := read(t, in(t, dir, c), time.Time{})
	if len(all) != 2 {
		t.Errorf("want one of each: %v", all)
	}
}

// TestRun writes by itself, and at its end.
func TestRun(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c, func(cfg *Config) { cfg.Every = time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	h.Add(connection(c, "web"))
	testenv.Eventually(t, 10*time.Second, "it is on disk", func() bool { all, _ := read(t, in(t, dir, c), time.Time{}); return len(all) == 1 })
	cancel()
	running.Wait()
	h.Add(connection(c, "api"))
	h.Run(ctx) // has ended already: writes once
	if all, _ := read(t, in(t, dir, c), time.Time{}); len(all) != 2 {
		t.Errorf("not written at the end: %v", all)
	}
}

// TestBounds: hours that are too old, and too much for the disk's share, go; the
// oldest first.
func TestBounds(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c, func(cfg *Config) { cfg.Keep = 4 * time.Hour })
	for range 10 {
		h.Add(connection(c, "web"))
		h.Flush()
		c.pass(time.Hour)
	}
	h.Flush()
	files, err := h.list()
	if err != nil || len(files) != 4 || !files[3].begin.Equal(c.Now().Add(-time.Hour).Truncate(time.Hour)) {
		t.Errorf("%v, %v", files, err)
	}
	h = in(t, dir, c, func(cfg *Config) { cfg.MaxBytes = 2*files[0].size + 10 })
	h.Add(connection(c, "web"))
	h.Flush()
	if files, err = h.list(); err != nil || len(files) != 2 || !files[1].begin.Equal(c.Now().Truncate(time.Hour)) {
		t.Errorf("%v, %v", files, err)
	}
	if h.written.dropped != 3 || h.written.bytes != uint64(files[0].size+files[1].size) {
		t.Errorf("%+v", h.written)
	}
}

// TestIdle: of a node on which nothing happens any more, what is too old goes as well,
// and is nobody's answer until it has.
func TestIdle(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c, func(cfg *Config) { cfg.Keep = 2 * time.Hour })
	h.Add(connection(c, "web"))
	h.Flush()
	c.pass(4 * time.Hour)
	if all, coverage := read(t, h, time.Time{}); len(all) != 0 || coverage.GetSinceNs() != 0 {
		t.Errorf("too old, in memory: %v, %v", all, coverage)
	}
	other := in(t, dir, c, func(cfg *Config) { cfg.Keep = 2 * time.Hour })
	if all, coverage := read(t, other, time.Time{}); len(all) != 0 || coverage.GetSinceNs() != 0 {
		t.Errorf("too old, on disk: %v, %v", all, coverage)
	}
	h.Flush()
	if files, err := h.list(); err != nil || len(files) != 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

// TestScan: who tries every address and every port, be it a pod of the mesh or nobody
// that it knows, does not push out what is there, nor what comes of others; and it is
// counted all the same.
func TestScan(t *testing.T) {
	const tries, few = maxSummaries + maxSummaries/4, 2
	outside := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{9, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for _, tc := range []struct {
		name string
		most int
		try  func(r *flow.Record, i int)
	}{
		{"clients that nobody knows, refused", maxOfStrangers + maxOfClient, func(r *flow.Record, i int) {
			r.Source = flow.Endpoint{Addr: netip.AddrPortFrom(outside(i), 1)}
			r.Destination.Addr = netip.AddrPortFrom(r.Destination.Addr.Addr(), uint16(i))
			r.Verdict, r.Reason = mesh.VerdictDeny, mesh.ReasonStrictPlaintext
		}},
		{"one that nobody knows, let in", maxOfStrangers + maxOfClient, func(r *flow.Record, i int) {
			r.Source = flow.Endpoint{Addr: netip.AddrPortFrom(outside(0), 1)}
			r.Destination.Workload.Name = fmt.Sprint("db", i%7)
			r.Destination.Addr = netip.AddrPortFrom(r.Destination.Addr.Addr(), uint16(i))
		}},
		{"a pod that crawls", maxOfClient, func(r *flow.Record, i int) {
			r.Direction, r.Transport, r.Reason = flow.DirectionOutbound, flow.TransportPlaintext, mesh.ReasonEgressAllowed
			r.Destination = flow.Endpoint{Addr: netip.AddrPortFrom(outside(i), uint16(1+i%5))}
		}},
		{"a pod that tries the ports of all others", 2 * maxOfClient, func(r *flow.Record, i int) {
			r.Destination.Workload.Name = fmt.Sprint("db", i%9999)
			r.Destination.Addr = netip.AddrPortFrom(r.Destination.Addr.Addr(), uint16(1+i/9999))
		}},
		{"one of another mesh, from everywhere", 2 * maxOfClient, func(r *flow.Record, i int) {
			r.Source.Workload, r.Source.Addr = mesh.Key{}, netip.AddrPortFrom(outside(i), 1)
		}},
	} {
		c := noon()
		h := in(t, t.TempDir(), c)
		h.Add(connection(c, "web"))
		for i := range tries {
			r := connection(c, "scans")
			tc.try(&r, i)
			h.Add(r)
		}
		if n := len(h.hour.sums); n > tc.most+1+few || n < tc.most || h.leftOut != 0 {
			t.Errorf("%s: %d summaries, want some %d; %d left out", tc.name, n, tc.most, h.leftOut)
		}
		h.Add(connection(c, "web"))
		h.Add(connection(c, "new"))
		var others, known, several uint64
		all, _ := read(t, h, time.Time{})
		for _, s := range all {
			switch {
			case s.GetSource().GetWorkload() == "shop/web", s.GetSource().GetWorkload() == "shop/new":
				others += s.GetCount()
			case s.GetPort() != 0:
				known += s.GetCount()
			case s.GetDestination().GetAddress() != "":
				t.Errorf("%s: with an address and no port: %v", tc.name, s)
			default:
				several += s.GetCount()
			}
		}
		if others != 3 || known+several != tries || several == 0 {
			t.Errorf("%s: of others %d, in detail %d, of several destinations %d", tc.name, others, known, several)
		}
		data, err := encode(all)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d summaries take %d bytes", tc.name, len(all), len(data))
	}
}

// TestRefusals: those of many have half of the room, and what finds none is counted.
func TestRefusals(t *testing.T) {
	c := noon()
	h := in(t, t.TempDir(), c)
	const clients, ports = 10, 1000
	for i := range clients * ports {
		r := connection(c, fmt.Sprint("web", i/ports))
		r.Destination.Addr = netip.AddrPortFrom(r.Destination.Addr.Addr(), uint16(1+i%ports))
		r.Verdict, r.Reason = mesh.VerdictDeny, mesh.ReasonPolicyNoMatch
		h.Add(r)
	}
	h.Add(connection(c, "new"))
	if all, coverage := read(t, h, time.Time{}); len(all) != maxDenied+1 || coverage.GetLeftOut() != clients*ports-maxDenied {
		t.Errorf("%d summaries, %d left out", len(all), coverage.GetLeftOut())
	}
}

// TestAddDoesNotWait: while an hour is copied, to be written or read, connections end
// and are counted; of what is copied, only a few wait for the lock at once, and each
// is copied once.
func TestAddDoesNotWait(t *testing.T) {
	c := noon()
	h := in(t, t.TempDir(), c)
	const kinds = maxSummaries / 2
	name := func(i int) string { return fmt.Sprintf("web%d", i) }
	for i := range kinds {
		h.Add(connection(c, name(i)))
	}
	seen, again := map[string]int{}, 0
	for s := range h.summaries(h.hour) {
		if !h.mu.TryLock() {
			t.Fatalf("the lock is held after %d summaries", len(seen))
		}
		h.mu.Unlock()
		for i := range kinds {
			if len(seen) > 0 {
				break
			}
			h.Add(connection(c, name(i)))       // a second one of each kind
			h.Add(connection(c, name(kinds+i))) // and one of as many new kinds
		}
		if seen[s.GetSource().GetWorkload()]++; s.GetCount() == 2 {
			again++
		}
	}
	for i := range kinds {
		if n := seen["shop/"+name(i)]; n != 1 {
			t.Fatalf("%s was copied %d times", name(i), n)
		}
	}
	if again != kinds-maxCopied {
		t.Errorf("%d of %d were copied later, want all but %d", again, kinds, maxCopied)
	}
	h.Flush()
	if all, _ := read(t, in(t, h.cfg.Dir, c), time.Time{}); len(all) != maxSummaries {
		t.Errorf("on disk: %d", len(all))
	}
}

// TestHangingDisk: a write that does not end keeps neither a scrape nor a status
// waiting, nor for ever the end of the agent; what is written later is whole. The disk
// is a directory of FUSE that nobody serves, until the test does away with it.
func TestHangingDisk(t *testing.T) {
	testenv.NeedRoot(t)
	c, dir, heard := noon(), t.TempDir(), &testenv.Log{}
	hang, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() {
		if err := errors.Join(unix.Close(hang), unix.Unmount(dir, unix.MNT_DETACH)); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("hangs", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", hang)); err != nil {
		unix.Close(hang)
		t.Fatal(err)
	}
	t.Cleanup(release)
	h := in(t, filepath.Join(dir, "flows"), c, func(cfg *Config) { cfg.Log = slog.New(slog.NewTextHandler(heard, nil)) })
	h.patience = 10 * time.Millisecond
	reg := prometheus.NewPedanticRegistry()
	h.Register(reg)
	h.Add(connection(c, "web"))
	var flushing sync.WaitGroup
	flushing.Go(h.Flush)
	testenv.Eventually(t, 10*time.Second, "it waits for the disk", func() bool {
		if !h.files.TryLock() {
			return true
		}
		h.files.Unlock()
		return false
	})
	answered := make(chan error, 1)
	go func() {
		_, err := reg.Gather()
		answered <- errors.Join(err, errorOf(h.Problem()))
	}()
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a scrape and a status wait for the disk")
		release()
		<-answered
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan struct{})
	go func() { h.Run(ctx); close(ended) }()
	select {
	case <-ended:
		if !strings.Contains(heard.String(), "does not answer") {
			t.Errorf("the log: %s", heard)
		}
	case <-time.After(10 * time.Second):
		t.Error("the agent's end waits for the disk")
	}
	release()
	flushing.Wait()
	<-ended
	h.Flush() // after the one that Run has left
	if all, _ := read(t, in(t, h.cfg.Dir, c), time.Time{}); len(all) != 1 || h.Problem() != "" {
		t.Errorf("%v, %q", all, h.Problem())
	}
}

func errorOf(problem string) error {
	if problem == "" {
		return nil
	}
	return errors.New(problem)
}

// TestDamage: what is good of a file is read, and the rest is said.
func TestDamage(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c)
	for i := range 500 {
		h.Add(connection(c, fmt.Sprintf("web%d", i*i*7919)))
	}
	h.Flush()
	files, _ := h.list()
	path := filepath.Join(dir, files[0].name)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		data []byte
		some bool
		want string
	}{
		{"truncated", whole[:len(whole)*3/4], true, "damaged"},
		{"changed", append(bytes.Clone(whole[:len(whole)-6]), 1, 2, 3, 4, 5, 6), true, "damaged"},
		{"empty", nil, false, "no history"},
		{"newer", []byte(strings.Replace(string(whole), "history 1", "history 2", 1)), false, "another version"},
	} {
		if err := os.WriteFile(path, tc.data, 0o600); err != nil {
			t.Fatal(err)
		}
		all, coverage := read(t, in(t, dir, c), time.Time{})
		if (len(all) > 0) != tc.some || len(coverage.GetDamaged()) != 1 || !strings.Contains(coverage.GetDamaged()[0], tc.want) || !strings.Contains(coverage.GetDamaged()[0], files[0].name) {
			t.Errorf("%s: %d read, %v", tc.name, len(all), coverage)
		}
	}
	stop := errors.New("enough")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := in(t, dir, c).Read(t.Context(), time.Time{}, func(*meshpb.FlowSummary) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// TestFullDisk: the oldest makes room; what finds none waits in memory, is said, and
// is written when there is some.
func TestFullDisk(t *testing.T) {
	testenv.NeedRoot(t)
	dir, c := t.TempDir(), noon()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	h := in(t, dir, c)
	h.Add(connection(c, "web"))
	h.Flush()
	c.pass(time.Hour)
	filler := filepath.Join(dir, "filler")
	for size := 64 << 10; size > 0; size -= 4 << 10 {
		if err := os.WriteFile(filler, make([]byte, size), 0o600); err == nil {
			break
		}
	}
	h.Add(connection(c, "api"))
	h.Flush()
	if files, _ := h.list(); h.Problem() != "" || len(files) != 1 || files[0].name != h.hour.file || h.written.dropped != 1 {
		t.Errorf("%q, %v, %+v", h.Problem(), files, h.written)
	}
	if err := os.Remove(filepath.Join(dir, h.hour.file)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filler+"2", make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Add(connection(c, "api"))
	h.Flush()
	if !strings.Contains(h.Problem(), "no space left") {
		t.Errorf("the problem is %q", h.Problem())
	}
	c.pass(time.Hour)
	h.Add(connection(c, "web"))
	h.Flush()
	if all, _ := read(t, h, time.Time{}); len(all) != 2 || h.Problem() == "" {
		t.Errorf("of memory: %v, %q", all, h.Problem())
	}
	if err := errors.Join(os.Remove(filler), os.Remove(filler+"2")); err != nil {
		t.Fatal(err)
	}
	h.Flush()
	if all, _ := read(t, in(t, dir, c), time.Time{}); len(all) != 2 || h.Problem() != "" || len(h.waiting) != 0 {
		t.Errorf("of disk: %v, %q, %v", all, h.Problem(), h.waiting)
	}
}

// TestClockGoesBack: nothing that is on disk is lost.
func TestClockGoesBack(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c)
	for _, step := range []time.Duration{2 * time.Hour, -2 * time.Hour, 0} {
		h.Add(connection(c, "web"))
		h.Flush()
		c.pass(step)
	}
	if all, _ := read(t, in(t, dir, c), time.Time{}); len(all) != 3 {
		t.Errorf("%v", all)
	}
}

// TestClockIsWrongForAMoment: a week stays on disk where a process begins with the date
// of an image, and where the clock jumps ahead and back; what is too old goes once the
// clock has been right for an hour, and what of a wrong one is left with it.
func TestClockIsWrongForAMoment(t *testing.T) {
	for name, wrong := range map[string]time.Time{"behind": time.Unix(0, 0), "ahead": noon().now.Add(30 * 24 * time.Hour)} {
		t.Run(name, func(t *testing.T) {
			dir, c := t.TempDir(), noon()
			h := in(t, dir, c)
			for range 3 {
				h.Add(connection(c, "web"))
				h.Flush()
				c.pass(time.Hour)
			}
			right := c.Now()
			hours := func(h *History) int {
				files, err := h.list()
				if err != nil {
					t.Fatal(err)
				}
				return len(files)
			}
			c.set(wrong) // under the process that runs
			h.Flush()
			c.pass(5 * time.Minute)
			h.Add(connection(c, "web"))
			h.Flush()
			if n := hours(h); n != 4 {
				t.Errorf("%d files after a jump, want the three and one of the jump", n)
			}
			h = in(t, dir, c) // and when one begins
			h.sweep()
			c.pass(5 * time.Minute)
			h.Flush()
			c.set(right.Add(10 * time.Minute))
			h.Flush()
			if all, _ := read(t, h, right.Add(-24*time.Hour)); hours(h) != 4 || len(all) < 3 {
				t.Errorf("%d files, %v", hours(h), all)
			}
			c.pass(2 * time.Hour) // steady, and right
			h.Flush()
			if n := hours(h); n != 3 {
				t.Errorf("%d files when the clock is right again, want three", n)
			}
			c.pass(8 * 24 * time.Hour)
			h.Flush()
			if n := hours(h); n != 0 {
				t.Errorf("%d files are too old", n)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c)
	reg := prometheus.NewPedanticRegistry()
	h.Register(reg)
	h.Add(connection(c, "web"))
	h.Flush()
	want := fmt.Sprintf(`# HELP heddle_history_since_seconds The first hour of which something is on disk, in Unix time; 0 when nothing is.
# TYPE heddle_history_since_seconds gauge
heddle_history_since_seconds %d
# HELP heddle_history_summaries Kinds of connections of this hour.
# TYPE heddle_history_summaries gauge
heddle_history_summaries 1
`, c.Now().Truncate(time.Hour).Unix())
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "heddle_history_since_seconds", "heddle_history_summaries"); err != nil {
		t.Error(err)
	}
}

// TestSweep removes what an agent that died had not finished, and not what another
// one may be writing.
func TestSweep(t *testing.T) {
	dir, c := t.TempDir(), noon()
	now := time.Now()
	c.pass(now.Sub(c.Now()))
	for name, age := range map[string]time.Duration{".new-0123": 2 * time.Hour, ".new-4567": time.Minute, "others": 2 * time.Hour} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, now.Add(-age), now.Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	in(t, dir, c).sweep()
	left, err := filepath.Glob(dir + "/*")
	hidden, _ := filepath.Glob(dir + "/.new-*")
	if err != nil || len(left) < 1 || len(hidden) != 1 || filepath.Base(hidden[0]) != ".new-4567" {
		t.Errorf("%v, %v: %v", left, hidden, err)
	}
}

// TestAddAllocations: a connection of a kind that is known costs no memory.
func TestAddAllocations(t *testing.T) {
	c := noon()
	h := in(t, t.TempDir(), c)
	r := connection(c, "web")
	if n := testing.AllocsPerRun(1000, func() { h.Add(r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTotals: what differs in nothing but the hour is one, and there are never more
// than the bound in memory.
func TestTotals(t *testing.T) {
	dir, c := t.TempDir(), noon()
	h := in(t, dir, c)
	began := c.Now().Add(-time.Second)
	for range 3 {
		h.Add(connection(c, "web"))
		h.Add(connection(c, "api"))
		c.pass(time.Hour)
	}
	all, _ := read(t, h, time.Time{})
	var sums []*meshpb.FlowSummary
	totals := NewTotals(func(s *meshpb.FlowSummary) error { sums = append(sums, s); return nil })
	for _, s := range all {
		if err := totals.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := totals.Flush(); err != nil || len(all) != 6 || len(sums) != 2 {
		t.Fatalf("%v: %d of %d", err, len(sums), len(all))
	}
	last := c.Now().Add(-time.Hour)
	for _, s := range sums {
		if s.GetCount() != 3 || s.GetBytesSent() != 30 || s.GetBytesReceived() != 300 || s.GetFirstNs() != began.UnixNano() || s.GetLastNs() != last.UnixNano() ||
			s.GetHourNs() != last.Truncate(time.Hour).UnixNano() {
			t.Errorf("%v", s)
		}
	}
	count := 0
	totals = NewTotals(func(*meshpb.FlowSummary) error { count++; return nil })
	for port := range uint32(maxSummaries + 5) {
		if err := totals.Add(&meshpb.FlowSummary{Port: port}); err != nil || len(totals.found) > maxSummaries {
			t.Fatal(err, len(totals.found))
		}
	}
	if err := totals.Flush(); err != nil || count != maxSummaries+5 {
		t.Errorf("%v: %d", err, count)
	}
	stop := errors.New("enough")
	totals = NewTotals(func(*meshpb.FlowSummary) error { return stop })
	if err := errors.Join(totals.Add(&meshpb.FlowSummary{}), totals.Flush()); !errors.Is(err, stop) {
		t.Error(err)
	}
}

// TestNone: an agent that keeps no history is not told from one that does.
func TestNone(t *testing.T) {
	h := New(Config{})
	h.Add(connection(noon(), "web"))
	h.Register(prometheus.NewPedanticRegistry())
	h.Run(t.Context())
	if _, err := h.Read(t.Context(), time.Time{}, nil); !errors.Is(err, ErrNone) || h.Problem() != "" {
		t.Errorf("%v, %q", err, h.Problem())
	}
}

func BenchmarkAdd(b *testing.B) {
	c := noon()
	h := New(Config{Bounds: DefaultBounds(), Now: time.Now})
	r := connection(c, "web")
	b.ReportAllocs()
	for b.Loop() {
		h.Add(r)
	}
}

func FuzzDecode(f *testing.F) {
	c := noon()
	r := connection(c, "web")
	if s, ok := Summarize(&r, c.Now()); ok {
		data, err := encode([]*meshpb.FlowSummary{s, s})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)-9])
	}
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		damage, err := decode(bytes.NewReader(data), func(s *meshpb.FlowSummary) error {
			if proto.Size(s) > maxSummaryBytes {
				t.Errorf("a summary of %d bytes", proto.Size(s))
			}
			n++
			return nil
		})
		if err != nil || n > maxSummaries || damage == nil && len(data) == 0 {
			t.Errorf("%d summaries, %v, %v", n, damage, err)
		}
	})
}
