package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// headers feeds one header block, in as many frames as it needs.
func headers(p *h2.Parser, id uint32, block []byte, v h2.Visitor) error {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	for {
		part := block[:min(len(block), h2.MaxFrame)]
		if block = block[len(part):]; len(block) == 0 {
			flags = http2.FlagHeadersEndHeaders
		}
		if err := p.Feed(h2.AppendFrame(nil, kind, flags, id, part), v); err != nil || len(block) == 0 {
			return err
		}
		kind = http2.FrameContinuation
	}
}

func begun(t *testing.T) (*h2.Parser, *notes) {
	t.Helper()
	p, n := &h2.Parser{MaxHeaderBytes: 1000}, &notes{}
	if err := p.Feed(h2.AppendSettings(nil), n); err != nil {
		t.Fatal(err)
	}
	n.list = nil
	return p, n
}

// TestBomb: an entry of the dynamic table that a byte each repeats thousands of
// times becomes no more than a header may be, and the table stays in step.
func TestBomb(t *testing.T) {
	p, n := begun(t)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	if err := enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("v", 3000)}); err != nil {
		t.Fatal(err)
	}
	if err := headers(p, 1, block.Bytes(), n); err != nil {
		t.Fatal(err)
	}
	const first = 0x80 | 62 // the dynamic table's first entry (RFC 7541 section 2.3.3)
	bomb := bytes.Repeat([]byte{first}, 16_000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := headers(p, 3, bomb, n); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 200_000 {
		t.Errorf("a frame of 16,000 bytes made us allocate %d", grown)
	}
	if err := headers(p, 5, []byte{0x80 | 62}, n); err != nil {
		t.Fatal(err)
	}
	if len(n.list) != 3 || n.list[1] != "HEADERS 3 [] false true" || n.list[2] != "HEADERS 5 [] false true" {
		t.Errorf("read %.200q", n.list)
	}
}

// TestTableSize: a peer may make the table smaller, and as large as the 4,096
// bytes that it has before our SETTINGS; more is refused (RFC 7541 section 4.2), and
// so is a change anywhere but at the beginning.
func TestTableSize(t *testing.T) {
	size := func(n uint32) []byte {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		enc.SetMaxDynamicTableSizeLimit(1 << 30)
		enc.SetMaxDynamicTableSize(n)
		if err := enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"}); err != nil {
			t.Fatal(err)
		}
		return block.Bytes()
	}
	for n, good := range map[uint32]bool{0: true, 100: true, 4095: true, 4097: false, 1 << 20: false, 1 << 29: false} {
		p, seen := begun(t)
		err := headers(p, 1, size(n), seen)
		if good != (err == nil) {
			t.Errorf("a table of %d bytes: %v", n, err)
		}
		if wrong, ok := errors.AsType[*h2.Error](err); !good && (!ok || wrong.Code != http2.ErrCodeCompression) {
			t.Errorf("a table of %d bytes: %v", n, err)
		}
	}
	p, seen := begun(t)
	if err := headers(p, 1, []byte{0x40, 1, 'a', 1, 'b', 0x20}, seen); err == nil { // a new entry, then no table
		t.Error("a change of the table inside a header")
	}
	// Many changes in one header cost bytes of it, and so are bounded by it.
	p, seen = begun(t)
	if err := headers(p, 1, bytes.Repeat([]byte{0x20}, 1<<20), seen); err == nil {
		t.Error("a million changes of the table")
	}
}

// TestBrokenBlocks: integers without end, strings longer than their header,
// entries that are not there, Huffman codes that end wrongly.
func TestBrokenBlocks(t *testing.T) {
	for name, block := range map[string][]byte{
		"integer without end":  append([]byte{0xff}, bytes.Repeat([]byte{0xff}, 20)...),
		"integer cut off":      {0xff, 0x80},
		"string cut off":       {0x00, 0x05, 'a'},
		"string of 2^62 bytes": {0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f},
		"index 0":              {0x80},
		"no such entry":        {0xbe},
		"Huffman padding":      {0x00, 0x81, 0x00, 0x00},
		"Huffman EOS":          {0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00},
	} {
		p, n := begun(t)
		err := headers(p, 1, block, n)
		if wrong, ok := errors.AsType[*h2.Error](err); !ok || wrong.Code != http2.ErrCodeCompression {
			t.Errorf("%s: %v, read %q", name, err, n.list)
		}
	}
}

// TestHeaderBounds: a header may come in few frames, and in no more bytes than
// twice its limit, however small the pieces.
func TestHeaderBounds(t *testing.T) {
	p, n := begun(t)
	err := p.Feed(h2.AppendFrame(nil, http2.FrameHeaders, 0, 1, nil), n)
	frames := 0
	for ; err == nil && frames < 1000; frames++ {
		err = p.Feed(h2.AppendFrame(nil, http2.FrameContinuation, 0, 1, []byte{0x88}), n)
	}
	if _, ok := errors.AsType[*flood.Error](err); !ok || frames > 10 {
		t.Errorf("%d CONTINUATIONs, %v", frames, err)
	}
	p, n = begun(t)
	err = p.Feed(h2.AppendFrame(nil, http2.FrameHeaders, 0, 1, make([]byte, h2.MaxFrame)), n)
	total := h2.MaxFrame
	for ; err == nil && total < 1<<20; total += h2.MaxFrame {
		err = p.Feed(h2.AppendFrame(nil, http2.FrameContinuation, 0, 1, make([]byte, h2.MaxFrame)), n)
	}
	if _, ok := errors.AsType[*flood.Error](err); !ok || total > 4*h2.MaxFrame {
		t.Errorf("%d bytes of header, %v", total, err)
	}
}

// TestTableGivenUp: the answer of a peer that uses no table is read, and what another had
// put into its table before is gone.
func TestTableGivenUp(t *testing.T) {
	const ok = `HEADERS %d [header field ":status" = "200"] false false`
	for _, used := range []bool{false, true} {
		p, n := begun(t)
		if used {
			if err := headers(p, 1, []byte("\x40\x01x\x01y"), n); err != nil {
				t.Fatal(err)
			}
		}
		n.list = nil
		if err := headers(p, 3, h2.AppendStatus([]byte{h2.NoTable}, 200), n); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(ok, 3); len(n.list) != 1 || n.list[0] != want {
			t.Errorf("read %q, want %q", n.list, want)
		}
		if err, ok := errors.AsType[*h2.Error](headers(p, 5, []byte{0x80 | 62}, n)); !ok || err.Code != http2.ErrCodeCompression {
			t.Errorf("an entry of a table that was given up: %v", err)
		}
	}
}
