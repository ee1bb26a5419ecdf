package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// notes writes down what a Visitor is told. DATA is joined, so that it does not
// show how the bytes were cut.
type notes struct {
	list []string
	data []byte
	want int
	id   uint32
}

func (n *notes) add(format string, args ...any) error {
	n.list = append(n.list, fmt.Sprintf(format, args...))
	return nil
}

func (n *notes) DataBegins(id uint32, length int) error { n.id, n.want = id, length; return nil }
func (n *notes) Data(p []byte)                          { n.data = append(n.data, p...) }
func (n *notes) DataEnds(padding int, end bool) error {
	if len(n.data)+padding != n.want {
		return fmt.Errorf("%d bytes and %d of padding in a frame of %d", len(n.data), padding, n.want)
	}
	err := n.add("DATA %d %q %v", n.id, n.data, end)
	n.data = nil
	return err
}
func (n *notes) Headers(h h2.Header) error {
	return n.add("HEADERS %d %v %v %v", h.ID, h.Fields, h.End, h.TooLong)
}
func (n *notes) Reset(id uint32, code http2.ErrCode) error { return n.add("RST %d %v", id, code) }
func (n *notes) Settings(list []http2.Setting, ack bool) error {
	return n.add("SETTINGS %v %v", list, ack)
}
func (n *notes) Ping(data [8]byte, ack bool) error { return n.add("PING %v %v", data, ack) }
func (n *notes) GoAway(last uint32, code http2.ErrCode) error {
	return n.add("GOAWAY %d %v", last, code)
}
func (n *notes) WindowUpdate(id, inc uint32) error { return n.add("UPDATE %d %d", id, inc) }
func (n *notes) Other() error                      { return n.add("OTHER") }

// oracle reads the same bytes with x/net/http2.
func oracle(t *testing.T, wire []byte) []string {
	t.Helper()
	var n notes
	r := bytes.NewReader(wire[len(http2.ClientPreface):])
	fr := http2.NewFramer(nil, r)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for r.Len() > 0 {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			_ = n.add("DATA %d %q %v", f.StreamID, f.Data(), f.StreamEnded())
		case *http2.MetaHeadersFrame:
			_ = n.add("HEADERS %d %v %v %v", f.StreamID, f.Fields, f.StreamEnded(), f.Truncated)
		case *http2.RSTStreamFrame:
			_ = n.Reset(f.StreamID, f.ErrCode)
		case *http2.SettingsFrame:
			list := []http2.Setting{}
			_ = f.ForeachSetting(func(s http2.Setting) error { list = append(list, s); return nil })
			_ = n.Settings(list, f.IsAck())
		case *http2.PingFrame:
			_ = n.Ping(f.Data, f.IsAck())
		case *http2.GoAwayFrame:
			_ = n.GoAway(f.LastStreamID, f.ErrCode)
		case *http2.WindowUpdateFrame:
			_ = n.WindowUpdate(f.StreamID, f.Increment)
		default:
			_ = n.Other()
		}
	}
	return n.list
}

// schedule is a random connection of a client's, every frame in it.
func schedule(t *testing.T, random *rand.Rand, streams uint32) []byte {
	t.Helper()
	var wire, block bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	fr, enc := http2.NewFramer(&wire, nil), hpack.NewEncoder(&block)
	err := fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: random.Uint32() >> 1}, http2.Setting{ID: 99, Val: 1})
	for id := uint32(1); id < 2*streams; id += 2 {
		block.Reset()
		for _, f := range []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "10.0.0.1:80"}, {Name: "baggage", Value: strings.Repeat("k", random.IntN(300))}} {
			err = errors.Join(err, enc.WriteField(f))
		}
		b := block.Bytes()
		cut := random.IntN(len(b))
		switch random.IntN(3) {
		case 0:
			err = errors.Join(err, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:cut]}), fr.WriteContinuation(id, false, b[cut:]), fr.WriteContinuation(id, true, nil))
		case 1:
			err = errors.Join(err, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true, PadLength: 9, Priority: http2.PriorityParam{Weight: 3}}))
		default:
			err = errors.Join(err, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true, EndStream: true}))
		}
		data := bytes.Repeat([]byte{byte(id)}, random.IntN(600))
		switch random.IntN(7) {
		case 0:
			err = errors.Join(err, fr.WriteDataPadded(id, false, data, make([]byte, random.IntN(255))))
		case 1:
			err = errors.Join(err, fr.WriteRSTStream(id, http2.ErrCodeCancel))
		case 2:
			err = errors.Join(err, fr.WritePing(true, [8]byte{byte(id)}), fr.WriteRawFrame(0x77, 3, id, data))
		case 3:
			err = errors.Join(err, fr.WriteGoAway(id, http2.ErrCodeNo, data), fr.WriteSettingsAck())
		case 4:
			err = errors.Join(err, fr.WriteWindowUpdate(id, 1+random.Uint32N(1<<30)), fr.WritePriority(id, http2.PriorityParam{StreamDep: 77}))
		default:
			err = errors.Join(err, fr.WriteData(id, random.IntN(2) == 0, data))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return wire.Bytes()
}

func server() *h2.Parser { return &h2.Parser{Server: true, MaxHeaderBytes: 8 << 10} }

// TestAgainstXNet compares with x/net/http2 over random connections, in one
// piece, byte by byte, and cut at random.
func TestAgainstXNet(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 2))
		wire := schedule(t, random, 30)
		want := oracle(t, wire)
		for _, piece := range []func() int{func() int { return len(wire) }, func() int { return 1 }, func() int { return 1 + random.IntN(200) }} {
			var got notes
			p := server()
			for rest := wire; len(rest) > 0; {
				n := min(piece(), len(rest))
				if err := p.Feed(rest[:n], &got); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				rest = rest[n:]
			}
			if !slices.Equal(got.list, want) {
				t.Fatalf("seed %d:\ngot  %q\nwant %q", seed, got.list, want)
			}
		}
	}
}

// TestSplitAtEveryByte cuts one connection in two, everywhere.
func TestSplitAtEveryByte(t *testing.T) {
	wire := schedule(t, rand.New(rand.NewPCG(1, 3)), 12)
	want := oracle(t, wire)
	for cut := range wire {
		var got notes
		p := server()
		if err := errors.Join(p.Feed(wire[:cut], &got), p.Feed(wire[cut:], &got)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.list, want) {
			t.Fatalf("cut at %d: got %q", cut, got.list)
		}
	}
}

func TestWriting(t *testing.T) {
	long := strings.Repeat("v", 1000)
	block := h2.AppendField(h2.AppendConnect(nil, "10.0.0.1:80"), "baggage", long)
	fields, err := hpack.NewDecoder(0, nil).DecodeFull(block)
	if err != nil || len(fields) != 3 || fields[0].Value != "CONNECT" || fields[1].Value != "10.0.0.1:80" || fields[2].Value != long {
		t.Errorf("%v, %v", fields, err)
	}
	for _, code := range []int{200, 401, 503} {
		fields, err := hpack.NewDecoder(0, nil).DecodeFull(h2.AppendStatus(nil, code))
		if err != nil || len(fields) != 1 || fields[0].Name != ":status" || fields[0].Value != fmt.Sprint(code) {
			t.Errorf("%d: %v, %v", code, fields, err)
		}
	}
	var got notes
	if err := new(h2.Parser).Feed(h2.AppendSettings(nil, http2.Setting{ID: 4, Val: 70000}), &got); err != nil || len(got.list) != 1 {
		t.Error(got.list, err)
	}
}

// TestPush: a server must not set ENABLE_PUSH to 1 (RFC 9113 section 6.5.2); a
// client may.
func TestPush(t *testing.T) {
	push := func(v uint32) []byte {
		return h2.AppendSettings(nil, http2.Setting{ID: http2.SettingEnablePush, Val: v})
	}
	var wrong *h2.Error
	if err := new(h2.Parser).Feed(push(1), &notes{}); !errors.As(err, &wrong) || wrong.Code != http2.ErrCodeProtocol {
		t.Errorf("a server's: %v", err)
	}
	if err := new(h2.Parser).Feed(push(0), &notes{}); err != nil {
		t.Errorf("a server's 0: %v", err)
	}
	client := h2.Parser{Server: true}
	if err := client.Feed(append([]byte(http2.ClientPreface), push(1)...), &notes{}); err != nil {
		t.Errorf("a client's: %v", err)
	}
}

func TestWindow(t *testing.T) {
	w := h2.NewWindow(100_000)
	if !w.Take(100_000) || w.Take(1) {
		t.Fatal("the window is not 100,000")
	}
	if inc := w.Give(10_000); inc != 0 {
		t.Errorf("an update of %d for a tenth", inc)
	}
	if inc := w.Give(20_000); inc != 30_000 {
		t.Errorf("an update of %d, want all that is owed", inc)
	}
	if !w.Take(30_000) || w.Take(1) {
		t.Error("the window is not 30,000")
	}
}

// FuzzParser: whatever comes, the parser neither panics nor holds more than a
// header and a frame, and a cut changes nothing.
func FuzzParser(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x09\x00\x00\x00\x01\x00"), 3)
	f.Add(append(h2.AppendSettings(nil), h2.AppendFrame(nil, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x88})...), 9)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		cut = min(max(cut, 0), len(b))
		var whole, parts notes
		p, q := &h2.Parser{MaxHeaderBytes: 1000}, &h2.Parser{MaxHeaderBytes: 1000}
		err := p.Feed(b, &whole)
		err2 := q.Feed(b[:cut], &parts)
		if err2 == nil {
			err2 = q.Feed(b[cut:], &parts)
		}
		if (err == nil) != (err2 == nil) || err == nil && !slices.Equal(whole.list, parts.list) {
			t.Errorf("cut at %d: %v %q, whole: %v %q", cut, err2, parts.list, err, whole.list)
		}
		tooMuch, wrong := (*flood.Error)(nil), (*h2.Error)(nil)
		if err != nil && !errors.As(err, &tooMuch) && !errors.As(err, &wrong) {
			t.Errorf("an error of no class: %v", err)
		}
	})
}
