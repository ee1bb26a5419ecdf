package http1_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// message is what a reader makes of one message, in a form that two readers can
// be compared by.
type message struct {
	Start    string // method, target and host, or status
	Fields   string // those that are nobody's but the ends', by name, in their order
	Body     string
	Trailers string
	Close    bool
}

func (m message) String() string {
	return fmt.Sprintf("%q fields %s body %q trailers %s close %v", m.Start, m.Fields, m.Body, m.Trailers, m.Close)
}

// owned are the fields that each hop writes anew, and that net/http takes out or moves.
func owned() []string {
	return []string{"Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Upgrade", "Http2-Settings", "Expect",
		"X-Heddle-Reason", "Trailer", "Sec-Websocket-Key", "Sec-Websocket-Accept"}
}

func fieldText(h http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if name == "Cache-Control" && h["Pragma"] != nil {
			continue // net/http makes one of "Pragma: no-cache"
		}
		if !slices.Contains(owned(), name) && len(h[name]) > 0 {
			fmt.Fprintf(&b, "%s=%q;", name, h[name])
		}
	}
	return b.String()
}

func fieldsOf(fields []http1.Field) http.Header {
	h := http.Header{}
	for _, f := range fields {
		name := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		h[name] = append(h[name], string(f.Value))
	}
	return h
}

// ours reads whole messages; asked is nil for requests. Piece says how large the
// next piece is.
func ours(raw []byte, asked []http1.Asked, piece func() int) (all []message, at int, err error) {
	return read(raw, asked, piece, false, func(h *http1.Head) message {
		m := message{Start: fmt.Sprint(h.Status), Fields: fieldText(fieldsOf(h.Fields)), Close: h.Close}
		if asked == nil {
			m.Start = fmt.Sprintf("%s %s %s", h.Method, h.Target, h.Host)
		}
		return m
	})
}

// toForward is what is to come to a backend of each request.
func toForward(raw []byte) []message {
	all, _, _ := read(raw, nil, func() int { return len(raw) }, true, func(h *http1.Head) message {
		path := h.Path
		if len(path) == 0 {
			path = h.Host
		}
		return message{Start: fmt.Sprintf("%s %s %s", h.Method, path, h.Host), Fields: fieldText(fieldsOf(kept(h, h.Fields)))}
	})
	return all
}

// kept are the fields that are not about the connection.
func kept(h *http1.Head, fields []http1.Field) []http1.Field {
	return slices.DeleteFunc(slices.Clone(fields), func(f http1.Field) bool { return h.Hop(&f) })
}

func read(raw []byte, asked []http1.Asked, piece func() int, forward bool, of func(*http1.Head) message) (all []message, at int, err error) {
	p := http1.NewRequests(http1.Defaults())
	if asked != nil {
		p = http1.NewResponses(http1.Defaults())
		p.Ask(&asked[0])
	}
	var m message
	for len(raw) > 0 {
		n := min(max(1, piece()), len(raw))
		in := raw[:n:n]
		raw = raw[n:]
		for {
			e, data, n, err := p.Next(in)
			if err != nil {
				return all, at, err
			}
			at += n
			in = in[n:]
			switch e {
			case http1.HeadRead:
				if m = of(&p.Head); p.Head.Interim() {
					all = append(all, m)
				}
			case http1.Data:
				m.Body += string(data)
			case http1.End:
				if m.Trailers = fieldText(fieldsOf(p.Trailers)); forward {
					m.Trailers = fieldText(fieldsOf(kept(&p.Head, p.Trailers)))
				}
				all = append(all, m)
				if len(asked) > 1 {
					asked = asked[1:]
					p.Ask(&asked[0])
				}
			}
			if e == http1.More {
				break
			}
		}
	}
	if asked != nil {
		if e, _ := p.EOF(); e == http1.End {
			all = append(all, m)
		}
	}
	return all, at, nil
}

// theirs reads requests with net/http.
func theirs(raw []byte) (all []message, err error) {
	r := bufio.NewReader(bytes.NewReader(raw))
	for {
		if skipped, _ := r.Peek(2); string(skipped) == "\r\n" && len(raw) > 2 {
			_, _ = r.Discard(2) // net/http's server does not, and RFC 9112 section 2.2 asks for it
		}
		if _, err := r.Peek(1); err != nil {
			return all, nil
		}
		q, err := http.ReadRequest(r)
		if err != nil {
			return all, err
		}
		m := message{Start: fmt.Sprintf("%s %s %s", q.Method, q.RequestURI, q.Host), Fields: fieldText(q.Header), Close: q.Close}
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return all, err
		}
		m.Body, m.Trailers = string(body), fieldText(q.Trailer)
		all = append(all, m)
	}
}

// connectionLine is one of a head: net/http keeps no Connection that says close.
var connectionLine = regexp.MustCompile(`(?im)^connection:([^\r]*)`)

// theirResponses reads responses with net/http; if they have been forwarded, without what
// Connection names.
func theirResponses(raw []byte, methods []string, forwarded bool) (all []message, err error) {
	from := bytes.NewReader(raw)
	r := bufio.NewReader(from)
	for {
		if _, err := r.Peek(1); err != nil {
			return all, nil
		}
		head, _, _ := bytes.Cut(raw[len(raw)-from.Len()-r.Buffered():], []byte("\r\n\r\n"))
		method := http.MethodGet
		if len(methods) > 0 {
			method = methods[0]
		}
		a, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return all, err
		}
		body, err := io.ReadAll(a.Body)
		if err != nil {
			return all, err
		}
		for _, list := range connectionLine.FindAllSubmatch(head, -1) {
			for name := range strings.SplitSeq(string(list[1]), ",") {
				if name = strings.TrimSpace(name); forwarded {
					a.Header.Del(name)
					a.Trailer.Del(name)
				}
			}
		}
		m := message{Start: fmt.Sprint(a.StatusCode), Fields: fieldText(a.Header), Close: a.Close}
		m.Body, m.Trailers = string(body), fieldText(a.Trailer)
		if all = append(all, m); a.StatusCode >= 200 && len(methods) > 0 {
			methods = methods[1:]
		}
	}
}

// writer writes messages that are good, in as many ways as there are.
type writer struct {
	*rand.Rand
	bytes.Buffer
}

func (w *writer) one(of ...string) string { return of[w.IntN(len(of))] }

func (w *writer) text(most int) string {
	b := make([]byte, w.IntN(most+1))
	for i := range b {
		b[i] = byte(w.Uint32())
	}
	return string(b)
}

func (w *writer) fields() {
	for range w.IntN(8) {
		fmt.Fprintf(w, "%s:%s%s%s\r\n", w.one("X-A", "x-b", "X-Long-Name_With.Odd!Bytes", "Accept", "Cookie", "User-Agent"), w.one("", " ", "\t  "),
			w.one("", "a", "a, b; c=\"d e\"", "caf\xe9", "x:y", strings.Repeat("long ", 60)+"x"), w.one("", " \t"))
	}
}

// body writes the framing fields and the body.
func (w *writer) body(requests bool) {
	switch w.IntN(4) {
	case 0:
		if !requests {
			w.WriteString("Content-Length: 0\r\n")
		}
		w.WriteString("\r\n")
	case 1:
		body := w.text(300)
		fmt.Fprintf(w, "%s: %d\r\n", w.one("Content-Length", "content-length", "CONTENT-LENGTH"), len(body))
		w.fields()
		w.WriteString("\r\n" + body)
	default:
		trailers := w.IntN(2) == 0
		if trailers {
			w.WriteString("Trailer: X-T1, X-T2\r\n" + w.one("", "Connection: X-T1\r\n"))
		}
		fmt.Fprintf(w, "Transfer-Encoding: %s\r\n", w.one("chunked", "Chunked", " CHUNKED "))
		w.fields()
		w.WriteString("\r\n")
		for range w.IntN(6) {
			if chunk := w.text(100); chunk != "" {
				fmt.Fprintf(w, w.one("%x", "%X", "000%x")+"%s\r\n%s\r\n", len(chunk), w.one("", "", ";a", ";a=b", "; a = \"b;c\\\"\""), chunk)
			}
		}
		w.WriteString(w.one("0", "0000", "0;last") + "\r\n")
		if trailers {
			fmt.Fprintf(w, "X-T1: %s\r\nx-t2:\r\n", w.one("", "sum"))
		}
		w.WriteString("\r\n")
	}
}

func (w *writer) request() {
	if w.IntN(8) == 0 {
		w.WriteString("\r\n")
	}
	host := w.one("h", "h.example:80", "[::1]", "[2001:db8::1]:8080", "Under_Score.example.")
	target := w.one("/", "/a/b?c=d&e=%20", "//x", "/a%2fb;c=d", "/?|^{}", "http://"+host+"/abs?q", "http://"+host)
	method := w.one("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW", "PATCH")
	if method == "OPTIONS" && w.IntN(2) == 0 {
		target = "*"
	}
	fmt.Fprintf(w, "%s %s HTTP/1.1\r\n", method, target)
	w.fields()
	fmt.Fprintf(w, "%s: %s\r\n", w.one("Host", "host", "HOST"), host)
	w.WriteString(w.one("", "", "Connection: keep-alive\r\n", "Connection: X-Gone, keep-alive\r\nX-Gone: 1\r\n", "Expect: 100-continue\r\n", "TE: trailers\r\n"))
	w.body(true)
}

// TestRequestsAgainstNetHTTP: good requests, pipelined, in every form: we read what net/http
// reads, and net/http reads what we have written of them as if it had read them itself.
func TestRequestsAgainstNetHTTP(t *testing.T) {
	for seed := range uint64(1500) {
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 9112))}
		for range 1 + w.IntN(4) {
			w.request()
		}
		raw := w.Bytes()
		want, err := theirs(raw)
		if err != nil {
			t.Fatalf("seed %d: net/http: %v\n%q", seed, err, raw)
		}
		got, _, err := ours(raw, nil, func() int { return 1 + w.IntN(len(raw)) })
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("seed %d: %v\nours   %q\ntheirs %q\n%q", seed, err, got, want, raw)
		}
		checkForwarded(t, raw, 1+w.IntN(len(raw)))
	}
}

// TestRequestsSplitAtEveryByte cuts good requests in two at every byte.
func TestRequestsSplitAtEveryByte(t *testing.T) {
	for seed := range uint64(10) {
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 1))}
		w.request()
		w.request()
		raw := w.Bytes()
		want, _, err := ours(raw, nil, func() int { return len(raw) })
		if err != nil || len(want) != 2 {
			t.Fatal(err)
		}
		for cut := 1; cut < len(raw); cut++ {
			pieces := []int{cut, len(raw)}
			got, _, err := ours(raw, nil, func() int { n := pieces[0]; pieces = pieces[1:]; return n })
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("seed %d cut at %d: %v\ngot  %q\nwant %q", seed, cut, err, got, want)
			}
		}
	}
}

// TestResponsesSplitAtEveryByte cuts good responses in two at every byte.
func TestResponsesSplitAtEveryByte(t *testing.T) {
	for seed := range uint64(10) {
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 2))}
		w.response("GET")
		raw, asked := w.Bytes(), []http1.Asked{{}}
		want, _, err := ours(raw, asked, func() int { return len(raw) })
		if err != nil || len(want) == 0 {
			t.Fatal(err)
		}
		for cut := 1; cut < len(raw); cut++ {
			pieces := []int{cut, len(raw)}
			got, _, err := ours(raw, asked, func() int { n := pieces[0]; pieces = pieces[1:]; return n })
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("seed %d cut at %d: %v\ngot  %q\nwant %q", seed, cut, err, got, want)
			}
		}
	}
}

// checkForwarded compares what we read with what net/http reads of what we write.
func checkForwarded(t testing.TB, raw []byte, piece int) {
	t.Helper()
	p := proxy(t, http1.Defaults())
	inPieces(raw, piece, p.send)
	want := toForward(raw)
	want = want[:min(len(want), p.requests)]
	got, err := theirs(p.backend)
	if errors.Is(err, io.ErrUnexpectedEOF) && (p.err != nil || !p.x.Done()) {
		err = nil // refused in its body, or not ended
	}
	if p.x.Tunnel() {
		return
	}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("net/http reads of what was forwarded: %v\n%q\nwe have read\n%q\nforwarded %q\nof %q", err, got, want, p.backend, raw)
	}
	again, at, err := ours(p.backend, nil, func() int { return len(p.backend) })
	if err != nil || at != len(p.backend) && p.err == nil || len(again) != len(got) {
		t.Fatalf("we read %d bytes of %d that we forwarded, %d messages of %d: %v\n%q", at, len(p.backend), len(again), len(got), err, p.backend)
	}
}

func (w *writer) response(method string) {
	for range w.IntN(3) {
		fmt.Fprintf(w, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
	}
	status := w.one("200 OK", "404 Not Found", "500 ", "204 No Content", "304 Not Modified", "299 caf\xe9")
	fmt.Fprintf(w, "HTTP/1.1 %s\r\n", status)
	w.fields()
	switch {
	case status[:3] == "204" || status[:3] == "304":
		w.WriteString("\r\n")
	case method == "HEAD":
		w.WriteString(w.one("Content-Length: 12\r\n\r\n", "\r\n"))
	default:
		w.body(false)
	}
}

// TestResponsesAgainstNetHTTP is the same for responses: as they are read, and as
// a client reads them behind us.
func TestResponsesAgainstNetHTTP(t *testing.T) {
	for seed := range uint64(1500) {
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 9110))}
		method := w.one("GET", "HEAD")
		w.response(method)
		raw := w.Bytes()
		if w.IntN(8) == 0 && method == "GET" {
			raw = []byte("HTTP/1.0 200 OK\r\nX-A: b\r\n\r\n" + w.text(200)) // to the end
		}
		want, err := theirResponses(raw, []string{method}, false)
		if err != nil {
			t.Fatalf("seed %d: net/http: %v\n%q", seed, err, raw)
		}
		asked := []http1.Asked{{Head: method == "HEAD"}}
		got, at, err := ours(raw, asked, func() int { return 1 + w.IntN(len(raw)) })
		if err != nil || at != len(raw) || !slices.Equal(ends(got), ends(want)) {
			t.Fatalf("seed %d: %v\nours   %q\ntheirs %q\n%q", seed, err, got, want, raw)
		}
		p := proxy(t, http1.Defaults())
		p.answer = nil
		p.send([]byte(method + " / HTTP/1.1\r\nHost: h\r\n\r\n"))
		inPieces(raw, 1+w.IntN(len(raw)), p.receive)
		if !p.x.Done() {
			p.receiveEOF()
		}
		want, _ = theirResponses(raw, []string{method}, true)
		behind, err := theirResponses(p.client, []string{method}, true)
		if p.err != nil || err != nil || !slices.Equal(ends(behind), ends(want)) {
			t.Fatalf("seed %d: %v, %v\nbehind us %q\ndirectly  %q\n%q", seed, p.err, err, behind, want, p.client)
		}
	}
}

// ends leaves out what is about a connection.
func ends(all []message) []message {
	all = slices.Clone(all)
	for i := range all {
		all[i].Close = false
	}
	return all
}
