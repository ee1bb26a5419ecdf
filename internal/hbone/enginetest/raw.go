package enginetest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// raw is one end of a tunnel connection, driven frame by frame.
type raw struct {
	t       *testing.T
	conn    net.Conn
	fr      *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	decoder *hpack.Decoder
}

func newRaw(t *testing.T, conn net.Conn) *raw {
	c := &raw{t: t, conn: conn, fr: http2.NewFramer(conn, conn), decoder: hpack.NewDecoder(4096, nil)}
	c.fr.AllowIllegalWrites = true
	c.encoder = hpack.NewEncoder(&c.block)
	must(t, conn.SetDeadline(time.Now().Add(wait)))
	t.Cleanup(func() { conn.Close() })
	return c
}

// rawClient connects to the rig's server, up to the preface and SETTINGS of both.
func (r *rig) rawClient() *raw {
	r.t.Helper()
	c := r.rawEarly()
	_, err := c.next(func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && !s.IsAck() })
	must(r.t, err)
	return c
}

// rawEarly is rawClient that has not read the server's SETTINGS.
func (r *rig) rawEarly() *raw {
	r.t.Helper()
	conn, err := tls.Dial("tcp", r.endpoint.String(), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*r.client.cert},
	})
	must(r.t, err)
	c := newRaw(r.t, conn)
	_, err = conn.Write([]byte(http2.ClientPreface))
	must(r.t, err)
	must(r.t, c.fr.WriteSettings())
	return c
}

// connect sends a CONNECT for the authority, or the fields given ("name", "value", …).
func (c *raw) connect(id uint32, end bool, fields ...string) {
	c.t.Helper()
	if len(fields) == 0 {
		fields = []string{":method", "CONNECT", ":authority", "10.1.2.3:80"}
	}
	must(c.t, c.tryConnect(id, end, fields...))
}

func (c *raw) tryConnect(id uint32, end bool, fields ...string) error {
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := c.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: end})
}

// next reads frames, acknowledging SETTINGS, until one is wanted.
func (c *raw) next(wanted func(http2.Frame) bool) (http2.Frame, error) {
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return nil, err
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			if err := c.fr.WriteSettingsAck(); err != nil {
				return nil, err
			}
		}
		if wanted(f) {
			return f, nil
		}
	}
}

// status reads the answer to a stream.
func (c *raw) status(id uint32) int {
	c.t.Helper()
	f, err := c.next(func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.HeadersFrame:
			return f.StreamID == id
		case *http2.RSTStreamFrame:
			return f.StreamID == id
		}
		return false
	})
	must(c.t, err)
	h, ok := f.(*http2.HeadersFrame)
	if !ok {
		c.t.Fatalf("stream %d: %v", id, f)
	}
	fields, err := c.decoder.DecodeFull(h.HeaderBlockFragment())
	must(c.t, err)
	code, err := strconv.Atoi(fields[0].Value)
	must(c.t, err)
	return code
}

// reset reads until the stream is reset and returns the code.
func (c *raw) reset(id uint32) http2.ErrCode {
	c.t.Helper()
	f, err := c.next(func(f http2.Frame) bool { r, ok := f.(*http2.RSTStreamFrame); return ok && r.StreamID == id })
	must(c.t, err)
	return f.(*http2.RSTStreamFrame).ErrCode
}

// goaway reads until the connection ends and returns the last GOAWAY's code.
func (c *raw) goaway() http2.ErrCode {
	c.t.Helper()
	code := http2.ErrCodeNo
	_, err := c.next(func(f http2.Frame) bool {
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code = g.ErrCode
		}
		return false
	})
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		c.t.Fatal("the connection does not end")
	}
	return code
}

// dead waits until the peer has closed, whatever it says before.
func (c *raw) dead() {
	c.t.Helper()
	c.goaway()
}

// rawServer accepts tunnel connections with the rig's server certificate and
// runs serve on each, after both SETTINGS.
func (r *rig) rawServer(settings []http2.Setting, serve func(n int, c *raw) error) (addr net.Addr) {
	r.t.Helper()
	l := listen(r.t, "127.0.0.1:0")
	ended := newChan[struct{}](0)
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			secured := tls.Server(conn, &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*r.server.cert}, ClientAuth: tls.RequireAnyClientCert})
			if err := secured.Handshake(); err != nil {
				r.t.Errorf("raw server: %v", err)
				return
			}
			c := newRaw(r.t, secured)
			go func() {
				if err := c.serveRaw(settings, func() error { return serve(n, c) }); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					r.t.Logf("raw server: connection %d: %v", n, err)
				}
				conn.Close()
			}()
		}
	}()
	r.t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr()
}

func (c *raw) serveRaw(settings []http2.Setting, serve func() error) error {
	if err := c.fr.WriteSettings(settings...); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.conn, newBuffer(len(http2.ClientPreface))); err != nil {
		return err
	}
	return serve()
}

// request reads frames until a CONNECT comes.
func (c *raw) request() (id uint32, err error) {
	f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.HeadersFrame); return ok })
	if err != nil {
		return 0, err
	}
	return f.(*http2.HeadersFrame).StreamID, nil
}

func (c *raw) answer(id uint32, code int, end bool) error {
	c.block.Reset()
	if err := c.encoder.WriteField(hpack.HeaderField{Name: ":status", Value: fmt.Sprint(code)}); err != nil {
		return err
	}
	return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: end})
}

// to points a request of the rig's at another endpoint.
func to(req *hbone.ConnectRequest, addr net.Addr) *hbone.ConnectRequest {
	req.Endpoint = addr.(*net.TCPAddr).AddrPort()
	req.Dial = dialTo(addr.String())
	return req
}
