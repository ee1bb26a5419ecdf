package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// giver is an agent whose connections are the near ends of socket pairs: whoever
// has one writes its name to it.
type giver struct {
	mu sync.Mutex
	// mine are the connections that are here, by name.
	mine    map[string]int
	files   int // descriptors of each connection
	bytes   int // so much more state of each
	estate  *Estate
	records []string
	left    int
	tries   int
	did     []string
	// between is called before each batch.
	between func(n int)
	// resumed is called by Resume; patience is how often a batch is tried.
	resumed  func()
	patience int
}

func (g *giver) note(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.did = append(g.did, what)
}

func (g *giver) took() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.did, " ")
}

func (g *giver) Hold(context.Context) (*Estate, error) {
	g.note("hold")
	return g.estate, nil
}

func (g *giver) Resume() {
	if g.resumed != nil {
		g.resumed()
	}
	g.note("resume")
}

func (g *giver) Records(after uint64) ([][]byte, uint64) {
	var all [][]byte
	for _, r := range g.records[after:] {
		all = append(all, []byte(r))
	}
	return all, uint64(len(g.records))
}

func (g *giver) Move(_ context.Context, move func([]*Connection) error) (int, error) {
	g.note("move")
	var names []string
	for name := range g.mine {
		names = append(names, name)
	}
	slices.Sort(names)
	n := 0
	for chunk := range slices.Chunk(names, 2) {
		n++
		var batch []*Connection
		for _, name := range chunk {
			c := &Connection{Kind: "pair", Pod: "shop/web", State: []byte(name), Data: []byte("data of " + name)}
			c.State = append(c.State, make([]byte, g.bytes)...)
			for range max(g.files, 1) {
				c.Files = append(c.Files, g.mine[name])
			}
			batch = append(batch, c)
		}
		if g.between != nil {
			g.between(n)
		}
		var err error
		for range max(g.patience, 8) {
			g.tries++
			if err = move(batch); !errors.Is(err, ErrLate) {
				break
			}
			if late, ok := errors.AsType[*Late](err); ok {
				<-late.Again
			}
		}
		if errors.Is(err, ErrStays) {
			g.left += len(chunk)
			continue
		}
		if err != nil {
			return 0, err
		}
		for _, name := range chunk {
			unix.Close(g.mine[name])
			delete(g.mine, name)
		}
	}
	g.records = append(g.records, "last words")
	return g.left, nil
}

// taker is a new agent.
type taker struct {
	mine    map[string]*Connection
	records []string
	reject  error
	misread string // this one cannot be read
	lose    string // this one cannot be thawed
	slow    time.Duration
	thawing time.Duration // is how long the third connection takes
}

func (t *taker) Check(all []*Connection) error {
	time.Sleep(t.slow)
	t.slow = 0
	for _, c := range all {
		if string(c.State) == t.misread {
			return errors.New("it cannot be read")
		}
	}
	return t.reject
}

func (t *taker) Thaw(c *Connection) error {
	name := string(bytes.TrimRight(c.State, "\x00"))
	if len(t.mine) == 2 {
		time.Sleep(t.thawing)
	}
	if name == t.lose {
		return errors.New("it does not thaw")
	}
	if string(c.Data) != "data of "+name {
		return fmt.Errorf("%s came with %q", name, c.Data)
	}
	t.mine[name] = c
	return nil
}

func (t *taker) Records(all [][]byte) {
	for _, r := range all {
		t.records = append(t.records, string(r))
	}
}

// world is a donor that serves, with connections "c0", "c1", … whose far ends
// the test has.
type world struct {
	giver  *giver
	socket string
	far    map[string]*os.File
	self   Self
	given  chan bool
	stop   func()
}

func newWorld(t *testing.T, connections int, change func(*DonorConfig)) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "ho")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{
		giver: &giver{mine: map[string]int{}, estate: &Estate{}, records: []string{"one", "two"}}, socket: filepath.Join(dir, "s"),
		far: map[string]*os.File{}, given: make(chan bool, 1),
		self: Self{Node: "n1", Program: "old", Layout: "v1", Engine: "loop", Moves: true},
	}
	for i := range connections {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("c%d", i)
		w.giver.mine[name] = pair[0]
		w.far[name] = os.NewFile(uintptr(pair[1]), name)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	w.giver.estate.Pods = []Pod{{Name: "shop_web", Listeners: []Listener{{Port: 15001, File: int(f.Fd())}}}}
	w.giver.estate.Metrics, w.giver.estate.MetricsAddress = &Listener{File: int(f.Fd())}, ":15020"
	cfg := DonorConfig{Self: w.self, Giver: w.giver, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Timeouts: Timeouts{Hello: 2 * time.Second}}
	if change != nil {
		change(&cfg)
	}
	listener, err := rootsocket.Listen(w.socket, cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		w.given <- NewDonor(cfg).Serve(ctx, listener)
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-w.given:
		case <-time.After(10 * time.Second):
			t.Error("the donor does not end")
		}
	})
	t.Cleanup(func() {
		w.stop()
		f.Close()
		l.Close()
		for name, far := range w.far {
			far.Close()
			if fd, ok := w.giver.mine[name]; ok {
				unix.Close(fd)
			}
		}
	})
	return w
}

func (w *world) dial(t *testing.T, change func(*SuccessorConfig)) (*Successor, error) {
	t.Helper()
	cfg := SuccessorConfig{Socket: w.socket, Self: w.self, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Timeouts: Timeouts{Hello: 2 * time.Second}}
	cfg.Self.Program = "new"
	if change != nil {
		change(&cfg)
	}
	return Dial(t.Context(), cfg)
}

// successor goes as far as the end of the self-test.
func (w *world) successor(t *testing.T, into *taker, change func(*SuccessorConfig)) *Successor {
	t.Helper()
	s, err := w.dial(t, change)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	estate, err := s.Estate(into.Records)
	if err != nil {
		t.Fatal(err)
	}
	defer estate.Close()
	if len(estate.Pods) != 1 || estate.Pods[0].Name != "shop_web" || estate.Pods[0].Listeners[0].Port != 15001 || estate.MetricsAddress != ":15020" || estate.Metrics == nil {
		t.Fatalf("estate: %+v", estate)
	}
	// It is the same socket as the donor's.
	want, _ := unix.Getsockname(w.giver.estate.Metrics.File)
	got, err := unix.Getsockname(estate.Pods[0].Listeners[0].File)
	if err != nil || want.(*unix.SockaddrInet4).Port != got.(*unix.SockaddrInet4).Port {
		t.Fatalf("the listener is at %v, want %v (%v)", got, want, err)
	}
	return s
}

func newTaker(t *testing.T) *taker {
	k := &taker{mine: map[string]*Connection{}}
	t.Cleanup(func() {
		for _, c := range k.mine {
			closeAll(c.Files)
		}
	})
	return k
}

// alive writes through a connection's near end and reads it from the far one.
func (w *world) alive(t *testing.T, name string, fd int) {
	t.Helper()
	if _, err := unix.Write(fd, []byte(name)); err != nil {
		t.Errorf("%s: write: %v", name, err)
		return
	}
	got := make([]byte, len(name))
	w.far[name].SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.ReadFull(w.far[name], got); err != nil || string(got) != name {
		t.Errorf("%s: got %q, %v", name, got, err)
	}
}

func TestHandOver(t *testing.T) {
	for _, c := range []struct {
		versions Versions
		version  int
		records  string
	}{
		{Versions{}, 2, "one two last words"},
		{Versions{1, 1}, 1, ""},
		{Versions{2, 3}, 2, "one two last words"},
	} {
		t.Run(fmt.Sprint(c.versions), func(t *testing.T) {
			w, k := newWorld(t, 5, nil), newTaker(t)
			w.giver.files, w.giver.left = 300, 3 // more than fit into one message of the kernel's
			s := w.successor(t, k, func(cfg *SuccessorConfig) { cfg.Versions = c.versions })
			if s.Version != c.version || !s.Moves || s.Donor.Program != "old" || s.Donor.PID != os.Getpid() {
				t.Errorf("%+v", s)
			}
			if alone, err := s.Ready(); alone || err != nil {
				t.Fatal(alone, err)
			}
			sum, err := s.Receive(k)
			if err != nil {
				t.Fatal(err)
			}
			if sum.Connections != 5 || sum.Failed != 0 || sum.Left != 3 || sum.Pause <= 0 || sum.Pause > time.Second || sum.Alone {
				t.Errorf("%+v", sum)
			}
			s.Taken()
			if given := <-w.given; !given {
				t.Error("the donor did not hear that it may end")
			}
			w.given <- true
			if got := strings.Join(k.records, " "); got != c.records {
				t.Errorf("records %q, want %q", got, c.records)
			}
			if did := w.giver.took(); did != "hold move" {
				t.Errorf("the donor did %q", did)
			}
			for name, c := range k.mine {
				if len(c.Files) != 300 {
					t.Errorf("%s has %d files", name, len(c.Files))
				}
				w.alive(t, name, c.Files[299])
			}
		})
	}
}

func TestNobody(t *testing.T) {
	w := newWorld(t, 0, nil)
	w.stop()
	if _, err := w.dial(t, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("got %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: w.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := w.dial(t, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("a stale socket: %v", err)
	}
	w.given <- false
}

func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*SuccessorConfig){
		"versions 1 to 2 of the hand-over, the new agent 3 to 4": func(c *SuccessorConfig) { c.Versions = Versions{3, 4} },
		`it is the agent of node "n1"`:                           func(c *SuccessorConfig) { c.Self.Node = "n2" },
		`it is of the mesh "here", the new one of "elsewhere"`:   func(c *SuccessorConfig) { c.Self.TrustDomain = "elsewhere" },
		`have layout "v1", the new agent's "v2"`:                 func(c *SuccessorConfig) { c.Self.Layout = "v2" },
		`cannot move from the engine "loop" to "reference"`:      func(c *SuccessorConfig) { c.Self.Engine = "reference" },
		`from the engine "loop" to "loop"`:                       func(c *SuccessorConfig) { c.Self.Moves = false },
	} {
		w := newWorld(t, 1, func(c *DonorConfig) { c.Self.TrustDomain = "here" })
		_, err := w.dial(t, change)
		var refused *Refused
		if !errors.As(err, &refused) || refused.Remedy == "" || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
		}
		if did := w.giver.took(); did != "" {
			t.Errorf("%s: the donor did %q", name, did)
		}
	}
}

// TestSameMesh: a version that does not say its mesh, and one that does not know it yet, is
// no other's. What one says, the other learns.
func TestSameMesh(t *testing.T) {
	for _, names := range [][2]string{{"here", "here"}, {"here", ""}, {"", "here"}, {"", ""}} {
		w := newWorld(t, 0, func(c *DonorConfig) { c.Self.TrustDomain = names[0] })
		s, err := w.dial(t, func(c *SuccessorConfig) { c.Self.TrustDomain = names[1] })
		if err != nil {
			t.Errorf("%q: %v", names, err)
			continue
		}
		if s.Donor.TrustDomain != names[0] {
			t.Errorf("%q: the donor says %q", names, s.Donor.TrustDomain)
		}
		var refused *Refused
		if err := s.Donor.SameMesh(Self{TrustDomain: "elsewhere"}); errors.As(err, &refused) == (names[0] == "") {
			t.Errorf("%q, and one that learns where it is: %v", names, err)
		}
		s.Close()
	}
}

// TestLaterHello: fields that this version does not know are passed over.
func TestLaterHello(t *testing.T) {
	w := newWorld(t, 0, nil)
	conn, err := rootsocket.Dial(t.Context(), w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := channel{conn}
	body := `{"versions":{"oldest":2,"newest":3,"preferred":3},"self":{"node":"n1","layout":"v1","engine":"loop","moves":true,"colour":"blue"},"extra":[1]}`
	if err := c.send(kindHello, 0, []byte(body), nil, time.Second); err != nil {
		t.Fatal(err)
	}
	m, err := c.receive(2 * time.Second)
	var got welcome
	if err == nil {
		err = unmarshal(m, kindWelcome, &got)
	}
	if err != nil || got.Version != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestOneAtATime(t *testing.T) {
	w, k := newWorld(t, 1, nil), newTaker(t)
	first := w.successor(t, k, nil)
	if _, err := w.dial(t, nil); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second successor: %v", err)
	}
	first.Fail(errors.New("enough"))
	first.Close()
	testenv.Eventually(t, 5*time.Second, "the donor resumes", func() bool { return w.giver.took() == "hold resume" })
	w.successor(t, k, nil)
}

// TestDrain: connections that cannot move are no reason to refuse one who
// accepts that.
func TestDrain(t *testing.T) {
	w, k := newWorld(t, 0, nil), newTaker(t)
	s := w.successor(t, k, func(c *SuccessorConfig) { c.Self.Engine, c.Drain = "reference", true })
	if s.Moves {
		t.Error("connections move between engines")
	}
}

// TestFailures: whatever becomes of the successor, the donor goes on with what
// it was not told is the other's, and gives everything to the next.
func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		fail func(w *world, s *Successor, k *taker)
		here int // connections that the donor has afterwards
	}{
		"not fit":           {func(_ *world, s *Successor, _ *taker) { s.Fail(errors.New("no certificate")); s.Close() }, 4},
		"gone before ready": {func(_ *world, s *Successor, _ *taker) { s.Close() }, 4},
		"gone at the start of moving": {func(_ *world, s *Successor, _ *taker) {
			s.Ready()
			s.say(kindAccepting, struct{}{})
			s.Close()
		}, 4},
		"gone before it accepts": {func(_ *world, s *Successor, _ *taker) {
			s.Ready()
			s.Close()
		}, 4},
		"gone before it is prepared": {func(_ *world, s *Successor, _ *taker) {
			s.Ready()
			s.say(kindAccepting, struct{}{})
			m, _ := s.channel.receive(time.Second)
			m.closeFiles()
			s.Close()
		}, 4},
		"gone after the first commit": {func(_ *world, s *Successor, k *taker) {
			s.Ready()
			s.say(kindAccepting, struct{}{})
			m, _ := s.channel.receive(time.Second)
			p, err := s.prepare(k, m)
			if err == nil {
				m, err = s.channel.receive(time.Second)
			}
			if err != nil || m.kind != kindCommit {
				panic(fmt.Sprint(m, err))
			}
			p.drop()
			s.Close()
		}, 2},
		"rejects": {func(_ *world, s *Successor, k *taker) {
			s.Ready()
			k.reject = errors.New("a pod that nobody knows")
			s.Receive(k)
			s.Close()
		}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			w, k := newWorld(t, 4, nil), newTaker(t)
			s := w.successor(t, k, nil)
			if strings.HasPrefix(name, "rejects") {
				// Its donor gives up by closing: that is heard of at once.
				unix.Close(s.process)
				s.process = -1
			}
			c.fail(w, s, k)
			testenv.Eventually(t, 10*time.Second, "the donor resumes", func() bool { return strings.HasSuffix(w.giver.took(), "resume") })
			if len(w.giver.mine) != c.here {
				t.Errorf("the donor has %d connections, want %d", len(w.giver.mine), c.here)
			}
			for name, fd := range w.giver.mine {
				w.alive(t, name, fd)
			}
			k.reject = nil
			again := w.successor(t, k, nil)
			if _, err := again.Ready(); err != nil {
				t.Fatal(err)
			}
			if sum, err := again.Receive(k); err != nil || sum.Connections != c.here {
				t.Errorf("the next successor: %+v, %v", sum, err)
			}
			again.Taken()
		})
	}
}

// TestStays: connections that are too much for a message, or that the successor
// cannot read when it has others already, stay, and the rest moves.
func TestStays(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*giver, *taker)
		left    []string
	}{
		"too many descriptors": {func(g *giver, _ *taker) {
			g.between = func(n int) { g.files = map[int]int{1: maxFiles/2 + 1}[n] } // of the next batch
		}, []string{"c2", "c3"}},
		"too many bytes": {func(g *giver, _ *taker) {
			g.between = func(n int) { g.bytes = map[int]int{1: maxBody / 2}[n] }
		}, []string{"c2", "c3"}},
		"not read": {func(_ *giver, k *taker) { k.misread = "c2" }, []string{"c2", "c3"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, k := newWorld(t, 6, nil), newTaker(t)
			c.prepare(w.giver, k)
			s := w.successor(t, k, nil)
			if _, err := s.Ready(); err != nil {
				t.Fatal(err)
			}
			sum, err := s.Receive(k)
			if err != nil || sum.Connections != 4 || sum.Left != 2 || sum.Failed != 0 {
				t.Errorf("%+v, %v", sum, err)
			}
			s.Taken()
			if given := <-w.given; !given {
				t.Error("the donor goes on")
			}
			w.given <- true
			for _, name := range c.left {
				w.alive(t, name, w.giver.mine[name])
			}
			for name, c := range k.mine {
				w.alive(t, name, c.Files[0])
			}
		})
	}
}

// TestDonorUsesItsTime: a donor that says nothing for as long as it may move
// still has its successor, which has what moved before.
func TestDonorUsesItsTime(t *testing.T) {
	short := Timeouts{Hello: time.Second, Move: 300 * time.Millisecond}
	w, k := newWorld(t, 4, func(c *DonorConfig) { c.Timeouts = short }), newTaker(t)
	w.giver.between = func(n int) {
		if n == 2 {
			time.Sleep(2 * short.Move)
		}
	}
	s := w.successor(t, k, func(c *SuccessorConfig) { c.Timeouts = short })
	if _, err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	if sum, err := s.Receive(k); err != nil || sum.Connections != 4 {
		t.Errorf("%+v, %v", sum, err)
	}
	s.Taken()
}

// TestSuccessorGivesUpFirst: the donor waits longer for accepting than the
// successor tries.
func TestSuccessorGivesUpFirst(t *testing.T) {
	if within := (Timeouts{}).orDefaults().Accept; within <= AcceptWithin {
		t.Errorf("the donor waits for %v, the successor tries for %v", within, AcceptWithin)
	}
}

// TestLate: a successor that answers late is told to let go, its late answer
// changes nothing, and the next try has more time.
func TestLate(t *testing.T) {
	w, k := newWorld(t, 4, func(c *DonorConfig) { c.Timeouts.Rest = 50 * time.Millisecond }), newTaker(t)
	k.slow = 120 * time.Millisecond
	s := w.successor(t, k, nil)
	if _, err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	sum, err := s.Receive(k)
	if err != nil || sum.Connections != 4 {
		t.Fatalf("%+v, %v", sum, err)
	}
	s.Taken()
	if w.giver.tries < 3 {
		t.Errorf("%d tries: nothing was late", w.giver.tries)
	}
	for name, c := range k.mine {
		w.alive(t, name, c.Files[0])
	}
}

// TestSlowThaw: a successor that has some connections, and is slow to go on with
// others, loses none: what it does not read in time goes on at the donor, and
// comes again.
func TestSlowThaw(t *testing.T) {
	w := newWorld(t, 8, nil)
	w.giver.bytes = 512 << 10 // a batch is far more than a socket holds
	w.giver.patience = 1000
	k := newTaker(t)
	k.thawing = 1500 * time.Millisecond
	s := w.successor(t, k, nil)
	if _, err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	sum, err := s.Receive(k)
	if err != nil || sum.Connections != 8 || sum.Failed != 0 {
		t.Fatalf("%+v, %v", sum, err)
	}
	s.Taken()
	if w.giver.tries < 5 {
		t.Errorf("%d tries: nothing was late", w.giver.tries)
	}
	for name, c := range k.mine {
		w.alive(t, name, c.Files[0])
	}
}

// TestDonorDies: before a commit the duplicates are closed; the successor is the
// agent once the donor's process has ended, and not while it has not.
func TestDonorDies(t *testing.T) {
	ended := exec.Command("true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	dead, err := unix.PidfdOpen(ended.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dead)
	if err := ended.Wait(); err != nil {
		t.Fatal(err)
	}
	alive, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(alive)
	for _, process := range []int{dead, alive} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		donor, own := unixConn(t, pair[0]), unixConn(t, pair[1])
		far, near := pipe(t)
		s := &Successor{cfg: SuccessorConfig{Log: slog.New(slog.DiscardHandler), Timeouts: Timeouts{}.orDefaults()}, channel: channel{own}, process: process}
		body, files := encodeBatch([]*Connection{{Pod: "p", State: []byte("c"), Files: []int{near}}}, monotonic())
		if err := (channel{donor}).send(kindBatch, 1, body, files, time.Second); err != nil {
			t.Fatal(err)
		}
		unix.Close(near)
		k := newTaker(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			(channel{donor}).receive(time.Second) // accepting
			(channel{donor}).receive(time.Second) // prepared
			donor.Close()
		}()
		sum, err := s.Receive(k)
		<-done
		if sum.Alone != (process == dead) || (err == nil) != (process == dead) || len(k.mine) != 0 {
			t.Errorf("%+v, %v, thawed %d", sum, err, len(k.mine))
		}
		if n, err := unix.Read(far, make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("the duplicate was not closed: %d, %v", n, err)
		}
		unix.Close(far)
		own.Close()
	}
}

func unixConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func pipe(t *testing.T) (far, near int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return pair[0], pair[1]
}

// TestFailedThaw: a connection that does not thaw is reset and counted, and the
// others go on.
func TestFailedThaw(t *testing.T) {
	w, k := newWorld(t, 3, nil), newTaker(t)
	k.lose = "c1"
	near, far := tcpPair(t)
	unix.Close(w.giver.mine["c1"])
	w.giver.mine["c1"] = near
	s := w.successor(t, k, nil)
	if _, err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	sum, err := s.Receive(k)
	if err != nil || sum.Connections != 2 || sum.Failed != 1 {
		t.Errorf("%+v, %v", sum, err)
	}
	s.Taken()
	<-w.given
	w.given <- true
	far.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the lost connection was not reset: %v", err)
	}
}

// tcpPair returns the ends of a connection, one as a descriptor.
func tcpPair(t *testing.T) (near int, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err = net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var duplicating error
	err = raw.Control(func(fd uintptr) { near, duplicating = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, duplicating); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// TestMessagesAreBounded: what is too large is refused before it is read, and
// descriptors that come with it are closed (the leak check of the package).
func TestMessagesAreBounded(t *testing.T) {
	for _, header := range [][]byte{
		{byte(kindHello), 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0},
		{byte(kindBatch), 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0},
		{byte(kindBatch), 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0},
		{byte(kindBatch), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0},
		{byte(kindBatch), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0},
		{byte(kindFiles) + 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0},
		{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0},
	} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		peer, own := unixConn(t, pair[0]), unixConn(t, pair[1])
		far, near := pipe(t)
		if _, _, err := peer.WriteMsgUnix(header, unix.UnixRights(near), nil); err != nil {
			t.Fatal(err)
		}
		unix.Close(near)
		if m, err := (channel{own}).receive(time.Second); err == nil {
			t.Errorf("% x was taken: %+v", header, m)
			m.closeFiles()
		}
		if n, err := unix.Read(far, make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("% x: the descriptor is open still: %d, %v", header, n, err)
		}
		unix.Close(far)
		peer.Close()
		own.Close()
	}
}

func FuzzBatch(f *testing.F) {
	one, _ := encodeBatch([]*Connection{{Kind: "tunnel", Pod: "shop/web", State: []byte("state"), Data: []byte("data"), Files: []int{3, 4}}, {Files: []int{5}}}, 12345)
	f.Add(one, 3)
	f.Add([]byte{0, 0}, 0)
	f.Add([]byte{0, 1, 0, 0, 0, 0, 0}, 0)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0x1f}, 9)
	f.Fuzz(func(t *testing.T, body []byte, files int) {
		fds := make([]int, min(max(files, 0), maxFiles))
		for i := range fds {
			fds[i] = i
		}
		all, rest, err := decodeBatch(body, fds)
		if err != nil {
			return
		}
		var bytes, given int
		for _, c := range all {
			bytes += len(c.Kind) + len(c.Pod) + len(c.State) + len(c.Data)
			given += len(c.Files)
		}
		if bytes > len(body) || given != len(fds) || len(all) > maxConnections || rest < 0 {
			t.Fatalf("%d bytes and %d files out of %d and %d", bytes, given, len(body), len(fds))
		}
		again, fds2 := encodeBatch(all, rest)
		if len(again) > len(body) || !slices.Equal(fds2, fds) {
			t.Fatalf("encoded to %d bytes, from %d", len(again), len(body))
		}
	})
}

func FuzzRecords(f *testing.F) {
	body, _ := encodeRecords([][]byte{[]byte("a"), {}, []byte("record")}, 1000)
	f.Add(body)
	f.Add([]byte{0xff, 0xff, 0x04, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		records, err := decodeRecords(body)
		if err != nil {
			return
		}
		again, n := encodeRecords(records, len(body)+64)
		if n != len(records) || len(again) > len(body) {
			t.Fatalf("%d of %d records in %d bytes of %d", n, len(records), len(again), len(body))
		}
	})
}

// FuzzMessage throws bytes at everything that reads a header or a control
// message.
func FuzzMessage(f *testing.F) {
	f.Add(byte(kindHello), []byte(`{"versions":{"oldest":1,"newest":2}}`))
	f.Add(byte(kindListeners), []byte(`{"pod":{"name":"x","listeners":[{"port":1}]}}`))
	f.Add(byte(kindListeners), []byte(`{"metrics":":1"}`))
	f.Fuzz(func(t *testing.T, k byte, body []byte) {
		if len(body) >= headerBytes {
			m := &message{}
			if length, files, err := parseHeader(body[:headerBytes], m); err == nil && (length > maxBody || files > filesAtOnce) {
				t.Fatalf("%d bytes, %d files", length, files)
			}
		}
		m := &message{kind: kind(k), body: body}
		var h hello
		_ = unmarshal(m, kindHello, &h)
		var part estatePart
		if unmarshal(m, kindListeners, &part) == nil {
			e := &Estate{}
			if e.add(part, nil) == nil && (e.Metrics != nil || len(e.Pods[0].Listeners) > 0) {
				t.Fatal("listeners without descriptors")
			}
		}
	})
}

func TestChooseVersion(t *testing.T) {
	for _, c := range []struct {
		a, b    Versions
		version int
		ok      bool
	}{
		{Versions{1, 2}, Versions{1, 2}, 2, true},
		{Versions{1, 2}, Versions{2, 3}, 2, true},
		{Versions{2, 3}, Versions{1, 2}, 2, true},
		{Versions{1, 1}, Versions{1, 2}, 1, true},
		{Versions{1, 2}, Versions{3, 4}, 2, false},
		{Versions{3, 4}, Versions{1, 2}, 2, false},
		{Versions{1, 2}, Versions{}, 0, false},
		{Versions{-5, 2}, Versions{-5, -1}, -1, false},
	} {
		if v, ok := c.a.choose(c.b); ok != c.ok || ok && v != c.version {
			t.Errorf("%v and %v: %d, %v", c.a, c.b, v, ok)
		}
	}
	if data, err := json.Marshal(hello{}); err != nil || !strings.Contains(string(data), `"oldest"`) {
		t.Errorf("%s, %v", data, err)
	}
}
