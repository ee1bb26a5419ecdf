//lint:file-ignore SA1019 net/http has no connection that is asked by itself, and sends again what it may

package serve_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
)

// once is a client that sends each request once, over a connection that it keeps until the other end has said that it
// ends: by an answer's "Connection: close", or a GOAWAY. net/http sends a request again, and says nothing of that.
type once interface {
	// ask makes a request. Fresh says that nothing was answered on its connection before.
	ask(method, body string) (resp *http.Response, got string, fresh bool, err error)
	close()
}

// once1 is one that speaks HTTP/1.1. It is one goroutine's.
type once1 struct {
	dial func() (net.Conn, error)
	conn net.Conn
	in   *bufio.Reader
}

func (o *once1) ask(method, body string) (*http.Response, string, bool, error) {
	fresh := o.conn == nil
	if fresh {
		conn, err := o.dial()
		if err != nil {
			return nil, "", true, err
		}
		o.conn, o.in = conn, bufio.NewReader(conn)
	}
	resp, got, err := exchange1(o.conn, o.in, method, body)
	if err != nil || resp.Close {
		o.close()
	}
	return resp, got, fresh, err
}

// exchange1 sends a request of HTTP/1.1, and reads its answer.
func exchange1(c net.Conn, in *bufio.Reader, method, body string) (*http.Response, string, error) {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "%s /once HTTP/1.1\r\nHost: cart.shop\r\nContent-Length: %d\r\n\r\n%s", method, len(body), body); err != nil {
		return nil, "", fmt.Errorf("write: %w", err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return nil, "", fmt.Errorf("read head: %w", err)
	}
	got, err := io.ReadAll(resp.Body)
	return resp, string(got), err
}

func (o *once1) close() {
	if o.conn != nil {
		_ = o.conn.Close()
		o.conn = nil
	}
}

// once2 is one that speaks HTTP/2. Several goroutines may share it.
type once2 struct {
	dial func() (net.Conn, error)
	mu   sync.Mutex
	conn *conn2
	all  []*conn2
}

type conn2 struct {
	*xhttp2.ClientConn
	answered atomic.Bool
}

// reserved returns a connection that takes a request more.
func (o *once2) reserved() (*conn2, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn != nil && o.conn.ReserveNewRequest() {
		return o.conn, nil
	}
	raw, err := o.dial()
	if err != nil {
		return nil, err
	}
	c, err := (&xhttp2.Transport{AllowHTTP: true, DisableCompression: true}).NewClientConn(raw)
	if err != nil {
		return nil, err
	}
	o.conn = &conn2{ClientConn: c}
	o.all = append(o.all, o.conn)
	if !c.ReserveNewRequest() {
		return nil, errors.New("a new connection takes no request")
	}
	return o.conn, nil
}

func (o *once2) ask(method, body string) (*http.Response, string, bool, error) {
	for {
		c, err := o.reserved()
		if err != nil {
			return nil, "", true, err
		}
		fresh := !c.answered.Load()
		req, err := http.NewRequest(method, "http://cart.shop/once", strings.NewReader(body))
		if err != nil {
			return nil, "", fresh, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		resp, err := c.RoundTrip(req.WithContext(ctx)) // a Transport would send it again
		if err != nil && err.Error() == "http2: client conn not usable" {
			cancel()
			continue // the GOAWAY came before anything was sent
		}
		if err != nil {
			cancel()
			return nil, "", fresh, err
		}
		got, err := io.ReadAll(resp.Body)
		cancel()
		c.answered.Store(true)
		return resp, string(got), fresh, err
	}
}

func (o *once2) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.all {
		_ = c.Close()
	}
}

// TestOnce: a client that sends each request once loses one when its connection ends under it; else what none loses would
// say nothing.
func TestOnce(t *testing.T) {
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			type ends struct{}
			protocols := new(http.Protocols)
			protocols.SetHTTP1(true)
			protocols.SetUnencryptedHTTP2(true)
			var asked atomic.Int32
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 2 {
					_ = r.Context().Value(ends{}).(net.Conn).Close()
				}
				echo(out, r)
			}))
			s.Config.Protocols, s.Config.ConnContext = protocols, func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, ends{}, c) }
			s.Start()
			t.Cleanup(s.Close)
			dials := 0
			dial := func() (net.Conn, error) { dials++; return net.Dial("tcp", s.Listener.Addr().String()) }
			var c once = &once1{dial: dial}
			if two {
				c = &once2{dial: dial}
			}
			t.Cleanup(c.close)
			if resp, got, fresh, err := c.ask("POST", "body"); err != nil || resp.StatusCode != 200 || got != "POST 4" || !fresh {
				t.Fatalf("%v %q %v", resp, got, err)
			}
			if resp, got, fresh, err := c.ask("POST", "body"); err == nil || fresh || dials != 1 || asked.Load() != 2 {
				t.Errorf("on a connection that ended it is answered: %v %q %v; %d connections", resp, got, err, dials)
			}
		})
	}
}

// once returns a client that sends each request once.
func (w *world) once(two bool, dial func() (net.Conn, error)) (c once) {
	if c = (&once1{dial: dial}); two {
		c = &once2{dial: dial}
	}
	w.t.Cleanup(c.close)
	return c
}
