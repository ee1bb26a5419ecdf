package through

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// owner is a proxy as small as it can be: what an owner of sockets does with the two engines, for clients and a
// backend of either version. One lock is for all of it, and a goroutine reads, another writes each socket. One that is
// meant for use would have a lock for each connection, stop reading while a socket takes nothing, and choose backends.
type owner struct {
	mu       sync.Mutex
	config   *http2.Config
	backend  string
	two      bool    // the backend speaks HTTP/2
	back     *socket // the connection to it, then
	conn     *http2.Conn
	requests map[uint32]*request // by their streams there
	largest  int                 // piece that a socket is read in
	all      sync.WaitGroup
	sockets  []*socket
	failed   []error
	stopped  bool
}

// socket is a connection, and what is to be written to it.
type socket struct {
	net.Conn
	out    []byte
	wake   *sync.Cond
	closed bool
	last   bool   // close when all is written
	resume func() // reads what a client of HTTP/1.1 has sent behind its request, when that one is answered
}

// stream is one side of a request, in HTTP/2.
type stream struct {
	conn *http2.Conn
	to   *socket
	id   uint32
}

// request is one of them, and its response. A side without a stream speaks HTTP/1.1, and has the exchange.
type request struct {
	client, backend *stream
	exchange        *http1.Exchange
	socket          *socket // the exchange's side
	up, down        body
}

// body is what came of a body, and did not go on yet. Its sender is told to go on as it goes.
type body struct {
	waits    []byte
	ended    bool
	done     bool
	trailers []http1.Field
}

func newOwner(backend string, two bool, largest int) *owner {
	return &owner{config: http2.Defaults(), backend: backend, two: two, requests: map[uint32]*request{}, largest: largest}
}

// open runs a socket: read is called with what came, under the lock, and with nothing at its end.
func (o *owner) open(c net.Conn, read func(s *socket, in []byte)) *socket {
	s := &socket{Conn: c, wake: sync.NewCond(&o.mu), closed: o.stopped}
	o.sockets = append(o.sockets, s)
	o.all.Go(func() { o.write(s) })
	o.all.Go(func() {
		buf := make([]byte, o.largest)
		for {
			n, err := c.Read(buf[:1+rand.IntN(o.largest)])
			o.mu.Lock()
			if n > 0 && !s.closed {
				read(s, buf[:n])
			}
			if err != nil && !s.closed {
				read(s, nil)
				s.close()
			}
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return s
}

func (o *owner) write(s *socket) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(s.out) == 0 && !s.closed && !s.last {
			s.wake.Wait()
		}
		if len(s.out) == 0 {
			s.closed = true
			_ = s.Close() // wakes the reader
			return
		}
		b := s.out
		s.out = nil
		o.mu.Unlock()
		_, err := s.Write(b)
		o.mu.Lock()
		s.closed = s.closed || err != nil
	}
}

func (s *socket) close() {
	s.closed = true
	s.wake.Signal()
}

func (s *socket) send(out []byte) {
	s.out = out
	s.wake.Signal()
}

// accept serves one client: its first bytes say which version it speaks.
func (o *owner) accept(c net.Conn) {
	var first []byte
	var read func(s *socket, in []byte)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open(c, func(s *socket, in []byte) {
		if read == nil {
			first = append(first, in...)
			n := min(len(first), len(http2.Preface))
			switch {
			case string(first[:n]) != http2.Preface[:n]:
				read = o.one()
			case n == len(http2.Preface):
				read = o.client(s)
			default:
				return
			}
			in = first
		}
		read(s, in)
	})
}

// client reads a client that speaks HTTP/2.
func (o *owner) client(s *socket) func(*socket, []byte) {
	c := http2.NewServer(o.config)
	s.send(c.Start(s.out))
	requests := map[uint32]*request{}
	return func(s *socket, in []byte) {
		if in == nil { // it has gone: so have its requests
			for _, q := range requests {
				o.abandon(q)
			}
			return
		}
		o.drive(c, s, in, func(step http2.Step) {
			q := requests[step.Stream]
			switch {
			case step.Event == http2.HeadRead:
				q = &request{client: &stream{c, s, step.Stream}}
				requests[step.Stream] = q
				o.forward(q, step.Head)
			case q == nil:
			case step.Event == http2.Data:
				o.carry(q, &q.up, step.Data)
			case step.Event == http2.End:
				o.end(q, &q.up, step.Trailers)
			case step.Event == http2.Writable:
				o.pump(q, &q.down)
			case step.Event == http2.Reset:
				o.abandon(q)
				delete(requests, step.Stream)
			}
		})
	}
}

// drive gives a connection what came, and does what it says.
func (o *owner) drive(c *http2.Conn, s *socket, in []byte, do func(http2.Step)) {
	for {
		out, n, step, err := c.Next(s.out, in)
		s.send(out)
		in = in[n:]
		if err != nil {
			o.failed = append(o.failed, err)
			s.last = true
			return
		}
		if step.Event == http2.More {
			return
		}
		do(step)
	}
}

// forward sends a request's head on, which is where a route would be looked for.
func (o *owner) forward(q *request, h *http1.Head) {
	if o.two {
		out, id, err := o.dialed().Open(o.back.out, h, nil)
		if err != nil {
			o.failed = append(o.failed, err)
			return
		}
		o.back.send(out)
		q.backend = &stream{o.conn, o.back, id}
		o.requests[id] = q
		if q.exchange != nil {
			q.exchange.Carry(nil)
		}
		return
	}
	c, err := net.Dial("tcp", o.backend)
	if err != nil {
		o.failed = append(o.failed, err)
		return
	}
	q.exchange = http1.NewExchange(o.config.Messages)
	q.exchange.TakeRequest(h)
	q.socket = o.open(c, func(s *socket, in []byte) { o.response(q, s, in) })
	out, err := q.exchange.Forward(nil, nil)
	if err != nil {
		o.failed = append(o.failed, err)
	}
	q.socket.send(out)
}

// dialed is the connection to a backend of HTTP/2.
func (o *owner) dialed() *http2.Conn {
	if o.conn != nil && o.conn.Room() > 0 {
		return o.conn
	}
	c, err := net.Dial("tcp", o.backend)
	if err != nil {
		o.failed = append(o.failed, err)
		return o.conn
	}
	conn, requests := http2.NewClient(o.config), map[uint32]*request{}
	o.conn, o.requests = conn, requests
	o.back = o.open(c, func(s *socket, in []byte) { o.answers(conn, requests, s, in) })
	o.back.send(o.conn.Start(nil))
	return o.conn
}

// answers reads a backend of HTTP/2.
func (o *owner) answers(c *http2.Conn, requests map[uint32]*request, s *socket, in []byte) {
	if in == nil {
		for _, q := range requests {
			o.fail(q, io.ErrUnexpectedEOF)
		}
		return
	}
	o.drive(c, s, in, func(step http2.Step) {
		q := requests[step.Stream]
		switch {
		case q == nil:
		case step.Event == http2.HeadRead:
			o.answer(q, step.Head)
		case step.Event == http2.Data:
			o.carry(q, &q.down, step.Data)
		case step.Event == http2.End:
			delete(requests, step.Stream)
			o.end(q, &q.down, step.Trailers)
		case step.Event == http2.Writable:
			o.pump(q, &q.up)
		case step.Event == http2.Reset:
			delete(requests, step.Stream)
			o.fail(q, step.Err)
		}
	})
}

// answer sends a response's head on.
func (o *owner) answer(q *request, h *http1.Head) {
	if q.client == nil {
		out := q.exchange.TakeResponse(q.socket.out, h)
		if !h.Interim() {
			var err error
			if out, err = q.exchange.Answer(out, nil); err != nil {
				o.failed = append(o.failed, err)
			}
		}
		q.socket.send(out)
		return
	}
	c, s := q.client.conn, q.client.to
	if h.Interim() {
		s.send(c.Interim(s.out, q.client.id, h))
		return
	}
	out, err := c.Answer(s.out, q.client.id, h, nil)
	if err != nil && !errors.Is(err, http2.ErrGone) {
		o.failed = append(o.failed, err)
	}
	s.send(out)
}

// carry sends a part of a body on, or keeps it until it can go.
func (o *owner) carry(q *request, b *body, data []byte) {
	b.waits = append(b.waits, data...)
	o.pump(q, b)
}

func (o *owner) end(q *request, b *body, trailers []http1.Field) {
	b.ended = true
	for _, f := range trailers { // they are gone at the next call
		b.trailers = append(b.trailers, http1.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
	}
	o.pump(q, b)
}

// pump moves what waits, gives its sender as much again, and then the end.
func (o *owner) pump(q *request, b *body) {
	from, to := q.client, q.backend
	if b == &q.down {
		from, to = to, from
	}
	n := len(b.waits)
	switch {
	case to != nil:
		var out []byte
		out, n = to.conn.Data(to.to.out, to.id, b.waits)
		to.to.send(out)
	case q.socket == nil: // nobody is there any more
	case b == &q.up:
		q.socket.send(q.exchange.TakeRequestData(q.socket.out, b.waits))
	default:
		q.socket.send(q.exchange.TakeResponseData(q.socket.out, b.waits))
	}
	b.waits = b.waits[n:]
	if from != nil {
		from.to.send(from.conn.Consumed(from.to.out, from.id, n))
	}
	if !b.ended || b.done || len(b.waits) > 0 {
		return
	}
	b.done = true
	switch {
	case to != nil:
		to.to.send(to.conn.End(to.to.out, to.id, b.trailers))
	case q.socket == nil:
	case b == &q.up:
		q.socket.send(q.exchange.TakeRequestEnd(q.socket.out, b.trailers))
	default:
		q.socket.send(q.exchange.TakeResponseEnd(q.socket.out, b.trailers))
		if q.socket.last = q.exchange.Closing(); !q.socket.last {
			q.socket.resume()
		}
	}
}

// response reads a backend of HTTP/1.1 for a client of HTTP/2.
func (o *owner) response(q *request, s *socket, in []byte) {
	if in == nil {
		_, at, err := q.exchange.ResponseEOF(nil)
		if at == http1.End && err == nil && !q.down.ended {
			o.end(q, &q.down, nil)
		} else if err != nil {
			o.fail(q, err)
		}
		return
	}
	for {
		data, n, at, err := q.exchange.Response(nil, in)
		in = in[n:]
		o.carry(q, &q.down, data)
		switch {
		case err != nil:
			o.fail(q, err)
			return
		case at == http1.HeadRead:
			o.answer(q, q.exchange.ResponseHead())
		case at == http1.End:
			if !q.down.ended {
				o.end(q, &q.down, q.exchange.ResponseTrailers())
			}
			s.last = true
			s.wake.Signal()
			return
		case len(in) == 0:
			return
		}
	}
}

// one reads a client of HTTP/1.1, whose requests go to a backend of HTTP/2.
func (o *owner) one() func(*socket, []byte) {
	x := http1.NewExchange(o.config.Messages)
	var q *request
	var behind []byte
	var read func(s *socket, in []byte)
	read = func(s *socket, in []byte) {
		if in == nil {
			if q != nil {
				o.abandon(q)
			}
			return
		}
		s.resume = func() { read(s, []byte{}) }
		in, behind = append(behind, in...), nil
		for {
			data, n, at, err := x.Request(nil, in)
			in = in[n:]
			if q != nil {
				o.carry(q, &q.up, data)
			}
			switch {
			case err != nil:
				out, answered := x.Refuse(s.out, err)
				s.send(out)
				s.last = answered
				return
			case at == http1.HeadRead:
				q = &request{exchange: x, socket: s}
				o.forward(q, x.RequestHead())
			case at == http1.End:
				if q != nil && !q.up.ended {
					o.end(q, &q.up, x.RequestTrailers())
				}
				behind = bytes.Clone(in)
				return
			case len(in) == 0:
				return
			}
		}
	}
	return read
}

// fail ends a request whose backend has not answered well.
func (o *owner) fail(q *request, err error) {
	if q.client != nil {
		q.client.to.send(q.client.conn.Refuse(q.client.to.out, q.client.id, err))
		return
	}
	name := "backend_gone"
	if wrong, ok := errors.AsType[*http2.Error](err); ok {
		name = wrong.Reason.String()
	}
	out, err := q.exchange.Reply(q.socket.out, 502, name, nil, nil)
	q.socket.send(out)
	if q.socket.last = q.exchange.Closing(); err != nil {
		q.socket.close()
	} else if !q.socket.last {
		q.socket.resume()
	}
}

// abandon ends a request whose client has gone.
func (o *owner) abandon(q *request) {
	if q.backend != nil {
		q.backend.to.send(q.backend.conn.Reset(q.backend.to.out, q.backend.id, http2.Cancel))
	} else if q.socket != nil {
		q.socket.close()
	}
}

// serve runs the proxy until the test's end, and is its address.
func (o *owner) serve(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			o.accept(c)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		o.mu.Lock()
		o.stopped = true // what is dialled from here on is closed at once
		for _, s := range o.sockets {
			s.close()
			_ = s.Close()
		}
		o.mu.Unlock()
		o.all.Wait()
	})
	return l.Addr().String()
}
