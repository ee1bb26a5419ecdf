package http2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// conversation is what a client says, written by x/net: requests that overlap, in every form that a head and a body can
// have, with all the other frames between them.
func conversation(random *rand.Rand, streams int) *talk {
	k := client()
	must(k.WriteSettingsAck())
	var open []uint32
	next := uint32(1)
	pick := func(choices ...string) string { return choices[random.IntN(len(choices))] }
	for len(open) > 0 || next < uint32(2*streams) {
		if len(open) == 0 || next < uint32(2*streams) && random.IntN(3) == 0 {
			fields := []string{":method: " + pick("GET", "POST", "PUT", "HEAD", "OPTIONS", "BREW"), ":scheme: " + pick("http", "https"),
				":authority: " + pick("h", "shop.example.com:8080", "[::1]:80"), ":path: " + pick("/", "/a/b?c=d", "/%41", "/"+strings.Repeat("p", random.IntN(2000)))}
			for range random.IntN(6) {
				fields = append(fields, pick("x-a: ", "accept: ", "user-agent: ", "cookie: ", "x-long-name-of-a-field: ")+strings.Repeat(pick("v", "w", "é", "~"), random.IntN(100)))
			}
			end := random.IntN(3) == 0
			k.cutHead(random, next, end, fields)
			if next += 2; !end {
				open = append(open, next-2)
			}
			continue
		}
		i := random.IntN(len(open))
		id := open[i]
		data := bytes.Repeat([]byte{byte('a' + id%26)}, random.IntN(300))
		closed := false
		switch random.IntN(12) {
		case 0:
			must(k.WriteDataPadded(id, false, data, make([]byte, random.IntN(256))))
		case 1:
			closed = true
			must(k.WriteRSTStream(id, xhttp2.ErrCodeCancel))
		case 2:
			must(k.WriteWindowUpdate(id, 1+random.Uint32N(1000)))
		case 3:
			must(k.WriteWindowUpdate(0, 1+random.Uint32N(1000)))
			must(k.WritePing(random.IntN(2) == 0, [8]byte{byte(id)}))
		case 4:
			must(k.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: random.Uint32N(1 << 20)}, xhttp2.Setting{ID: 0x77, Val: 1}))
		case 5:
			must(k.WritePriority(id, xhttp2.PriorityParam{StreamDep: 999, Weight: 7}))
			k.raw(0x66, 0x7, id, "unknown")
		case 6:
			closed = true
			k.cutHead(random, id, true, []string{"x-sum: " + pick("1", "2"), "grpc-status: 0"})
		case 7, 8:
			closed = true
			k.data(id, true, string(data))
		default:
			k.data(id, false, string(data)+"x")
		}
		if closed {
			open = slices.Delete(open, i, i+1)
		}
	}
	return k
}

// cutHead writes a head in as many frames as it happens to be cut in.
func (k *talk) cutHead(random *rand.Rand, id uint32, end bool, fields []string) {
	block := k.compress(fields...)
	cut := func() (part []byte) {
		n := len(block)
		if random.IntN(2) == 0 {
			n = random.IntN(n + 1)
		}
		n = min(n, 1<<14-300)
		part, block = block[:n], block[n:]
		return part
	}
	p := xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: cut(), EndStream: end, EndHeaders: len(block) == 0}
	if random.IntN(3) == 0 {
		p.PadLength, p.Priority = uint8(random.IntN(256)), xhttp2.PriorityParam{StreamDep: 1 << 30, Weight: 1}
	}
	must(k.WriteHeaders(p))
	for done := p.EndHeaders; !done; {
		part := block
		if random.IntN(3) > 0 {
			part = cut()
		} else {
			block = nil
		}
		done = len(block) == 0
		must(k.WriteContinuation(id, done, part))
	}
}

// byStream are the messages that x/net reads, as a side notes them: what comes of one stream, in its order.
func byStream(t testing.TB, wire []byte) map[uint32][]string {
	t.Helper()
	got := map[uint32][]string{}
	fr := xhttp2.NewFramer(nil, bytes.NewReader(wire[len(http2.Preface):]))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	add := func(id uint32, format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		if n := len(got[id]); n > 0 && strings.HasPrefix(line, "data ") && strings.HasPrefix(got[id][n-1], "data ") {
			got[id][n-1] += line[len("data "):]
			return
		}
		got[id] = append(got[id], line)
	}
	for {
		f, err := fr.ReadFrame()
		if errors.Is(err, io.EOF) {
			return got
		} else if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *xhttp2.MetaHeadersFrame:
			if f.PseudoValue("method") == "" {
				add(f.StreamID, "end %s", xFields(f.RegularFields()))
				continue
			}
			add(f.StreamID, "%s", strings.TrimSpace(fmt.Sprintf("head %s %s %s -1 %s", f.PseudoValue("method"), f.PseudoValue("path"), f.PseudoValue("authority"), xFields(f.RegularFields()))))
			if f.StreamEnded() {
				add(f.StreamID, "end")
			}
		case *xhttp2.DataFrame:
			if len(f.Data()) > 0 {
				add(f.StreamID, "data %s", f.Data())
			}
			if f.StreamEnded() {
				add(f.StreamID, "end")
			}
		case *xhttp2.RSTStreamFrame:
			add(f.StreamID, "reset reset_by_peer %v", f.ErrCode)
		}
	}
}

// xFields joins the cookies that say something, and takes blanks off, as we do.
func xFields(fields []hpack.HeaderField) string {
	var lines []string
	cookie := -1
	for _, f := range fields {
		value := strings.Trim(f.Value, " \t")
		if f.Name == "cookie" && cookie >= 0 {
			if value != "" && lines[cookie] != "cookie=" {
				value = "; " + value
			}
			lines[cookie] += value
			continue
		} else if f.Name == "cookie" {
			cookie = len(lines)
		}
		lines = append(lines, f.Name+"="+value)
	}
	return strings.Join(lines, "|")
}

// oursByStream are those that we have read.
func oursByStream(steps []string) map[uint32][]string {
	got := map[uint32][]string{}
	for _, line := range steps {
		var id uint32
		_, _ = fmt.Sscan(line, &id)
		_, line, _ = strings.Cut(line, " ")
		if n := len(got[id]); n > 0 && strings.HasPrefix(line, "data ") && strings.HasPrefix(got[id][n-1], "data ") {
			got[id][n-1] += line[len("data "):]
			continue
		}
		if id != 0 {
			got[id] = append(got[id], line)
		}
	}
	return got
}

func sameStreams(a, b map[uint32][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for id := range a {
		if !slices.Equal(a[id], b[id]) {
			return false
		}
	}
	return true
}

// generous is a config that a random conversation stays within.
func generous() *http2.Config {
	c := http2.Defaults()
	c.Streams, c.HeadFrames = 10_000, 1000
	for i := range c.Rates {
		c.Rates[i] = http2.Rate{Burst: 1e6, PerSecond: 1e6}
	}
	return c
}

// TestReadsAsXNet: random conversations are what x/net reads of them, in one piece, byte by byte, and cut at random.
func TestReadsAsXNet(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 9113))
		k := conversation(random, 20)
		want := byStream(t, k.Bytes())
		for _, piece := range []func() int{func() int { return k.Len() }, func() int { return 1 }, func() int { return 1 + random.IntN(200) }} {
			s := server(generous()).feed(k.Bytes(), piece)
			if got := oursByStream(s.steps); s.err != nil || !sameStreams(got, want) {
				t.Fatalf("seed %d: %v\n%v\nwant %v", seed, s.err, got, want)
			}
			said(t, s.out)
		}
	}
}

// TestSplitAtEveryByte cuts a conversation in two, everywhere.
func TestSplitAtEveryByte(t *testing.T) {
	k := conversation(rand.New(rand.NewPCG(7, 7)), 5)
	want := server(generous()).whole(k)
	for cut := 1; cut < k.Len(); cut++ {
		sizes := []int{cut, k.Len()}
		s := server(generous()).feed(k.Bytes(), func() int { n := sizes[0]; sizes = append(sizes[1:], k.Len()); return n })
		if s.err != nil || !slices.Equal(s.steps, want.steps) || !bytes.Equal(s.out, want.out) {
			t.Fatalf("cut at %d: %v\n%q\nwant %q", cut, s.err, s.steps, want.steps)
		}
	}
}

// TestXNetReadsUs: what a client of ours writes, x/net and a server of ours read alike, in whatever order it is written.
func TestXNetReadsUs(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7541))
		c := newSide(http2.NewClient(generous()))
		source := conversation(random, 20)
		from := server(generous())
		streams := map[uint32]uint32{}
		from.on = func(step http2.Step) {
			id := streams[step.Stream]
			switch step.Event {
			case http2.HeadRead:
				var err error
				if c.out, streams[step.Stream], err = c.Open(c.out, step.Head, nil); err != nil {
					t.Fatal(err)
				}
			case http2.Data:
				c.out, _ = c.Data(c.out, id, step.Data)
			case http2.End:
				c.out = c.End(c.out, id, step.Trailers)
			case http2.Reset:
				c.out = c.Conn.Reset(c.out, id, http2.Cancel)
			}
		}
		from.whole(source)
		to := server(generous()).feed(c.out, func() int { return 1 + random.IntN(300) })
		want := byStream(t, c.out)
		if got := oursByStream(to.steps); to.err != nil || from.err != nil || !sameStreams(got, want) {
			t.Fatalf("seed %d: %v\n%v\nwant %v", seed, to.err, got, want)
		}
		for id, lines := range byStream(t, source.Bytes()) { // nothing was lost on the way through us
			if end := lines[len(lines)-1]; strings.HasPrefix(end, "end") && !slices.Equal(want[streams[id]], lines) {
				t.Fatalf("seed %d: %q\nbecame %q", seed, lines, want[streams[id]])
			}
		}
	}
}

// bent is a conversation with a few things wrong in it.
func bent(random *rand.Rand) []byte {
	wire := bytes.Clone(conversation(random, 4).Bytes())
	body := wire[len(http2.Preface):]
	for range 1 + random.IntN(3) {
		if random.IntN(3) == 0 {
			body[random.IntN(len(body))] = byte(random.Uint32())
			continue
		}
		var at []int
		for i := 0; i+9 <= len(body); i += 9 + int(body[i])<<16 + int(body[i+1])<<8 + int(body[i+2]) {
			at = append(at, i)
		}
		head := body[at[random.IntN(len(at))]:]
		switch random.IntN(4) {
		case 0:
			head[2] = byte(int(head[2]) + random.IntN(9) - 4)
		case 1:
			head[3] = byte(random.IntN(11))
		case 2:
			head[4] = byte(random.Uint32())
		default:
			head[8] = byte(random.IntN(12))
		}
	}
	return wire
}

// framerSays is whether x/net's Framer ends the connection. It judges PRIORITY_UPDATE (RFC 9218 section 7.1), too, which is
// to us a frame without meaning, to be read over.
func framerSays(wire []byte) error {
	const priorityUpdate = 0x10
	body := wire[len(http2.Preface):]
	for i := 0; i+9 <= len(body); i += 9 + int(body[i])<<16 + int(body[i+1])<<8 + int(body[i+2]) {
		if body[i+3] == priorityUpdate {
			return nil
		}
	}
	fr := xhttp2.NewFramer(nil, bytes.NewReader(wire[len(http2.Preface):]))
	fr.SetMaxReadFrameSize(1 << 14)
	for {
		if _, err := fr.ReadFrame(); err != nil {
			if _, ok := errors.AsType[xhttp2.StreamError](err); ok {
				continue
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}
	}
}

// TestBent: what x/net's Framer ends a connection for, we do too; no cut changes a verdict; and whatever comes, what we
// say to the peer is well-formed, and each stream is told of once.
func TestBent(t *testing.T) {
	refused := 0
	for seed := range uint64(1500) {
		random := rand.New(rand.NewPCG(seed, 1))
		wire := bent(random)
		refused += checkBent(t, wire, func() int { return 1 + random.IntN(50) })
	}
	if refused < 500 {
		t.Errorf("%d connections refused: there is too little wrong in them to show anything", refused)
	}
}

func checkBent(t testing.TB, wire []byte, piece func() int) (refused int) {
	t.Helper()
	whole := server(generous()).feed(wire, func() int { return len(wire) })
	parts := server(generous()).feed(wire, piece)
	if fmt.Sprint(whole.err) != fmt.Sprint(parts.err) || !slices.Equal(whole.steps, parts.steps) || !bytes.Equal(whole.out, parts.out) {
		t.Fatalf("%q %v\nin pieces %q %v\n%x", whole.steps, whole.err, parts.steps, parts.err, wire)
	}
	if bytes.HasPrefix(wire, []byte(http2.Preface)) {
		if err := framerSays(wire); err != nil && whole.err == nil {
			t.Fatalf("only x/net refuses: %v\n%q\n%x", err, whole.steps, wire)
		}
	}
	said(t, whole.out)
	checkOrder(t, whole.steps)
	if whole.err != nil {
		refused = 1
	}
	return refused
}

// checkOrder: a stream is a head, a body, an end or a reset, in this order; nothing comes of one that was refused.
func checkOrder(t testing.TB, steps []string) {
	t.Helper()
	state := map[uint32]string{}
	for _, line := range steps {
		var id uint32
		var what string
		_, _ = fmt.Sscan(line, &id, &what)
		before := state[id]
		ok := id == 0
		switch what {
		case "writable": // at any time, while it is there
			if before == "" || before == "reset" || before == "refused" {
				t.Fatalf("%q behind %q: %q", what, before, steps)
			}
			continue
		case "head", "refused":
			ok = before == ""
		case "data":
			ok = before == "head" || before == "data"
		case "end":
			ok = before == "head" || before == "data"
		case "reset":
			ok = before != "" && before != "reset" && before != "refused"
		}
		if state[id] = what; !ok {
			t.Fatalf("%q behind %q: %q", what, before, steps)
		}
	}
}
