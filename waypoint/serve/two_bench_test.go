package serve_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestHTTP2Allocations: a request by HTTP/2 to a workload of HTTP/1.1 allocates what the decoder of heads does, a string for each value
// that is in no table, and nothing else that grows with the time.
func TestHTTP2Allocations(t *testing.T) {
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, answering)}, func(cfg *serve.Config) { cfg.Loops = 1 })
	c := w.dial()
	defer c.Close()
	var block, start bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSize(0)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "cart"}, {"user-agent", "x"}} {
		if err := e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
			t.Fatal(err)
		}
	}
	start.WriteString(http2.Preface)
	f := xhttp2.NewFramer(&start, nil)
	_, _ = f.WriteSettings(), f.WriteSettingsAck()
	if _, err := c.Write(start.Bytes()); err != nil {
		t.Fatal(err)
	}
	var request bytes.Buffer
	if err := xhttp2.NewFramer(&request, nil).WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	in, frame, id := bufio.NewReader(c), make([]byte, 16<<10), uint32(1)
	trip := func() {
		binary.BigEndian.PutUint32(request.Bytes()[5:], id)
		if _, err := c.Write(request.Bytes()); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := io.ReadFull(in, frame[:9]); err != nil {
				t.Fatal(err)
			}
			kind, flags, n := frame[3], frame[4], int(frame[0])<<16|int(frame[1])<<8|int(frame[2])
			of := binary.BigEndian.Uint32(frame[5:])
			if _, err := io.ReadFull(in, frame[:n]); err != nil {
				t.Fatal(err)
			}
			if kind <= 1 && flags&1 != 0 && of == id {
				break
			}
		}
		id += 2
	}
	for range 50 {
		trip()
	}
	if n := testing.AllocsPerRun(200, trip); n > 16 {
		t.Errorf("%v allocations for a request with 5 values", n)
	} else {
		t.Logf("%v allocations", n)
	}
}
