package enginetest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func openingTests() []test {
	return []test{
		{"drain while a dial is under way", testDrainDial}, {"close while a dial is under way", testCloseDial},
		{"GOAWAY among requests", testGoawayRace}, {"cutters", testCutters},
	}
}

// testDrainDial: a drain that comes while a connection is being opened, at any
// of its steps, loses no request: they go on, there or on another connection.
func testDrainDial(t *testing.T, make New) {
	for _, step := range []string{"dial", "SETTINGS"} {
		r := newRig(t, make, Options{})
		reached, drained := newChan[struct{}](1), newChan[struct{}](0)
		stop := func(at string) {
			if at == step {
				select {
				case reached <- struct{}{}:
				default:
				}
				<-drained
			}
		}
		addr := r.lateServer(func() { stop("SETTINGS") })
		var flows []*flow
		for range 3 {
			req := to(r.request(), addr)
			dial := req.Dial
			req.Dial = func(ctx context.Context) (*net.TCPConn, error) {
				stop("dial")
				return dial(ctx)
			}
			flows = append(flows, r.start(req))
		}
		within(t, reached, step)
		time.Sleep(20 * time.Millisecond) // SETTINGS are awaited by then
		r.client.engine.Drain(hbone.Match{}, false)
		time.Sleep(20 * time.Millisecond)
		close(drained)
		for i, f := range flows {
			select {
			case <-f.opened:
			case o := <-f.done:
				t.Errorf("drained at its %s: request %d: %v", step, i, o.Err)
				continue
			case <-time.After(wait):
				t.Errorf("drained at its %s: request %d: nothing", step, i)
				continue
			}
			reset(t, f.program)
			f.outcome()
		}
	}
}

// lateServer answers every request with 200, and calls before it sends
// its SETTINGS.
func (r *rig) lateServer(before func()) net.Addr {
	l := listen(r.t, "127.0.0.1:0")
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				secured := tls.Server(conn, &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*r.server.cert}, ClientAuth: tls.RequireAnyClientCert})
				if secured.Handshake() != nil {
					return // the client may have given up
				}
				before()
				c := newRaw(r.t, secured)
				err := c.serveRaw(nil, func() error {
					for {
						id, err := c.request()
						if err == nil {
							err = c.answer(id, 200, false)
						}
						if err != nil {
							return err
						}
					}
				})
				if err != nil && !errors.Is(err, io.EOF) {
					r.t.Logf("late server: %v", err)
				}
			})
		}
	})
	r.t.Cleanup(func() { l.Close() })
	return l.Addr()
}

// testCloseDial: a dial that takes forever ends with its engine.
func testCloseDial(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	under := newChan[struct{}](1)
	req := r.request()
	req.Dial = func(ctx context.Context) (*net.TCPConn, error) {
		under <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f := r.start(req)
	within(t, under, "the dial")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_ = r.client.engine.Close(ctx) // whether it had to cut is not the question
	if o := f.outcome(); o.Err == nil {
		t.Error("no error")
	}
	if took := time.Since(start); took > wait/3 {
		t.Errorf("took %v", took)
	}
	expectReset(t, f.program, false)
}

// testGoawayRace: a server that goes away, twice, while requests come:
// what it has not taken goes elsewhere, what it has is answered, none is lost.
func testGoawayRace(t *testing.T, make New) {
	const streams = 60
	r := newRig(t, make, Options{})
	var served atomic.Int64
	addr := r.rawServer(nil, func(conn int, c *raw) error {
		last := uint32(0)
		goes := conn < 2 // a request is sent again three times, no more
		for n := 1; ; n++ {
			id, err := c.request()
			if err != nil {
				return err
			}
			if goes && n > 7 { // beyond the GOAWAY: not processed, not answered
				continue
			}
			last = id
			served.Add(1) // before the answer, after which nobody waits for us
			if err := errors.Join(c.answer(id, 200, false), c.fr.WriteData(id, true, []byte(fmt.Sprint("stream ", id)))); err != nil {
				return err
			}
			if goes && n == 7 {
				if err := c.fr.WriteGoAway(last, http2.ErrCodeNo, nil); err != nil {
					return err
				}
			}
		}
	})
	var all sync.WaitGroup
	for i := range streams {
		f := r.start(to(r.request(), addr))
		all.Go(func() {
			_ = f.program.SetDeadline(time.Now().Add(wait)) // fails only on a closed socket
			if answer, err := io.ReadAll(f.program); err != nil || len(answer) < len("stream 1") {
				t.Errorf("request %d: %q, %v", i, answer, err)
			}
			if err := f.program.CloseWrite(); err != nil {
				t.Error(err)
			}
			select {
			case o := <-f.done:
				if o.Err != nil {
					t.Errorf("request %d: %v", i, o.Err)
				}
			case <-time.After(wait):
				t.Errorf("request %d: no outcome", i)
			}
		})
	}
	all.Wait()
	if n := served.Load(); n != streams {
		t.Errorf("%d requests served, want %d, each once", n, streams)
	}
}

// testCutters: a stream is cut before it is there, while its answer is awaited,
// and when it is open, from either end; both ends see a RST, and whoever cut
// has its cause.
func testCutters(t *testing.T, make New) {
	for _, end := range []int{program, app} {
		for _, when := range []string{"before", "open", "finished"} {
			name := fmt.Sprintf("cut by %d, %s", end, when)
			s := newStage(t, make)
			one := &staged{done: [2]chan hbone.Outcome{newChan[hbone.Outcome](2), newChan[hbone.Outcome](2)}}
			s.open["x"] = one
			if when == "before" {
				one.cutters[end].Cut(errCut)
			}
			req := s.request()
			req.Baggage, req.Cutter = "x", &one.cutters[program]
			f := s.start(req)
			outcomes := [2]hbone.Outcome{}
			select {
			case <-f.opened:
			case outcomes[program] = <-f.done: // cut by the other end before it could answer
				if end == program || when != "before" {
					t.Fatalf("%s: %v", name, outcomes[program].Err)
				}
			case <-time.After(wait):
				t.Fatalf("%s: nothing", name)
			}
			s.mu.Lock()
			far := one.app
			s.mu.Unlock()
			t.Cleanup(func() { far.Close() })
			if when == "finished" {
				f.app = far
				f.finish()
				one.cutters[end].Cut(errCut) // nothing is left to cut
				if in := within(t, one.done[app], name); in.Err != nil {
					t.Errorf("%s: %v", name, in.Err)
				}
				continue
			}
			if when != "before" {
				one.cutters[end].Cut(errCut)
				one.cutters[end].Cut(errors.New("a second cause"))
			}
			expectReset(t, f.program, false)
			expectReset(t, far, false)
			if outcomes[app] = within(t, one.done[app], name); outcomes[program].Err == nil {
				outcomes[program] = f.outcome()
			}
			if !errors.Is(outcomes[end].Err, errCut) || outcomes[1-end].Err == nil {
				t.Errorf("%s: outcomes %v and %v", name, outcomes[program].Err, outcomes[app].Err)
			}
		}
	}
}
