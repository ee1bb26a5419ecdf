package agent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// talk is a connection that is asked again and again for an echo.
type talk struct {
	what string
	c    *net.TCPConn
	in   *bufio.Reader
	n    int
}

func (w *world) talk(t *testing.T, from *podNS, to string) *talk {
	t.Helper()
	c, err := from.dial(to)
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	k := &talk{what: to, c: c, in: bufio.NewReader(c)}
	if _, err := k.in.ReadString('\n'); err != nil {
		t.Fatalf("%s: greeting: %v", to, err)
	}
	k.ask(t)
	return k
}

func (k *talk) ask(t *testing.T) {
	t.Helper()
	k.n++
	line := fmt.Sprintf("question %d %s\n", k.n, strings.Repeat("x", k.n*100))
	err := k.c.SetDeadline(time.Now().Add(10 * time.Second))
	if err == nil {
		_, err = io.WriteString(k.c, line)
	}
	if err != nil {
		t.Fatalf("%s: %v", k.what, err)
	}
	if got, err := k.in.ReadString('\n'); err != nil || got != line {
		t.Fatalf("%s: asked %d, got %q, %v", k.what, k.n, got, err)
	}
}

func (n *node) status() (s *meshpb.AgentStatus) {
	n.w.t.Helper()
	err := n.ask(func(ctx context.Context, c *admin.Client) (err error) {
		s, err = c.Admin.Status(ctx, &meshpb.StatusRequest{})
		return err
	})
	if err != nil {
		n.w.t.Fatalf("status of %s: %v", n.name, err)
	}
	return s
}

// ended waits for an agent that is to end by itself.
func ended(t *testing.T, cmd *exec.Cmd) error {
	t.Helper()
	late := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer late.Stop()
	return cmd.Wait()
}

// TestTakeOver: agents take over from each other, and fail to, under
// connections that live through all of it.
func TestTakeOver(t *testing.T) {
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	web, api, db := w.pods["web"], w.pods["api"], w.pods["db"]
	w.exchange(t, web, "10.96.0.1:70")
	w.n1.expectFlow("outbound to db", wasCarried(flow.DirectionOutbound, flow.TransportTunnel, "web", "db"))
	live := []*talk{
		w.talk(t, web, "10.96.0.1:70"), w.talk(t, web, "[fd96::1]:70"), w.talk(t, web, "10.96.0.2:70"),
		w.talk(t, db, net.JoinHostPort(web.v4, "7001")), w.talk(t, db, net.JoinHostPort(api.v6, "7001")),
	}
	still := func(t *testing.T) {
		t.Helper()
		for _, k := range live {
			k.ask(t)
		}
		w.exchange(t, web, "10.96.0.1:70")
		w.exchange(t, web, "10.96.0.2:70")
		w.exchange(t, db, net.JoinHostPort(web.v4, "7001"))
	}
	for _, n := range []*node{w.n1, w.n2, w.n1} {
		t.Run("hand-over of "+n.name, func(t *testing.T) { w.handOver(t, n); still(t) })
	}
	t.Run("unfit", func(t *testing.T) { w.unfit(t, still) })
	t.Run("killed", func(t *testing.T) { w.killedOnTheWay(t, still) })
	t.Run("lost", func(t *testing.T) { w.lostSuccessors(t, still) })
	t.Run("refused", func(t *testing.T) { w.refusedSuccessors(t); still(t) })
	t.Run("after all of it", func(t *testing.T) { w.handOver(t, w.n1); still(t) })
	t.Run("the donor is killed", func(t *testing.T) { w.donorKilled(t) })
}

func (w *world) handOver(t *testing.T, n *node) {
	before, old := n.status(), n.cmd
	n.start(func(c *agent.Config) { c.Version = "next"; c.TakeOver = agent.TakeOverRequire })
	if err := ended(t, old); err != nil {
		log, _ := os.ReadFile(n.log)
		t.Fatalf("the donor: %v\n%s", err, log)
	}
	n.await("enrolled")
	if log, err := os.ReadFile(n.log); err != nil || !strings.Contains(string(log), fmt.Sprintf("msg=\"the running agent hands over\" successor=%d ", n.cmd.Process.Pid)) {
		t.Errorf("it does not say that connections come (%v):\n%s", err, log)
	}
	after := n.status()
	h := after.GetHandOver()
	if h.GetFromPid() != before.GetPid() || after.GetPid() != int64(n.cmd.Process.Pid) || h.GetFailed() != 0 || h.GetLeft() != 0 || h.GetConnections() == 0 {
		t.Errorf("from %d: %v of %d", before.GetPid(), h, after.GetPid())
	}
	if pause := time.Duration(h.GetLongestPauseNs()); pause <= 0 || pause > 500*time.Millisecond {
		t.Errorf("connections were at rest for %v", pause)
	}
	t.Logf("%d connections in %d tunnels, at rest for %v, in all %v", h.GetConnections(), h.GetTunnels(), time.Duration(h.GetLongestPauseNs()), time.Duration(h.GetDurationNs()))
	// It hurried while connections were at rest, and has stopped hurrying: every
	// thread has the priority of this process again.
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("%d threads: %v", len(threads), err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		// getpriority(2): 20 - nice.
		own, err1 := unix.Getpriority(unix.PRIO_PROCESS, 0)
		its, err2 := unix.Getpriority(unix.PRIO_PROCESS, tid)
		if err := errors.Join(err1, err2); err == nil && its != own {
			t.Errorf("thread %d has priority %d, want %d", tid, its, own)
		}
	}
	if n == w.n1 && len(n.flows(wasCarried(flow.DirectionOutbound, flow.TransportTunnel, "web", "db"))) == 0 {
		t.Error("the flow records from before are gone")
	}
	var c net.Conn
	n.ns.Must(t, func() (err error) { c, err = net.DialTimeout("tcp", "127.0.0.1:15020", 5*time.Second); return err })
	defer c.Close()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil },
	}}
	r, err := client.Get("http://agent/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("readyz: %s", r.Status)
	}
}

// fails starts a successor of n1 that must end with an error that has want in
// it, and leave the donor as it was.
func (w *world) fails(t *testing.T, want string, change func(*agent.Config)) {
	t.Helper()
	n := w.n1
	old, pid := n.cmd, n.status().GetPid()
	n.start(change)
	failing := n.cmd
	n.cmd = old
	var status *exec.ExitError
	err := ended(t, failing)
	log, _ := os.ReadFile(n.log)
	if !errors.As(err, &status) || status.ExitCode() != 1 {
		t.Fatalf("the successor: %v\n%s", err, log)
	}
	if !strings.Contains(string(log), want) {
		t.Errorf("the log lacks %q:\n%s", want, log)
	}
	if now := n.status().GetPid(); now != pid {
		t.Errorf("the agent is %d, and was %d", now, pid)
	}
	n.await("enrolled")
}

func (w *world) unfit(t *testing.T, still func(*testing.T)) {
	// It cannot join: it has no credential, and its token was used.
	w.fails(t, "agent: ", func(c *agent.Config) { c.StateDir += "-other"; c.JoinToken = "" })
	still(t)
	// The port of its metrics is taken.
	var taken net.Listener
	w.n1.ns.Must(t, func() (err error) { taken, err = net.Listen("tcp", ":15999"); return err })
	defer taken.Close()
	w.fails(t, "listen for metrics", func(c *agent.Config) { c.Metrics = ":15999" })
	still(t)
}

// killedOnTheWay: a successor that is killed at any moment before it is ready
// takes nothing with it.
func (w *world) killedOnTheWay(t *testing.T, still func(*testing.T)) {
	n := w.n1
	old, pid := n.cmd, n.status().GetPid()
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond} {
		failures := n.failures()
		n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
		cmd := n.cmd
		n.cmd = old
		testenv.Eventually(t, 10*time.Second, "the successor asks", func() bool {
			log, err := os.ReadFile(n.log)
			return err == nil && strings.Contains(string(log), fmt.Sprintf("successor=%d ", cmd.Process.Pid))
		})
		time.Sleep(after)
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		n.goesOn(t, failures) // or it was ready already: the test came too late
		still(t)
		if now := n.status().GetPid(); now != pid {
			t.Fatalf("the agent is %d, and was %d", now, pid)
		}
	}
}

// lostSuccessors: the donor takes its pods up again when a successor is lost
// after the donor has stopped accepting, at the latest before the first commit.
func (w *world) lostSuccessors(t *testing.T, still func(*testing.T)) {
	for _, late := range []time.Duration{0, 500 * time.Millisecond} {
		failures := w.n1.failures()
		life, end := context.WithCancel(t.Context())
		s, err := handover.Dial(life, handover.SuccessorConfig{
			Socket: w.n1.handover(), Log: slog.New(slog.DiscardHandler),
			Self: handover.Self{Node: "n1", Layout: kernel.Layout(kernel.Config{}), Engine: "loop", Moves: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		estate, err := s.Estate(func([][]byte) {})
		estate.Close()
		if err == nil {
			_, err = s.Ready()
		}
		if err != nil {
			t.Fatal(err)
		}
		// It takes connections late, or not at all: they come to rest meanwhile,
		// again and again.
		if late > 0 {
			time.AfterFunc(time.Second, end)
			if _, err := s.Receive(sluggish{late}); err == nil {
				t.Error("it took over")
			}
		}
		end()
		s.Close()
		still(t)
		w.n1.goesOn(t, failures)
	}
}

// sluggish is a successor that answers too late.
type sluggish struct{ late time.Duration }

func (s sluggish) Check([]*handover.Connection) error { time.Sleep(s.late); return nil }
func (s sluggish) Thaw(*handover.Connection) error    { return errors.New("it must not come to that") }
func (s sluggish) Records([][]byte)                   {}

// failures counts the hand-overs that the node's agents say have failed.
func (n *node) failures() int {
	log, _ := os.ReadFile(n.log) // nothing is said in none
	return strings.Count(string(log), "this agent goes on")
}

// goesOn waits until the donor has taken its pods up again.
func (n *node) goesOn(t *testing.T, before int) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, "the donor goes on", func() bool { return n.failures() > before })
}

func (n *node) handover() string {
	return strings.TrimSuffix(n.socket(), "agent.sock") + "handover.sock"
}

func (w *world) refusedSuccessors(t *testing.T) {
	w.fails(t, "connections cannot move", func(c *agent.Config) { c.Engine = "reference"; c.TakeOver = agent.TakeOverRequire })
	w.fails(t, fmt.Sprintf("process %d is this node's agent", w.n1.status().GetPid()), func(c *agent.Config) { c.TakeOver = agent.TakeOverNever })
	_, err := handover.Dial(t.Context(), handover.SuccessorConfig{
		Socket: w.n1.handover(), Versions: handover.Versions{Oldest: 7, Newest: 8},
	})
	var refused *handover.Refused
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "the new agent 7 to 8") {
		t.Errorf("a version that is too new: %v", err)
	}
	_, err = handover.Dial(t.Context(), handover.SuccessorConfig{
		Socket: w.n1.handover(), Self: handover.Self{Node: "n1", TrustDomain: "elsewhere.example", Layout: kernel.Layout(kernel.Config{}), Engine: "loop", Moves: true},
	})
	if refused = nil; !errors.As(err, &refused) || !strings.Contains(refused.Reason, `the new one of "elsewhere.example"`) {
		t.Errorf("another mesh's agent: %v", err)
	}
}

// donorKilled: a successor that has begun becomes the agent when the donor dies,
// with what it has. It comes last: connections end.
func (w *world) donorKilled(t *testing.T) {
	n := w.n1
	old := n.cmd
	n.start()
	begun := fmt.Sprintf("msg=\"taking over\" from=%d ", old.Process.Pid)
	testenv.Eventually(t, 10*time.Second, "the successor begins", func() bool {
		log, err := os.ReadFile(n.log)
		return err == nil && strings.Contains(string(log), begun)
	})
	if err := old.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	old.Wait()
	testenv.Eventually(t, 20*time.Second, "the successor answers", func() bool {
		return n.ask(func(ctx context.Context, c *admin.Client) error {
			_, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
			return err
		}) == nil
	})
	n.await("enrolled")
	if pid := n.status().GetPid(); pid != int64(n.cmd.Process.Pid) {
		t.Errorf("the agent is %d, want %d", pid, n.cmd.Process.Pid)
	}
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	w.exchange(t, w.pods["web"], "10.96.0.2:70")
	w.exchange(t, w.pods["db"], net.JoinHostPort(w.pods["web"].v4, "7001"))
}

// TestTakeOverDrains: an engine that cannot give its connections away keeps them
// to their end, and gives everything else.
func TestTakeOverDrains(t *testing.T) {
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	reference := func(c *agent.Config) { c.Engine = "reference"; c.Timeouts.Drain = 2 * time.Second }
	for _, n := range []*node{w.n1, w.n2} {
		n.start(reference)
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	tunnel, splice := w.talk(t, w.pods["web"], "10.96.0.1:70"), w.talk(t, w.pods["web"], "10.96.0.2:70")
	old := w.n1.cmd
	w.n1.start(reference, func(c *agent.Config) { c.TakeOver = agent.TakeOverDrain })
	testenv.Eventually(t, 20*time.Second, "the new agent answers", func() bool {
		return w.n1.ask(func(ctx context.Context, c *admin.Client) error {
			s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
			if err == nil && s.GetPid() != int64(w.n1.cmd.Process.Pid) {
				return errors.New("the old agent answers")
			}
			return err // the old one's server may end under the question
		}) == nil
	})
	if h := w.n1.status().GetHandOver(); h.GetLeft() != 1 || h.GetConnections() != 1 || h.GetTunnels() != 0 || h.GetFailed() != 0 {
		t.Errorf("%v", h)
	}
	tunnel.ask(t) // it goes on for as long as the old agent does
	splice.ask(t)
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	if err := ended(t, old); err != nil {
		t.Errorf("the donor: %v", err)
	}
	splice.ask(t)
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	if err := tunnel.c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := tunnel.in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the tunnel's connection outlived its agent: %v", err)
	}
}
