package smuggling

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// ours is the engine behind sockets, in the simplest way that keeps to its contract: one
// goroutine owns the exchange, others read for it.
type ours struct {
	x       *http1.Exchange
	client  net.Conn
	backend net.Conn // nil when there is none
	target  int      // its port
	pending []byte   // of the client, not used yet
	events  chan event
	over    chan struct{}
	readers sync.WaitGroup
}

// event is what a reader has read; nil is the end.
type event struct {
	from net.Conn
	data []byte
}

// startOurs serves lanes with the engine, until the test ends.
func startOurs(t *testing.T, lanes []*lane) {
	t.Helper()
	var work sync.WaitGroup
	t.Cleanup(work.Wait) // after the listeners are closed
	for _, n := range lanes {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n.port))
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				work.Go(func() {
					o := &ours{x: http1.NewExchange(http1.Defaults()), client: c, target: n.backend(), events: make(chan event), over: make(chan struct{})}
					o.serve()
				})
			}
		})
		t.Cleanup(func() { l.Close() })
	}
}

func (o *ours) read(c net.Conn) {
	for {
		buf := make([]byte, 4<<10)
		k, err := c.Read(buf)
		e := event{from: c, data: buf[:k]}
		if err != nil {
			e.data = nil
		}
		select {
		case o.events <- e:
		case <-o.over:
			return
		}
		if err != nil {
			return
		}
	}
}

func (o *ours) serve() {
	o.readers.Go(func() { o.read(o.client) })
	for e := range o.events {
		goesOn := false
		switch {
		case e.from == o.client && e.data != nil:
			o.pending = append(o.pending, e.data...)
			goesOn = o.requests()
		case e.from == o.backend && e.data != nil:
			goesOn = o.responses(e.data)
		case e.from == o.backend:
			out, _, err := o.x.ResponseEOF(nil)
			goesOn = o.write(o.client, out) && o.failed(err) && o.ended()
		case e.from != o.client:
			goesOn = true // a backend of before
		}
		if !goesOn {
			break
		}
	}
	close(o.over)
	o.client.Close()
	o.drop()
	o.readers.Wait()
}

func (o *ours) write(c net.Conn, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	_, err := c.Write(b)
	return err == nil
}

func (o *ours) drop() {
	if o.backend != nil {
		o.backend.Close()
		o.backend = nil
	}
}

// failed answers an error, and says whether the client's connection goes on.
func (o *ours) failed(err error) bool {
	if err == nil {
		return true
	}
	o.drop()
	out, ok := o.x.Refuse(nil, err)
	return ok && o.write(o.client, out) && !o.x.Closing()
}

// requests uses what the client has sent.
func (o *ours) requests() bool {
	for {
		out, n, at, err := o.x.Request(nil, o.pending)
		o.pending = o.pending[n:]
		if at == http1.HeadRead {
			if o.backend, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", o.target)); err != nil {
				return false
			}
			backend := o.backend
			o.readers.Go(func() { o.read(backend) })
			if out, err = o.x.Forward(out, nil); err != nil {
				return false
			}
		}
		if o.backend != nil && !o.write(o.backend, out) {
			return false
		}
		if err != nil {
			return o.failed(err)
		}
		if at != http1.HeadRead {
			return true
		}
	}
}

// responses uses what the backend has sent.
func (o *ours) responses(in []byte) bool {
	for {
		out, n, at, err := o.x.Response(nil, in)
		in = in[n:]
		if at == http1.HeadRead {
			if out, err = o.x.Answer(out, nil); err != nil {
				return false
			}
		}
		if !o.write(o.client, out) {
			return false
		}
		if err != nil {
			return o.failed(err)
		}
		if at == http1.End {
			return o.ended()
		}
		if at != http1.HeadRead {
			return true
		}
	}
}

// ended is after a response: the next request may be there already.
func (o *ours) ended() bool {
	o.drop()
	return o.x.Done() && !o.x.Closing() && o.requests()
}
