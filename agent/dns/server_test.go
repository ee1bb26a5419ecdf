package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// server is an upstream on loopback: script says what it answers, nil for nothing.
type server struct {
	t      *testing.T
	udp    *net.UDPConn
	tcp    net.Listener
	script atomic.Pointer[func(h dnsmessage.Header, q dnsmessage.Question, tcp bool) []byte]
	asked  atomic.Int32
	wg     sync.WaitGroup
}

type script = func(h dnsmessage.Header, q dnsmessage.Question, tcp bool) []byte

func newServer(t *testing.T, says script) *server {
	t.Helper()
	udp, tcp := samePort(t)
	s := &server{t: t, udp: udp, tcp: tcp}
	s.script.Store(&says)
	s.wg.Go(s.datagrams)
	s.wg.Go(s.streams)
	t.Cleanup(func() { udp.Close(); tcp.Close(); s.wg.Wait() })
	return s
}

// samePort listens on a port that is free for UDP and TCP.
func samePort(t *testing.T) (*net.UDPConn, net.Listener) {
	t.Helper()
	for tries := 0; ; tries++ {
		udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.Listen("tcp4", udp.LocalAddr().String())
		if err == nil {
			return udp, tcp
		}
		udp.Close()
		if tries == 20 {
			t.Fatal(err)
		}
	}
}

func (s *server) say(b []byte, tcp bool) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		s.t.Errorf("asked %x: %v", b, err)
		return nil
	}
	q, err := p.Question()
	if err != nil {
		s.t.Errorf("asked %x: %v", b, err)
		return nil
	}
	s.asked.Add(1)
	return (*s.script.Load())(h, q, tcp)
}

func (s *server) datagrams() {
	b := make([]byte, 4096)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		for rest := s.say(b[:n], false); len(rest) > 0; { // several answers, each with its length
			n := int(rest[0])<<8 | int(rest[1])
			s.udp.WriteToUDPAddrPort(rest[2:2+n], from)
			rest = rest[2+n:]
		}
	}
}

func (s *server) streams() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			for {
				b, err := readMessage(c)
				if err != nil {
					return
				}
				c.Write(s.say(b, true))
			}
		})
	}
}

// Sockets of a pod, which all lead to the server.
func (s *server) DialDNS(netip.AddrPort) (*net.UDPConn, error) {
	return net.DialUDP("udp4", nil, s.udp.LocalAddr().(*net.UDPAddr))
}

func (s *server) DialEgress(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", s.tcp.Addr().String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// says answers with addresses, or what else fill adds.
func says(h dnsmessage.Header, q dnsmessage.Question, fill func(*dnsmessage.Builder, dnsmessage.Name)) []byte {
	h.Response, h.RecursionAvailable = true, true
	b := dnsmessage.NewBuilder([]byte{0, 0}, h)
	b.EnableCompression()
	err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	if fill != nil {
		fill(&b, q.Name)
	}
	msg, err2 := b.Finish()
	if err = errors.Join(err, err2); err != nil {
		panic(err)
	}
	n := len(msg) - 2
	msg[0], msg[1] = byte(n>>8), byte(n)
	return msg
}

func withAddresses(ttl uint32, n int) func(*dnsmessage.Builder, dnsmessage.Name) {
	return func(b *dnsmessage.Builder, name dnsmessage.Name) {
		for i := range n {
			err := b.AResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}, dnsmessage.AResource{A: [4]byte{192, 0, byte(i >> 8), byte(i)}})
			if err != nil {
				panic(err)
			}
		}
	}
}

func withDenial(ttl uint32) func(*dnsmessage.Builder, dnsmessage.Name) {
	return func(b *dnsmessage.Builder, name dnsmessage.Name) {
		err := errors.Join(b.StartAuthorities(), b.SOAResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl},
			dnsmessage.SOAResource{NS: name, MBox: name, MinTTL: ttl}))
		if err != nil {
			panic(err)
		}
	}
}

func answers(ttl uint32, n int) script {
	return func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		return says(h, q, withAddresses(ttl, n))
	}
}

func silent(dnsmessage.Header, dnsmessage.Question, bool) []byte { return nil }

// client is a pod's end of Queries.
type client struct {
	t       *testing.T
	in, out chan []byte
	stop    chan struct{}
	once    sync.Once
	tcp     net.Listener
}

var asServer = netip.MustParseAddrPort("10.96.0.10:53")

func (c *client) Read(b []byte) (int, netip.AddrPort, netip.AddrPort, error) {
	select {
	case q := <-c.in:
		return copy(b, q), asServer, netip.MustParseAddrPort("10.1.0.2:999"), nil
	case <-c.stop:
		return 0, netip.AddrPort{}, netip.AddrPort{}, os.ErrDeadlineExceeded
	}
}

func (c *client) Reply(b []byte, from, _ netip.AddrPort) error {
	if from != asServer {
		c.t.Errorf("answered as from %s", from)
	}
	c.out <- b
	return nil
}

func (c *client) Stop() error  { c.once.Do(func() { close(c.stop) }); return nil }
func (c *client) Close() error { return nil }

// redirected is a listener whose connections were dialled to the server.
type redirected struct{ net.Listener }

func (r redirected) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	return toServer{c}, err
}

type toServer struct{ net.Conn }

func (toServer) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(asServer) }

// pod serves one pod with an upstream until the test ends.
func pod(t *testing.T, s *Server, up Sockets) *client {
	t.Helper()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, in: make(chan []byte), out: make(chan []byte, 64), stop: make(chan struct{}), tcp: tcp}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		s.Serve(ctx, Pod{Key: mesh.Key{Namespace: "shop", Name: "web"}, Queries: []Queries{c}, Listeners: []net.Listener{redirected{tcp}}, Sockets: up})
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c
}

func question4(t *testing.T, name string, size int, kind dnsmessage.Type) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 77, RecursionDesired: true})
	err := errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}))
	if size > 0 {
		var h dnsmessage.ResourceHeader
		err = errors.Join(err, h.SetEDNS0(size, 0, false), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	msg, err2 := b.Finish()
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return msg
}

// ask returns the answer as text: how, how many, how long.
func (c *client) ask(name string, size int, kind dnsmessage.Type, within time.Duration) string {
	c.t.Helper()
	c.in <- question4(c.t, name, size, kind)
	return c.answer(within)
}

func (c *client) answer(within time.Duration) string {
	c.t.Helper()
	select {
	case b := <-c.out:
		return describe(c.t, b)
	case <-time.After(within):
		return "nothing"
	}
}

func describe(t *testing.T, b []byte) string {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer %x: %v", b, err)
	}
	if m.ID != 77 || !m.Response {
		t.Errorf("header %+v", m.Header)
	}
	var words []string
	if m.Truncated {
		words = append(words, "truncated")
	}
	words = append(words, strings.TrimPrefix(m.RCode.String(), "RCode"), fmt.Sprint(len(m.Answers)))
	if len(m.Answers) > 0 {
		words = append(words, fmt.Sprintf("%ds", m.Answers[0].Header.TTL))
	}
	for _, r := range m.Additionals {
		for _, o := range r.Body.(*dnsmessage.OPTResource).Options {
			words = append(words, fmt.Sprintf("EDE %d", o.Data[1]))
		}
	}
	return strings.Join(words, " ")
}

func store(t *testing.T, settings mesh.Settings) *mesh.Store {
	t.Helper()
	settings.TrustDomain = spiffeid.RequireTrustDomainFromString("test.heddle.dev")
	key := func(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }
	view, err := mesh.NewView("1", settings, nil, []mesh.Service{
		{Key: key("db"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}},
		{Key: key("four"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.4")}},
		{Key: key("headless")},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := mesh.NewStore()
	s.Replace(view)
	return s
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestMeshNames(t *testing.T) {
	up := newServer(t, answers(30, 2))
	c := pod(t, New(Config{Store: store(t, mesh.Settings{})}), up)
	for _, q := range []struct {
		name  string
		kind  dnsmessage.Type
		want  string
		asked int32
	}{
		{"db.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 1 5s", 0},
		{"DB.Shop.SVC.cluster.LOCAL.", dnsmessage.TypeAAAA, "Success 1 5s", 0},
		{"four.shop.svc.cluster.local.", dnsmessage.TypeAAAA, "Success 0", 0},
		// Late rather than wrong: what the model does not say, the server does.
		{"four.shop.svc.cluster.local.", dnsmessage.TypeTXT, "Success 2 30s", 1},
		{"headless.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 2 30s", 2},
		{"web-0.headless.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 2 30s", 3},
		{"new.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 2 30s", 4},
		{"db.shop.svc.", dnsmessage.TypeA, "Success 2 30s", 5},
		{"example.com.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 2 30s", 6},
	} {
		want(t, q.name, c.ask(q.name, 0, q.kind, time.Second), q.want)
		if got := up.asked.Load(); got != q.asked {
			t.Errorf("%s: the server was asked %d times, want %d", q.name, got, q.asked)
		}
	}
	unsynced := pod(t, New(Config{Store: mesh.NewStore()}), up)
	want(t, "before there is a model", unsynced.ask("db.shop.svc.cluster.local.", 0, dnsmessage.TypeA, time.Second), "Success 2 30s")
}

func TestAskedOnce(t *testing.T) {
	release := make(chan struct{})
	up := newServer(t, func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		<-release
		return says(h, q, withAddresses(30, 1))
	})
	s := New(Config{Store: mesh.NewStore()})
	c := pod(t, s, up)
	for range 20 {
		c.in <- question4(t, "a.example.", 0, dnsmessage.TypeA)
	}
	close(release)
	for range 20 {
		want(t, "one of many", c.answer(time.Second), "Success 1 30s")
	}
	time.Sleep(1100 * time.Millisecond)
	want(t, "once more", c.ask("A.Example.", 0, dnsmessage.TypeA, time.Second), "Success 1 29s")
	if n := up.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	want(t, "a neighbour", pod(t, s, up).ask("a.example.", 0, dnsmessage.TypeA, time.Second), "Success 1 30s")
	if n := up.asked.Load(); n != 2 {
		t.Errorf("a neighbour was given what others had asked")
	}
}

func TestStale(t *testing.T) {
	up := newServer(t, answers(1, 1))
	c := pod(t, New(Config{Store: mesh.NewStore()}), up)
	c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second)
	denied := func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		h.RCode = dnsmessage.RCodeNameError
		return says(h, q, withDenial(1))
	}
	up.script.Store(&denied)
	for _, name := range []string{"no.example.", "new.shop.svc.cluster.local."} {
		want(t, name, c.ask(name, 1232, dnsmessage.TypeA, time.Second), "NameError 0")
	}
	none := script(silent)
	up.script.Store(&none)
	time.Sleep(1100 * time.Millisecond)
	begun := time.Now()
	want(t, "the server is silent", c.ask("a.example.", 1232, dnsmessage.TypeA, 3*time.Second), "Success 1 30s EDE 3")
	if took := time.Since(begun); took < patience/2 || took > patience+time.Second {
		t.Errorf("the stale answer took %s", took)
	}
	want(t, "a name that was not there", c.ask("no.example.", 1232, dnsmessage.TypeA, 3*time.Second), "NameError 0 EDE 19")
	want(t, "a service that may be there by now", c.ask("new.shop.svc.cluster.local.", 1232, dnsmessage.TypeA, 6*time.Second), "ServerFailure 0 EDE 22")
	begun = time.Now()
	want(t, "again", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Success 1 30s EDE 3")
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("known to be silent, and waited for %s", took)
	}
	fails := func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		h.RCode = dnsmessage.RCodeServerFailure
		return says(h, q, nil)
	}
	up.script.Store(&fails)
	time.Sleep(askAgain)
	want(t, "the server fails", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Success 1 30s EDE 3")
	want(t, "with nothing kept", c.ask("b.example.", 1232, dnsmessage.TypeA, time.Second), "ServerFailure 0")
	back := answers(20, 2)
	up.script.Store(&back)
	time.Sleep(askAgain)
	want(t, "the server is back", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Success 2 20s")
}

// TestStaleOfOneTime: an answer with a TTL of 0, as Consul gives, is asked for each time
// that its server answers.
func TestStaleOfOneTime(t *testing.T) {
	up := newServer(t, answers(0, 1))
	c := pod(t, New(Config{Store: mesh.NewStore()}), up)
	for i := range 3 {
		want(t, "the server answers", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Success 1 0s")
		if n := int(up.asked.Load()); n != i+1 {
			t.Errorf("asked %d times, the server was %d times", i+1, n)
		}
	}
	fails := func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		h.RCode = dnsmessage.RCodeServerFailure
		return says(h, q, nil)
	}
	up.script.Store(&fails)
	want(t, "the server fails", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Success 1 30s EDE 3")
	back := answers(0, 2)
	up.script.Store(&back)
	time.Sleep(askAgain)
	want(t, "the server is back", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Success 2 0s")
}

// TestStaleSearch: while the server is silent, what a resolver asks on the way to a
// name is answered as before, and not what may have been made since.
func TestStaleSearch(t *testing.T) {
	up := newServer(t, func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		switch {
		case strings.HasSuffix(q.Name.String(), "com.svc.cluster.local."), strings.HasPrefix(q.Name.String(), "new."):
			h.RCode = dnsmessage.RCodeNameError
			return says(h, q, withDenial(1))
		case q.Type == dnsmessage.TypeAAAA || strings.HasPrefix(q.Name.String(), "none."):
			return says(h, q, withDenial(1))
		}
		return says(h, q, withAddresses(1, 1))
	})
	c := pod(t, New(Config{Store: store(t, mesh.Settings{})}), up)
	asked := []struct {
		name          string
		kind          dnsmessage.Type
		before, after string
	}{
		{"example.com.svc.cluster.local.", dnsmessage.TypeA, "NameError 0", "NameError 0 EDE 19"},
		{"headless.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 1 1s", "Success 1 30s EDE 3"},
		{"headless.shop.svc.cluster.local.", dnsmessage.TypeAAAA, "Success 0", "Success 0 EDE 3"},
		{"new.shop.svc.cluster.local.", dnsmessage.TypeA, "NameError 0", "ServerFailure 0 EDE 22"},
		{"none.shop.svc.cluster.local.", dnsmessage.TypeA, "Success 0", "ServerFailure 0 EDE 22"},
		{"none.shop.svc.cluster.local.", dnsmessage.TypeAAAA, "Success 0", "ServerFailure 0 EDE 22"},
	}
	for _, q := range asked {
		want(t, q.name, c.ask(q.name, 1232, q.kind, time.Second), q.before)
	}
	none := script(silent)
	up.script.Store(&none)
	time.Sleep(1100 * time.Millisecond)
	for _, q := range asked {
		within := patience + 500*time.Millisecond
		if strings.HasPrefix(q.after, "ServerFailure") {
			within = 6 * time.Second
		}
		want(t, q.name+q.kind.String(), c.ask(q.name, 1232, q.kind, within), q.after)
	}
}

func TestLargeAnswers(t *testing.T) {
	up := newServer(t, func(h dnsmessage.Header, q dnsmessage.Question, tcp bool) []byte {
		if !tcp {
			h.Truncated = true
			return says(h, q, nil)
		}
		return says(h, q, withAddresses(30, 200))
	})
	c := pod(t, New(Config{Store: mesh.NewStore()}), up)
	want(t, "a client that takes little", c.ask("a.example.", 0, dnsmessage.TypeA, time.Second), "truncated Success 0")
	want(t, "a client that takes much", c.ask("a.example.", 4096, dnsmessage.TypeA, time.Second), "Success 200 30s")
	want(t, "from the cache", c.ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "truncated Success 0")
	conn, err := net.Dial("tcp", c.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	names := []string{"a.example.", "b.example.", "c.example."}
	for _, name := range names {
		if err := writeMessage(conn, question4(t, name, 0, dnsmessage.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	for range names {
		b, err := readMessage(conn)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "over TCP", describe(t, b), "Success 200 30s")
	}
	if err := writeMessage(conn, append(question4(t, "a.example.", 0, dnsmessage.TypeA), 'x')); err != nil {
		t.Fatal(err)
	}
	if b, err := readMessage(conn); err != nil || describe(t, b) != "FormatError 0" {
		t.Errorf("malformed: %x, %v", b, err)
	}
}

// TestTransfer: the many messages of a zone transfer reach the client.
func TestTransfer(t *testing.T) {
	up := newServer(t, func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		return append(says(h, q, withAddresses(1, 3)), says(h, q, withAddresses(1, 4))...)
	})
	c := pod(t, New(Config{Store: mesh.NewStore()}), up)
	conn, err := net.Dial("tcp", c.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err := writeMessage(conn, question4(t, "zone.example.", 0, dnsmessage.TypeAXFR)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"Success 3 1s", "Success 4 1s"} {
		b, err := readMessage(conn)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "a message of it", describe(t, b), n)
	}
	conn.(*net.TCPConn).CloseWrite()
	if _, err := readMessage(conn); !errors.Is(err, io.EOF) {
		t.Errorf("its end: %v", err)
	}
}

// TestTransferEndsWithWhatLetItOut: what goes on for long ends when its pod is revoked.
func TestTransferEndsWithWhatLetItOut(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("test.heddle.dev")
	id, err := mesh.IdentityFor(td, "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	s := mesh.NewStore()
	revoked := func(ids ...spiffeid.ID) {
		t.Helper()
		view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td, RevokedIdentities: ids}, []mesh.Workload{{Key: mesh.Key{Namespace: "shop", Name: "web"}, ServiceAccount: "web",
			Identity: id, Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, Ready: true, Enrolled: true}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Replace(view)
	}
	revoked()
	c := pod(t, New(Config{Store: s}), newServer(t, answers(1, 3)))
	conn, err := net.Dial("tcp", c.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	again := func() (err error) {
		if err = writeMessage(conn, question4(t, "zone.example.", 0, dnsmessage.TypeAXFR)); err == nil {
			_, err = readMessage(conn)
		}
		return err
	}
	if err := errors.Join(again(), again()); err != nil {
		t.Fatal(err)
	}
	revoked(spiffeid.RequireFromString("spiffe://test.heddle.dev/ns/shop/sa/other"))
	if err := again(); err != nil {
		t.Errorf("ended, though it may ask: %v", err)
	}
	revoked(id)
	if _, err := readMessage(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("goes on, though its pod is revoked: %v", err)
	}
}

// TestForged: answers that are not to this query are passed over.
func TestForged(t *testing.T) {
	up := newServer(t, func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		wrongID, wrongName := h, q
		wrongID.ID++
		wrongName.Name = dnsmessage.MustNewName("other.example.")
		all := append(says(wrongID, q, withAddresses(30, 1)), says(h, wrongName, withAddresses(30, 2))...)
		return append(append(all, 0, 3, 'x', 'y', 'z'), says(h, q, withAddresses(30, 3))...)
	})
	c := pod(t, New(Config{Store: mesh.NewStore()}), up)
	want(t, "the answer", c.ask("a.example.", 0, dnsmessage.TypeA, time.Second), "Success 3 30s")
}

// TestBudget: a pod whose server is silent uses up what is its own, and nothing of
// its neighbour's.
func TestBudget(t *testing.T) {
	mute, up := newServer(t, silent), newServer(t, answers(30, 1))
	s := New(Config{Store: store(t, mesh.Settings{}), Limits: Limits{Asking: 2, Waiting: 4, Connections: 1}})
	c := pod(t, s, mute)
	for i := range 8 {
		c.in <- question4(t, fmt.Sprintf("%d.example.", i), 0, dnsmessage.TypeA)
	}
	want(t, "a neighbour", pod(t, s, up).ask("a.example.", 0, dnsmessage.TypeA, time.Second), "Success 1 30s")
	want(t, "what needs no server", c.ask("db.shop.svc.cluster.local.", 0, dnsmessage.TypeA, time.Second), "Success 1 5s")
	for range 2 {
		want(t, "what was asked", c.answer(6*time.Second), "ServerFailure 0")
	}
	want(t, "what was over", c.answer(100*time.Millisecond), "nothing")
	// One connection at a time.
	first, err := net.Dial("tcp", c.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if err := writeMessage(first, question4(t, "db.shop.svc.cluster.local.", 0, dnsmessage.TypeA)); err != nil {
		t.Fatal(err)
	}
	if b, err := readMessage(first); err != nil || describe(t, b) != "Success 1 5s" {
		t.Errorf("over TCP: %x, %v", b, err)
	}
	second, err := net.Dial("tcp", c.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	second.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := readMessage(second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one connection too many: %v", err)
	}
}

// TestRate: queries over the rate are dropped.
func TestRate(t *testing.T) {
	c := pod(t, New(Config{Store: store(t, mesh.Settings{}), Limits: Limits{Rate: 3}}), newServer(t, silent))
	for range 6 {
		c.in <- question4(t, "db.shop.svc.cluster.local.", 0, dnsmessage.TypeA)
	}
	for range 3 {
		want(t, "within", c.answer(time.Second), "Success 1 5s")
	}
	want(t, "over", c.answer(100*time.Millisecond), "nothing")
}

// TestEgress: where a namespace must not send anything, it must not send queries.
func TestEgress(t *testing.T) {
	view := store(t, mesh.Settings{Egress: mesh.EgressDeny, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}).View()
	for server, may := range map[string]bool{
		"8.8.8.8:53": false, "10.96.0.10:15053": false, "127.0.0.1:15053": false, "10.96.0.10:53": true, "169.254.20.10:53": true, "[fe80::1]:53": true, "[2001:4860:4860::8888]:53": false,
	} {
		if got := mayAsk(view, mesh.Key{}, netip.MustParseAddrPort(server)); got != may {
			t.Errorf("%s: %v", server, got)
		}
	}
	s := store(t, mesh.Settings{Egress: mesh.EgressDeny})
	up := newServer(t, answers(1, 1))
	want(t, "denied", pod(t, New(Config{Store: s}), up).ask("a.example.", 1232, dnsmessage.TypeA, time.Second), "Refused 0 EDE 18")
	if up.asked.Load() != 0 {
		t.Error("asked all the same")
	}
}

// TestEgressToAnExternalAddress: a service takes TCP connections to its external addresses,
// ready or not; queries leave for whoever has the address, and so may not.
func TestEgressToAnExternalAddress(t *testing.T) {
	id, err := mesh.IdentityFor(spiffeid.RequireTrustDomainFromString("test.heddle.dev"), "shop", "w")
	if err != nil {
		t.Fatal(err)
	}
	for what, workloads := range map[string][]mesh.Workload{"nobody is ready": nil, "ready": {{Key: mesh.Key{Namespace: "shop", Name: "w"}, ServiceAccount: "w", Identity: id, Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.3")}, Ready: true}}} {
		settings := mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.heddle.dev"), Egress: mesh.EgressAllow, EgressNamespaces: map[string]mesh.EgressMode{"bank": mesh.EgressDeny},
			ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
		view, err := mesh.NewView("1", settings, workloads, []mesh.Service{{Key: mesh.Key{Namespace: "shop", Name: "dns"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			External: []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("10.9.9.9")}, Ports: []mesh.ServicePort{{Port: 53, TargetPort: 53}}, Endpoints: []mesh.Key{{Namespace: "shop", Name: "w"}}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			of, server string
			may        bool
		}{{"bank", "8.8.8.8:53", false}, {"bank", "[::ffff:8.8.8.8]:53", false}, {"shop", "8.8.8.8:53", true}, {"bank", "10.9.9.9:53", true}, {"bank", "10.96.0.10:53", true}, {"bank", "10.1.0.3:53", true}} {
			if got := mayAsk(view, mesh.Key{Namespace: c.of, Name: "web"}, netip.MustParseAddrPort(c.server)); got != c.may {
				t.Errorf("%s: %s of %s: %v", what, c.server, c.of, got)
			}
		}
	}
}

// TestRevokedAsksNobody: an identity that is revoked reaches nobody, by queries neither: no
// server outside, none in the cluster, whether it is in the mesh or not, and none of the link.
func TestRevokedAsksNobody(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("test.heddle.dev")
	var workloads []mesh.Workload
	for i, account := range []string{"good", "stolen"} {
		id, err := mesh.IdentityFor(td, "shop", account)
		if err != nil {
			t.Fatal(err)
		}
		workloads = append(workloads, mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: account}, ServiceAccount: account, Identity: id, Node: "n1", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})}, Ready: true, Enrolled: true})
	}
	plain, err := mesh.IdentityFor(td, "kube-system", "dns")
	if err != nil {
		t.Fatal(err)
	}
	workloads = append(workloads, mesh.Workload{Key: mesh.Key{Namespace: "kube-system", Name: "dns"}, ServiceAccount: "dns", Identity: plain, Node: "n2", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}, Ready: true})
	services := []mesh.Service{{Key: workloads[2].Key, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []mesh.ServicePort{{Port: 53, TargetPort: 53}}, Endpoints: []mesh.Key{workloads[2].Key}}}
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, RevokedIdentities: []spiffeid.ID{workloads[1].Identity}}, workloads, services, nil)
	if err != nil {
		t.Fatal(err)
	}
	for account, may := range map[string]bool{"good": true, "stolen": false} {
		key := mesh.Key{Namespace: "shop", Name: account}
		for _, server := range []string{"8.8.8.8:53", "10.96.0.10:53", "10.1.0.9:53", "10.1.0.0:53", "10.7.7.7:53", "169.254.20.10:53", "[fe80::1]:53"} {
			if got := mayAsk(view, key, netip.MustParseAddrPort(server)); got != may {
				t.Errorf("%s may ask %s: %v", account, server, got)
			}
		}
		if why, _ := whyNot(view, key); (why == mesh.ReasonIdentityRevoked) == may {
			t.Errorf("%s is told %v", account, why)
		}
	}
}

// TestServerGone: nobody listens, which is known at once.
func TestServerGone(t *testing.T) {
	up := newServer(t, silent)
	up.udp.Close()
	up.tcp.Close()
	begun := time.Now()
	want(t, "refused", pod(t, New(Config{Store: mesh.NewStore()}), up).ask("a.example.", 0, dnsmessage.TypeA, 5*time.Second), "ServerFailure 0")
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestCacheBounds: the cache keeps what was used last, within its bytes.
func TestCacheBounds(t *testing.T) {
	limits := DefaultLimits()
	limits.CacheBytes = 16 << 10
	c := newCache(limits)
	now := time.Now()
	of := func(i int) question { return question{name: fmt.Sprint(i), server: asServer} }
	for i := range 1000 {
		q, err := wire.ParseQuery(question4(t, "a.example.", 0, dnsmessage.TypeA))
		if err != nil {
			t.Fatal(err)
		}
		r, err := wire.ParseResponse(answers(30, 4)(dnsmessage.Header{ID: 1}, dnsmessage.Question{Name: dnsmessage.MustNewName("a.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}, false)[2:], q, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.put(of(i), r, now)
		if _, ok := c.get(of(0), now); !ok {
			t.Fatalf("what is used is gone after %d", i)
		}
	}
	if c.bytes > limits.CacheBytes || len(c.entries) < 10 || len(c.entries) != c.order.Len() {
		t.Errorf("%d bytes in %d entries", c.bytes, len(c.entries))
	}
	if _, ok := c.get(of(999), now.Add(limits.Stale+31*time.Second)); ok {
		t.Error("it outlives its time as stale")
	}
	if k, ok := c.get(of(0), now.Add(time.Hour)); !ok || k.fresh {
		t.Errorf("an hour later: %+v, %v", k, ok)
	}
}

// TestDocumentedMetrics compares docs/metrics.md with what is registered.
func TestDocumentedMetrics(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(heddle_dns_[a-z_]+)` \\| ([a-z]+) \\| ([a-z, ]*) *\\|").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2] + " " + strings.ReplaceAll(strings.TrimSpace(row[3]), " ", "")
	}
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]string{}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
			if v := l.GetValue(); !strings.Contains(string(page), "`"+v+"`") {
				t.Errorf("docs/metrics.md lacks the value %s of %s", v, l.GetName())
			}
		}
		registered[f.GetName()] = strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ",")
	}
	if d := cmp.Diff(documented, registered); d != "" {
		t.Errorf("docs/metrics.md (-) and what is registered (+):\n%s", d)
	}
}
