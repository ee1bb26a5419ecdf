//lint:file-ignore SA1019 net/http refuses the field :protocol

package serve_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// program runs a workload of the interop module, with GODEBUG set.
func program(t *testing.T, command, debug string) *backend {
	t.Helper()
	binary := t.TempDir() + "/interop"
	testenv.Build(t, "interop", binary, ".")
	addr := workloadAddress()
	at := overLoopback(netip.AddrPortFrom(addr, uint16(testenv.FreePort(t))))
	ctx, stop := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, binary, command, at.String())
	server.Env = append(server.Environ(), "GODEBUG="+debug)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { _ = server.Wait() })
	t.Cleanup(func() { stop(); all.Wait() })
	eventually(t, "the server listens", func() bool {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return &backend{name: "cart", address: cartAddr, port: "h2c", workloads: []netip.Addr{addr}, target: at.Port()}
}

// sayBack is the same of HTTP/1.1, by gorilla's WebSocket.
func sayBack(out http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"chat"}}
	c, err := up.Upgrade(out, r, http.Header{"X-Asked": {r.Host + r.URL.RequestURI()}, "X-For": {r.Header.Get("X-Forwarded-For")}})
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, p, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, p) != nil {
			return
		}
	}
}

// TestWebSocketPeers: gorilla's client, and x/net's of HTTP/2, talk to net/http's server of HTTP/2 and to gorilla's of HTTP/1.1, and see
// no difference.
func TestWebSocketPeers(t *testing.T) {
	for name, b := range map[string]*backend{"HTTP/1.1": serving(t, "cart", cartAddr, 1, sayBack), "HTTP/2": program(t, "sockets", "http2xconnect=1")} {
		w := newWorld(t, []*backend{b})
		t.Run("HTTP/1.1 to "+name, func(t *testing.T) {
			var all sync.WaitGroup
			for seed := range uint64(6) {
				all.Go(func() {
					if err := w.talkOne(seed); err != nil {
						t.Errorf("talk %d: %v", seed, err)
					}
				})
			}
			all.Wait()
		})
		t.Run("HTTP/2 to "+name, func(t *testing.T) {
			transport := &xhttp2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return w.connect() }}
			defer transport.CloseIdleConnections()
			var all sync.WaitGroup
			for seed := range uint64(6) {
				all.Go(func() {
					if err := talkTwo(transport, seed); err != nil {
						t.Errorf("talk %d: %v", seed, err)
					}
				})
			}
			all.Wait()
		})
		eventually(t, "all are counted", func() bool { return w.value("heddle_waypoint_requests_total", "", "") == 12 })
		if n := w.value("heddle_waypoint_refusals_total", "", ""); n != 0 {
			t.Errorf("to %s: %v were refused", name, n)
		}
	}
}

func greeted(h http.Header) error {
	if h.Get("Sec-Websocket-Protocol") != "chat" || h.Get("X-Asked") != "cart.shop/chat?room=1" || h.Get("X-For") != "10.1.2.3" {
		return fmt.Errorf("the answer is %v", h)
	}
	return nil
}

// talkOne sends messages of every size, and has each back in its order, and the end in good order.
func (w *world) talkOne(seed uint64) error {
	d := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return w.connect() }, Subprotocols: []string{"chat"}, HandshakeTimeout: 20 * time.Second}
	c, resp, err := d.Dial("ws://cart.shop/chat?room=1", http.Header{"X-Forwarded-For": {"6.6.6.6"}})
	if err != nil {
		return fmt.Errorf("dial: %w, %v", err, resp)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(60 * time.Second))
	if err := greeted(resp.Header); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(seed, 1))
	var sent [][]byte
	for range 20 {
		p := make([]byte, []int{0, 1, 125, 126, 4000, 65535, 65536, 300_000}[random.IntN(8)])
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		sent = append(sent, p)
	}
	var wrote error
	var writing sync.WaitGroup
	writing.Go(func() {
		for _, p := range sent {
			if wrote = c.WriteMessage(websocket.BinaryMessage, p); wrote != nil {
				return
			}
		}
		wrote = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "done"))
	})
	defer writing.Wait()
	for i, p := range sent {
		kind, got, err := c.ReadMessage()
		if err != nil || kind != websocket.BinaryMessage || !bytes.Equal(got, p) {
			_ = c.Close()
			return fmt.Errorf("message %d of %d bytes came back as %d of kind %d: %w", i, len(p), len(got), kind, err)
		}
	}
	_, _, err = c.ReadMessage()
	if closed, ok := errors.AsType[*websocket.CloseError](err); !ok || closed.Code != websocket.CloseNormalClosure {
		return fmt.Errorf("the end is %w", err)
	}
	writing.Wait()
	return wrote
}

// talkTwo is the same of a stream of HTTP/2, with frames that are written by hand.
func talkTwo(transport *xhttp2.Transport, seed uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	body, say := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, "CONNECT", "http://cart.shop/chat?room=1", body)
	if err != nil {
		return err
	}
	req.Header = http.Header{":protocol": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Protocol": {"chat"}, "X-Forwarded-For": {"6.6.6.6"}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := greeted(resp.Header); err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("%d %w", resp.StatusCode, err)
	}
	random := rand.New(rand.NewPCG(seed, 2))
	var sent, want []byte
	for range 200 {
		p := make([]byte, random.IntN(126))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		sent = append(append(sent, 0x82, 0x80|byte(len(p)), 0, 0, 0, 0), p...) // a mask of zeros is one
		want = append(append(want, 0x82, byte(len(p))), p...)
	}
	sent = append(sent, 0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8)
	want = append(want, 0x88, 0x02, 0x03, 0xe8)
	var writing sync.WaitGroup
	writing.Go(func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(3000))
			if _, err := say.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		_ = say.Close()
	})
	got, err := io.ReadAll(resp.Body)
	_ = body.Close()
	writing.Wait()
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back, want %d: %w", len(got), len(want), err)
	}
	return err
}
