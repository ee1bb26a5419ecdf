package serve_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// silence is for how long clients are silent here, longer than a waypoint waits for them.
const sniffFor, silence = 50 * time.Millisecond, 200 * time.Millisecond

func impatient(cfg *serve.Config) { cfg.Timeouts.Sniff = sniffFor }

// gossip is a server that takes anything for a request: it keeps all that it gets, and answers at each empty line. It
// greets whoever connects.
type gossip struct {
	sync.Mutex
	greeting string
	got      bytes.Buffer
	conns    int
}

func (g *gossip) serve(c net.Conn) {
	g.Lock()
	g.conns++
	g.Unlock()
	_, _ = io.WriteString(c, g.greeting)
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		g.Lock()
		g.got.Write(b[:n])
		whole := bytes.HasSuffix(g.got.Bytes(), []byte("\r\n\r\n"))
		g.Unlock()
		if err != nil {
			return
		}
		if whole {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}
}

func (g *gossip) text() string {
	g.Lock()
	defer g.Unlock()
	return g.got.String()
}

func (g *gossip) connected() bool {
	g.Lock()
	defer g.Unlock()
	return g.conns > 0
}

// unsaid is a waypoint of one service whose port says nothing of what is spoken there.
func unsaid(t *testing.T, greeting string, options ...option) (*world, *gossip) {
	t.Helper()
	g := &gossip{greeting: greeting}
	b := raw(t, "cart", cartAddr, g.serve)
	b.port = "web"
	return newWorld(t, []*backend{b}, append([]option{impatient}, options...)...), g
}

const forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Client-Cert: URI=spiffe://test.example/ns/shop/sa/admin\r\nForwarded: for=6.6.6.6\r\n"

// TestForged: at a port of which nobody says whether it is HTTP, no server of HTTP gets what a client says of itself,
// whenever and in whatever pieces it says it.
func TestForged(t *testing.T) {
	head := "Host: h\r\n" + forged + "\r\n"
	for _, c := range []struct {
		name   string
		pieces []string // of what the client says
		silent bool     // first, until the workload has its connection
		slow   bool     // each piece follows when the workload has the one before
		answer string   // of the waypoint; "" where the connection is reset
	}{
		{"at once", []string{"GET / HTTP/1.1\r\n" + head}, false, false, "HTTP/1.1 200"},
		{"after a silence", []string{"GET / HTTP/1.1\r\n" + head}, true, false, "HTTP/1.1 200"},
		{"a piece before the silence", []string{"GE", "T / HTTP/1.1\r\n" + head}, false, true, ""},
		{"in pieces", []string{"G", "ET /", " HTTP/1.1\r", "\n" + head}, true, false, "HTTP/1.1 200"},
		{"in slow pieces", []string{"GET /", " HT", "TP/1.1\r\n" + head}, true, true, ""},
		{"after an empty line", []string{"\r\nGET / HTTP/1.1\r\n" + head}, false, false, "HTTP/1.1 "},
		{"after many, silently", []string{"\r\n", "\r\n", "GET / HTTP/1.1\r\n" + head}, true, true, ""},
		{"in small letters", []string{"get / HTTP/1.1\r\n" + head}, true, false, "HTTP/1.1 "},
		{"in small letters at once", []string{"get / HTTP/1.1\r\n" + head}, false, false, "HTTP/1.1 "},
		{"with more spaces", []string{"GET  /  HTTP/1.1 \r\n" + head}, true, false, "HTTP/1.1 400"},
		{"by lone line feeds", []string{"POST /\nx HTTP/1.1\r\n" + head}, true, false, "HTTP/1.1 "},
		{"without a version", []string{"GET /\r\n" + head}, true, false, "HTTP/1.1 "},
		{"in a long line", []string{"GET /" + strings.Repeat("x", 20_000), " HTTP/1.1\r\n" + head}, true, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, g := unsaid(t, "", func(cfg *serve.Config) {
				if len(c.pieces) > 1 && !c.slow { // else they might not come in time
					cfg.Timeouts.Sniff = time.Second
				}
			})
			conn := w.dial()
			defer conn.Close()
			if c.silent {
				eventually(t, "it is passed on", g.connected)
			}
			sent := ""
			for i, piece := range c.pieces {
				if i > 0 && c.slow {
					eventually(t, "the workload has what came", func() bool { return g.text() == sent })
				} else if i > 0 {
					time.Sleep(time.Millisecond)
				}
				sent += piece
				_, _ = io.WriteString(conn, piece)
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			answer, err := bufio.NewReader(conn).ReadString('\n')
			if !strings.HasPrefix(answer, c.answer) || c.answer != "" && err != nil || errors.Is(err, errTimedOut(err)) {
				t.Errorf("the client got %q, %v; want %q", answer, err, c.answer)
			}
			time.Sleep(10 * time.Millisecond)
			if got := g.text(); strings.Contains(got, "6.6.6.6") || strings.Contains(got, "admin") {
				t.Errorf("the workload got %q", got)
			}
			if c.answer == "" {
				eventually(t, "it is counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "LateHTTP") == 1 })
			}
		})
	}
}

// errTimedOut is err itself when time has run out, else an error that it is not.
func errTimedOut(err error) error {
	if n, ok := err.(net.Error); ok && n.Timeout() {
		return err
	}
	return errors.New("another")
}

// TestSilentClient: a client of HTTP that is silent at first, as those are that connect ahead, is served as others are.
func TestSilentClient(t *testing.T) {
	b := serving(t, "cart", cartAddr, 1, echo)
	b.port = ""
	w := newWorld(t, []*backend{b}, impatient)
	conn := w.dial()
	defer conn.Close()
	time.Sleep(silence)
	in := bufio.NewReader(conn)
	for range 3 {
		_, _ = io.WriteString(conn, "GET /a HTTP/1.1\r\nHost: h\r\n"+forged+"\r\n")
		resp, _ := readResponse(t, in, "GET")
		if resp.StatusCode != 200 || resp.Header.Get("Got-X-Forwarded-For") != "10.1.2.3" || !strings.Contains(resp.Header.Get("Got-X-Forwarded-Client-Cert"), shopIdentity) {
			t.Fatalf("%d %v", resp.StatusCode, resp.Header)
		}
	}
	two := w.dial()
	defer two.Close()
	_ = two.SetDeadline(time.Now().Add(10 * time.Second))
	time.Sleep(silence)
	for _, piece := range []string{"PRI * HTTP/2.0\r\n\r\nS", "M\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"} {
		_, _ = io.WriteString(two, piece)
		time.Sleep(5 * time.Millisecond)
	}
	frame := make([]byte, 9)
	if _, err := io.ReadFull(two, frame); err != nil || frame[3] != 4 {
		t.Errorf("HTTP/2 is answered with %x, %v", frame, err)
	}
}

// TestServerOfHTTP2First: a server of HTTP/2 that does not wait for its client, as gRPC's in Go, makes nothing else of the
// connection.
func TestServerOfHTTP2First(t *testing.T) {
	w, g := unsaid(t, "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	conn := w.dial()
	defer conn.Close()
	time.Sleep(silence)
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n"+forged+"\r\n")
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if resp, _ := readResponse(t, bufio.NewReader(conn), "GET"); resp.StatusCode != 400 || resp.Header.Get("X-Heddle-Reason") != "host_missing" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if got := g.text(); got != "" {
		t.Errorf("the workload got %q", got)
	}
}

// TestLateHTTP: HTTP in place of an answer to what a server has said ends the connection, and the server gets nothing of it.
func TestLateHTTP(t *testing.T) {
	w, g := unsaid(t, "220 ready\r\n")
	conn := w.dial()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); line != "220 ready\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n"+forged+"\r\n")
	if b, err := io.ReadAll(in); len(b) > 0 || err == nil || errors.Is(err, errTimedOut(err)) {
		t.Errorf("the client got %q, %v", b, err)
	}
	if n := w.value("heddle_waypoint_refusals_total", "reason", "LateHTTP"); n != 1 {
		t.Errorf("it was counted %v times", n)
	}
	if got := g.text(); got != "" {
		t.Errorf("the workload got %q", got)
	}
}

// TestSMTP: mail goes through, whatever is in it: in SMTP the server speaks first, and its clients' first line is much as
// one of HTTP.
func TestSMTP(t *testing.T) {
	mails := make(chan string, 1)
	b := raw(t, "cart", cartAddr, func(c net.Conn) {
		in := bufio.NewReader(c)
		say := func(format string, args ...any) { _, _ = fmt.Fprintf(c, format+"\r\n", args...) }
		say("220 mail.example ESMTP")
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
			case "EHLO":
				say("250-mail.example\r\n250 8BITMIME")
			case "DATA":
				say("354 go on")
				var mail strings.Builder
				for line != ".\r\n" {
					if line, err = in.ReadString('\n'); err != nil {
						return
					}
					mail.WriteString(line)
				}
				mails <- mail.String()
				say("250 taken")
			case "QUIT":
				say("221 bye")
				return
			default:
				say("250 ok")
			}
		}
	})
	b.port = "mail"
	w := newWorld(t, []*backend{b}, impatient)
	c, err := smtp.NewClient(w.dial(), "mail.example")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const mail = "Subject: x\r\n\r\nGET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\n"
	out, err := io.WriteCloser(nil), errors.Join(c.Hello("client.example"), c.Mail("a@example.org"), c.Rcpt("b@example.org"))
	if err == nil {
		out, err = c.Data()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(out, mail)
	if err = errors.Join(err, out.Close(), c.Quit()); err != nil {
		t.Fatal(err)
	}
	if got := <-mails; got != mail+".\r\n" {
		t.Errorf("the mail is %q", got)
	}
}

// TestMySQL: what a client answers to a server's greeting is handed on at once, though no line ends in it.
func TestMySQL(t *testing.T) {
	const greeting = "\x4a\x00\x00\x00\x0a8.0.36\x00"
	// The length, the number of the packet, then capabilities (MySQL, "Protocol::HandshakeResponse41").
	const login, fine = "\x1f\x00\x00\x01\x85\xa6\xff\x01\x00\x00\x00\x01\x2d" + "GET / HTTP/1.1 root\x00\x00\x00", "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00"
	b := raw(t, "cart", cartAddr, func(c net.Conn) {
		_, _ = io.WriteString(c, greeting)
		got := make([]byte, len(login))
		if _, err := io.ReadFull(c, got); err == nil && string(got) == login {
			_, _ = io.WriteString(c, fine)
			_, _ = io.Copy(io.Discard, c)
		}
	})
	b.port = "db"
	const sniff = 2 * time.Second
	w := newWorld(t, []*backend{b}, func(cfg *serve.Config) { cfg.Timeouts.Sniff = sniff })
	conn := w.dial()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, len(greeting))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, _ = io.WriteString(conn, login)
	if _, err := io.ReadFull(conn, make([]byte, len(fine))); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took >= sniff {
		t.Errorf("it was held for %s", took)
	}
}

// TestHeldWord: a word without an end, to which the application answers, is held for a moment, and then handed on.
func TestHeldWord(t *testing.T) {
	b := raw(t, "cart", cartAddr, func(c net.Conn) {
		_, _ = io.WriteString(c, "?")
		_, _ = io.Copy(c, c)
	})
	b.port = ""
	w := newWorld(t, []*backend{b}, impatient)
	conn := w.dial()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	for _, word := range []string{"", "hello", "again", "and", strings.Repeat("more", 10_000)} {
		_, _ = io.WriteString(conn, word)
		if word == "" {
			word = "?"
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
			t.Fatalf("%.20q, %v; want %.20q", got, err, word)
		}
	}
}
