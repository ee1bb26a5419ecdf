package overload

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// limit is the memory of the waypoint's cgroup: little for what it is offered here, several times of which it would need to
// serve it all.
const limit = 128 << 20

// recovery is when it has to answer at last once an overload is over. What is left is to be freed first, on a machine that others load.
const recovery = 10 * time.Second

// overload is what clients do at once. Begin says what one of them sends; none of them reads an answer. What fits need not be shed.
type overload struct {
	clients int
	fits    bool
	begin   func(c net.Conn) error
}

// overloads are more than a waypoint has room for, each in a way of its own, and two of which it has to have.
var overloads = map[string]overload{
	"idle connections of HTTP/1.1": {8000, true, func(c net.Conn) error {
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: cart\r\n\r\n")
		return err
	}},
	"idle connections of HTTP/2": {8000, true, func(c net.Conn) error { return frames(c, func(*http2.Framer, *compressor) error { return nil }) }},
	"heads that do not end": {5000, false, func(c net.Conn) error {
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: cart\r\n"+strings.Repeat("X-Field: "+strings.Repeat("x", 1000)+"\r\n", 55))
		return err
	}},
	"heads of HTTP/2 that do not end": {5000, false, func(c net.Conn) error {
		return frames(c, func(f *http2.Framer, _ *compressor) error {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: literal(14 << 10)})
			for range 3 {
				if err == nil {
					err = f.WriteContinuation(1, false, literal(14<<10))
				}
			}
			return err
		})
	}},
	"bodies that are not taken": {3000, false, func(c net.Conn) error {
		_, err := io.WriteString(c, "POST /two/hold HTTP/1.1\r\nHost: cart\r\nContent-Length: 10000000\r\n\r\n"+strings.Repeat("x", 256<<10))
		return err
	}},
	"answers that are not taken": {2000, false, func(c net.Conn) error {
		_, err := io.WriteString(c, "GET /large HTTP/1.1\r\nHost: cart\r\n\r\n")
		return err
	}},
	"pipelined requests whose answers are not taken": {1500, false, func(c net.Conn) error {
		_, err := io.WriteString(c, strings.Repeat("GET / HTTP/1.1\r\nHost: cart\r\n\r\n", 4000))
		return err
	}},
	"answers on streams that are not taken": {400, false, func(c net.Conn) error {
		return frames(c, func(f *http2.Framer, e *compressor) error { return requests(f, e, 100, "GET", "/two/large", nil) })
	}},
	"bodies on streams that are not taken": {100, false, func(c net.Conn) error {
		return frames(c, func(f *http2.Framer, e *compressor) error { return requests(f, e, 100, "POST", "/two/hold", nil) })
	}},
	// A field that is indexed once is sent in a byte, and is there in each head as a whole.
	"large heads on streams": {150, false, func(c net.Conn) error {
		large := hpack.HeaderField{Name: "x-field", Value: strings.Repeat("x", 3500)}
		return frames(c, func(f *http2.Framer, e *compressor) error {
			return requests(f, e, 100, "GET", "/two/hold", bytesOf(large, 16))
		})
	}},
	"tables and heads, one after the other": {5000, false, func(c net.Conn) error {
		return frames(c, func(f *http2.Framer, e *compressor) error {
			return requests(f, e, 1, "GET", "/two/hold", bytesOf(hpack.HeaderField{Name: "x-field", Value: strings.Repeat("x", 3500)}, 16))
		})
	}},
}

func bytesOf(f hpack.HeaderField, n int) (fields []hpack.HeaderField) {
	for range n {
		fields = append(fields, f)
	}
	return fields
}

// literal is a part of a head: fields that are not indexed, of about n bytes.
func literal(n int) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for b.Len() < n {
		_ = e.WriteField(hpack.HeaderField{Name: "x-field", Value: strings.Repeat("\x7e", 500), Sensitive: true}) // into memory
	}
	return b.Bytes()
}

// compressor writes heads of one connection.
type compressor struct {
	*hpack.Encoder
	out bytes.Buffer
}

// frames begins a connection of HTTP/2, and has send say the rest, in one write.
func frames(c net.Conn, send func(*http2.Framer, *compressor) error) error {
	out := bytes.NewBufferString(http2.ClientPreface)
	f := http2.NewFramer(out, nil)
	e := &compressor{}
	e.Encoder = hpack.NewEncoder(&e.out)
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}); err != nil {
		return err
	}
	if err := f.WriteSettingsAck(); err != nil { // of what is not read
		return err
	}
	if err := send(f, e); err != nil {
		return err
	}
	_, err := c.Write(out.Bytes())
	return err
}

// requests writes n of them; those with a body send as much of it as the windows let out.
func requests(f *http2.Framer, e *compressor, n int, method, path string, more []hpack.HeaderField) error {
	for i := range n {
		e.out.Reset()
		id := uint32(2*i + 1)
		for _, field := range append([]hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path}, {Name: ":authority", Value: "cart"}}, more...) {
			if err := e.WriteField(field); err != nil {
				return err
			}
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: e.out.Bytes(), EndHeaders: true, EndStream: method == "GET"}); err != nil {
			return err
		}
	}
	for i := 0; method == "POST" && i < n; i++ {
		for range 4 { // 64 KiB
			if err := f.WriteData(uint32(2*i+1), false, make([]byte, 16<<10)); err != nil {
				return err
			}
		}
	}
	return nil
}

// run has all clients of an overload do their part, and returns what ends them. What is refused is no failure: that it is
// is the point.
func (o *overload) run(w *world) (end func(), refused int) {
	var mu sync.Mutex
	var open []net.Conn
	var all sync.WaitGroup
	places := make(chan struct{}, 64)
	for range o.clients {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			c, err := net.DialTimeout("tcp", w.at, 10*time.Second)
			if err == nil {
				_ = c.(*net.TCPConn).SetReadBuffer(4 << 10) // so that little of what is not taken waits in the kernel
				if err = o.begin(impatient{c}); err != nil && isTimeout(err) {
					err = nil // it is not read further: memory is bounded so
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if c != nil {
				open = append(open, c)
			}
			if err != nil {
				refused++
			}
		})
	}
	all.Wait()
	return func() {
		for _, c := range open {
			_ = c.Close() // it may be reset
		}
	}, refused
}

// impatient is a connection each of whose writes has little time: what is said before it may take long to think of, on a
// machine that is busy.
type impatient struct{ net.Conn }

func (c impatient) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// TestMemory: whatever is too much for the memory that a waypoint has, it is not ended for want of it, sheds what it has
// no room for, counts that, and serves as before as soon as it is over.
func TestMemory(t *testing.T) {
	testenv.NeedRoot(t)
	program := built(t)
	for name, o := range overloads {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, limit)
			w := start(t, g.command(program), "--idle-timeout", "1h", "--stall-timeout", "1h", "--header-timeout", "10m")
			before := g.used(t)
			began := time.Now()
			end, refused := o.run(w)
			time.Sleep(time.Second)
			if !w.lives() {
				t.Fatalf("it has ended after %v, at %d bytes", time.Since(began), g.most(t))
			}
			shed, during := w.refused("Overloaded"), g.used(t)
			end()
			close(w.release)
			over := time.Now()
			for _, two := range []bool{false, true} {
				var err error
				for deadline := over.Add(recovery); ; time.Sleep(20 * time.Millisecond) {
					if err = w.get(two); err == nil {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("it does not answer when it is over: %v", err)
					}
				}
			}
			left := func() (bytes, requests float64) {
				return w.counted("heddle_waypoint_buffered_bytes"), w.counted("heddle_waypoint_active_requests")
			}
			for bytes, requests := left(); bytes > 0 || requests > 0; bytes, requests = left() {
				if time.Since(over) > 2*recovery {
					t.Fatalf("%v bytes are held for %v requests when it is over", bytes, requests)
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Logf("%s: %d clients in %v, %d refused, shed %v; MB before %d, during %d, most %d, after %d; answered after %v", name, o.clients, over.Sub(began).Round(time.Millisecond), refused, shed,
				before>>20, during>>20, g.most(t)>>20, g.used(t)>>20, time.Since(over).Round(time.Millisecond))
			if shed == 0 && !o.fits {
				t.Error("nothing says that there was no room")
			}
			if kills, hits := g.kills(t), g.hits(t); kills > 0 || hits > 0 {
				t.Errorf("the limit was reached %d times, and %d processes were ended: %s", hits, kills, fmt.Sprint(g.most(t)))
			}
		})
	}
}
