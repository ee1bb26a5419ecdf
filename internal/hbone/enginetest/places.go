package enginetest

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func placeTests() []test {
	return []test{
		{"places of connections that are opened", testPlacesOutbound}, {"places of connections that are accepted", testPlacesInbound},
		{"places of handshakes", testPlacesOfHandshakes}, {"places given back", testPlacesGivenBack},
	}
}

var errNoPlace = fmt.Errorf("%w: no place", hbone.ErrLimit)

// places are some, of which a test sees how many are taken.
type places struct {
	mu          sync.Mutex
	taken, most int
	below       bool // more were given than taken, at some time
}

func (p *places) Take() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.most {
		return errNoPlace
	}
	p.taken++
	return nil
}

func (p *places) Keep() { p.mu.Lock(); defer p.mu.Unlock(); p.taken++ }

func (p *places) Give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.below = p.below || p.taken < 0
}

// of waits until so many are taken.
func (p *places) of(t *testing.T, want int) {
	t.Helper()
	eventually(t, fmt.Sprint(want, " places taken"), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.taken == want && !p.below
	})
}

func (p *places) memory() *hbone.Memory { return hbone.NewMemory(1 << 30).WithPlaces(p) }

// testPlacesOutbound: a pod opens no more tunnel connections than it has places for, who
// needs one more is told so, and streams of those that are there open as before.
func testPlacesOutbound(t *testing.T, make New) {
	r := newRig(t, make, Options{IdleTimeout: 100 * time.Millisecond}, limits(hbone.Limits{Streams: 2}))
	p := &places{most: 2}
	memory := p.memory()
	request := func() *hbone.ConnectRequest {
		req := r.request()
		req.Memory = memory
		return req
	}
	var flows []*flow
	for range 4 {
		flows = append(flows, r.open(request()))
	}
	p.of(t, 2)
	if o := r.start(request()).outcome(); !errors.Is(o.Err, errNoPlace) || errors.Is(o.Err, hbone.ErrUnreachable) {
		t.Errorf("the fifth: %v", o.Err)
	}
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections were dialled, want 2", n)
	}
	flows[3].echo("as before")
	for _, f := range flows {
		f.finish()
	}
	p.of(t, 0) // idle ones end
	r.open(request()).echo("once there are places")
	p.of(t, 1)
}

// testPlacesInbound: a pod accepts no more tunnel connections than it has places for.
func testPlacesInbound(t *testing.T, make New) {
	p := &places{most: 2}
	r := newRig(t, make, Options{}, func(r *rig) { r.srv.Memory = p.memory() })
	first := r.rawClient()
	r.rawClient()
	if _, err := r.rawTLS(func(*tlsConfig) {}); err == nil || isTimeout(err) {
		t.Errorf("a connection too many: %v", err)
	}
	r.lastRefusal(errNoPlace)
	p.of(t, 2)
	must(t, first.conn.Close())
	p.of(t, 1)
	f := r.open(r.request())
	p.of(t, 2)
	f.finish()
}

// testPlacesOfHandshakes: whoever connects and says nothing takes one, until its time is over.
func testPlacesOfHandshakes(t *testing.T, make New) {
	p := &places{most: 3}
	r := newRig(t, make, Options{HandshakeTimeout: 300 * time.Millisecond}, func(r *rig) { r.srv.Memory = p.memory() })
	for range 5 {
		if c, err := net.Dial("tcp", r.endpoint.String()); err == nil { // the refused may see their RST here
			defer c.Close()
		}
	}
	r.lastRefusal(errNoPlace)
	p.of(t, 3)
	r.lastRefusal(hbone.ErrTimeout)
	p.of(t, 0)
}

// testPlacesGivenBack: by dials that come to nothing: of nobody there, of a peer that closes,
// and of another identity.
func testPlacesGivenBack(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	p := &places{most: 10}
	memory := p.memory()
	closes := listen(t, "127.0.0.1:0")
	t.Cleanup(func() { closes.Close() })
	go func() {
		for {
			c, err := closes.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	gone := listen(t, "127.0.0.1:0")
	nobody := gone.Addr().String()
	must(t, gone.Close())
	for _, via := range []string{nobody, closes.Addr().String(), ""} {
		r.mu.Lock()
		r.via = via
		r.mu.Unlock()
		req := r.request()
		req.Memory = memory
		if via == "" {
			req.Peer = r.ca.ID("somebody-else")
		}
		f := r.start(req)
		if o := f.outcome(); o.Err == nil {
			t.Errorf("by %q: %v", via, o.Err)
		}
		p.of(t, 0)
	}
}
