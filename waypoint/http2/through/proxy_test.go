package through

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// echo is a backend of net/http that says what it got, in a way that the request chooses.
func echo(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("early") != "" { // without reading what comes
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if q.Get("hints") != "" {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil || q.Get("abort") != "" {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	h.Set("X-Got", fmt.Sprintf("%s %s %s %d %x %s", r.Method, r.RequestURI, r.Host, n, sum.Sum(nil), r.Trailer.Get("X-Sum")))
	h.Set("X-Fields", fmt.Sprintf("%s|%s|%s|%s", r.Header.Get("X-Random"), r.Header.Get("Cookie"), r.Header.Get("Te"), r.Header.Get("Connection")))
	size, _ := strconv.Atoi(q.Get("size"))
	if q.Get("length") != "" {
		h.Set("Content-Length", strconv.Itoa(size))
	} else {
		h.Set("Trailer", "X-End")
	}
	code, _ := strconv.Atoi(q.Get("code"))
	w.WriteHeader(code)
	if code == 204 || code == 304 {
		return
	}
	for left := size; left > 0; {
		k := min(left, 1+rand.IntN(20_000))
		if _, err := w.Write(bytes.Repeat([]byte{'b'}, k)); err != nil {
			return
		}
		left -= k
	}
	h.Set("X-End", "end")
}

func protocols(two bool) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(!two)
	p.SetUnencryptedHTTP2(two)
	return p
}

// backendOf runs net/http's server, which is x/net's in HTTP/2.
func backendOf(t testing.TB, two bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(echo), Protocols: protocols(two)}
	var all sync.WaitGroup
	all.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		_ = s.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// pieces is a body that comes in pieces, and ends with a trailer.
type pieces struct {
	left    int
	trailer http.Header
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.left == 0 {
		if p.trailer != nil {
			p.trailer.Set("X-Sum", "sum")
		}
		return 0, io.EOF
	}
	n := min(len(b), p.left, 1+rand.IntN(30_000))
	for i := range b[:n] {
		b[i] = 'a'
	}
	p.left -= n
	return n, nil
}

// ask makes a random request through the proxy, and checks all of what comes back.
func ask(c *http.Client, address string, random *rand.Rand) error {
	method := []string{"GET", "POST", "PUT", "HEAD", "DELETE"}[random.IntN(5)]
	size, code := []int{0, 1, 100, 70_000, 300_000}[random.IntN(5)], []int{200, 200, 200, 204, 304, 404, 500}[random.IntN(7)]
	uri := fmt.Sprintf("/%d?size=%d&code=%d", random.Uint32(), size, code)
	early, abort := random.IntN(12) == 0, random.IntN(12) == 0
	// x/net's client takes a 304 with a Content-Length for one that is cut short.
	for name, on := range map[string]bool{"length": random.IntN(2) == 0 && code != 304, "early": early, "abort": abort && !early, "hints": random.IntN(4) == 0} {
		if on {
			uri += "&" + name + "=1"
		}
	}
	var in *pieces
	sent, trailer := 0, ""
	q, err := http.NewRequest(method, "http://"+address+uri, nil)
	if err != nil {
		return err
	}
	if method == "POST" || method == "PUT" {
		sent = []int{0, 1, 1000, 100_000, 400_000}[random.IntN(5)]
		in = &pieces{left: sent}
		q.Body = io.NopCloser(in)
		// x/net's server ends a connection on which trailers come for a stream that it has reset meanwhile.
		if q.ContentLength = -1; random.IntN(2) == 0 {
			q.ContentLength = int64(sent)
		} else if !early && !abort {
			q.Trailer = http.Header{"X-Sum": nil}
			in.trailer, trailer = q.Trailer, "sum"
		}
		if sent == 0 && q.ContentLength == 0 {
			q.Body = http.NoBody
		}
	}
	fields := strconv.FormatUint(uint64(random.Uint32()), 10)
	q.Header.Set("X-Random", fields)
	q.Header.Add("Cookie", "a=1; b=2")
	a, err := c.Do(q)
	if early || abort {
		if err == nil {
			_, _ = io.Copy(io.Discard, a.Body)
			err = a.Body.Close()
			if early && a.StatusCode != 403 || !early && a.StatusCode != 502 {
				return fmt.Errorf("%s %s: %s", method, uri, a.Status)
			}
		}
		if err != nil && early { // a client may see a body that it could not send
			return nil
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, uri, err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, uri, err)
	}
	want := size
	if method == "HEAD" || code == 204 || code == 304 {
		want = 0
	}
	sum := sha256.Sum256(bytes.Repeat([]byte{'a'}, sent))
	got := strings.TrimSpace(fmt.Sprintf("%s %s %s %d %x %s", method, uri, address, sent, sum, trailer))
	switch {
	case a.StatusCode != code || len(body) != want:
		return fmt.Errorf("%s %s: %s %s with %d bytes", method, uri, a.Status, a.Header.Get("X-Heddle-Reason"), len(body))
	case strings.TrimSpace(a.Header.Get("X-Got")) != got:
		return fmt.Errorf("the backend has got %q\nwant %q", a.Header.Get("X-Got"), got)
	case a.Header.Get("X-Fields") != fields+"|a=1; b=2||":
		return fmt.Errorf("fields %q", a.Header.Get("X-Fields"))
	case want > 0 && !strings.Contains(uri, "length=") && a.Trailer.Get("X-End") != "end":
		return fmt.Errorf("%s %s: trailers %v", method, uri, a.Trailer)
	}
	return nil
}

// TestThroughSockets: net/http's clients and servers of both versions speak to each other through the engines, over
// sockets that are read in pieces of random sizes, many requests at once.
func TestThroughSockets(t *testing.T) {
	for _, c := range []struct{ client, backend bool }{{true, true}, {true, false}, {false, true}} {
		for _, largest := range []int{50, 16 << 10} {
			t.Run(fmt.Sprintf("client 2 %v, backend 2 %v, %d", c.client, c.backend, largest), func(t *testing.T) {
				o := newOwner(backendOf(t, c.backend), c.backend, largest)
				address := o.serve(t)
				transport := &http.Transport{Protocols: protocols(c.client)}
				client := &http.Client{Transport: transport, Timeout: time.Minute}
				defer transport.CloseIdleConnections()
				requests := 150
				if largest < 100 {
					requests = 25
				}
				var all sync.WaitGroup
				errs := make(chan error, requests)
				for w := range 10 {
					all.Go(func() {
						random := rand.New(rand.NewPCG(uint64(w), uint64(largest)))
						for range requests / 10 {
							errs <- ask(client, address, random)
						}
					})
				}
				all.Wait()
				close(errs)
				for err := range errs {
					if err != nil {
						t.Error(err)
					}
				}
				o.mu.Lock()
				defer o.mu.Unlock()
				for _, err := range o.failed {
					t.Error(err)
				}
			})
		}
	}
}

// TestCancelled: a client that goes away takes its request from the backend, and nothing else.
func TestCancelled(t *testing.T) {
	o := newOwner(backendOf(t, true), true, 16<<10)
	address := o.serve(t)
	transport := &http.Transport{Protocols: protocols(true)}
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	defer transport.CloseIdleConnections()
	for i := range 30 {
		ctx, cancel := context.WithCancel(context.Background())
		q, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s/?size=10000000&code=200", address), nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := client.Do(q)
		if err != nil {
			t.Fatal(i, err)
		}
		cancel()
		if _, err := io.ReadAll(a.Body); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = a.Body.Close()
		if err := ask(client, address, rand.New(rand.NewPCG(uint64(i), 7))); err != nil {
			t.Error(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		left := o.conn.Streams()
		o.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are left at the backend", left)
		}
	}
}
