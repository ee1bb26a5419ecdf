package http2_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// talk is what a peer says, written by x/net.
type talk struct {
	bytes.Buffer
	*xhttp2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newTalk() *talk {
	k := &talk{}
	k.Framer = xhttp2.NewFramer(&k.Buffer, nil)
	k.AllowIllegalWrites = true
	k.enc = hpack.NewEncoder(&k.block)
	return k
}

// client begins a client's connection.
func client() *talk {
	k := newTalk()
	k.WriteString(http2.Preface)
	must(k.WriteSettings())
	return k
}

// backend begins a backend's.
func backend() *talk {
	k := newTalk()
	must(k.WriteSettings())
	return k
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// compress makes a block of "name: value" lines; a pseudo-header field's name begins with a colon.
func (k *talk) compress(fields ...string) []byte {
	k.block.Reset()
	for _, f := range fields {
		i := strings.Index(f[1:], ": ") + 1
		must(k.enc.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+2:]}))
	}
	return bytes.Clone(k.block.Bytes())
}

func (k *talk) head(id uint32, end bool, fields ...string) *talk {
	const most = 1 << 14
	block := k.compress(fields...)
	part := block[:min(len(block), most)]
	block = block[len(part):]
	must(k.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndHeaders: len(block) == 0, EndStream: end}))
	for len(block) > 0 {
		part = block[:min(len(block), most)]
		block = block[len(part):]
		must(k.WriteContinuation(id, len(block) == 0, part))
	}
	return k
}

func (k *talk) get(id uint32, fields ...string) *talk {
	return k.head(id, true, append([]string{":method: GET", ":scheme: http", ":authority: h", ":path: /"}, fields...)...)
}

func (k *talk) post(id uint32, fields ...string) *talk {
	return k.head(id, false, append([]string{":method: POST", ":scheme: http", ":authority: h", ":path: /"}, fields...)...)
}

func (k *talk) data(id uint32, end bool, data string) *talk {
	must(k.WriteData(id, end, []byte(data)))
	return k
}

func (k *talk) raw(kind xhttp2.FrameType, flags xhttp2.Flags, id uint32, payload string) *talk {
	must(k.WriteRawFrame(kind, flags, id, []byte(payload)))
	return k
}

// side is a Conn, and what became of what it was given.
type side struct {
	*http2.Conn
	out   []byte
	steps []string
	err   error
	// hold leaves what comes unread.
	hold bool
	// on is what the owner does at an event.
	on func(s http2.Step)
}

func newSide(c *http2.Conn) *side {
	s := &side{Conn: c}
	s.out = c.Start(nil)
	return s
}

func server(c *http2.Config) *side { return newSide(http2.NewServer(c)) }

// feed gives the bytes in pieces, and writes down what is read. Data is joined, so that it does not show how the
// bytes were cut.
func (s *side) feed(wire []byte, piece func() int) *side {
	for {
		n := min(max(1, piece()), len(wire))
		part := wire[:n]
		for s.err == nil {
			var step http2.Step
			var used int
			s.out, used, step, s.err = s.Next(s.out, part)
			part = part[used:]
			if step.Event == http2.More {
				break
			}
			s.note(step)
			if s.on != nil {
				s.on(step)
			}
			if step.Event == http2.Data && !s.hold {
				s.out = s.Consumed(s.out, step.Stream, len(step.Data))
			}
		}
		if wire = wire[n:]; len(wire) == 0 || s.err != nil {
			return s
		}
	}
}

func (s *side) whole(k *talk) *side { return s.feed(k.Bytes(), func() int { return k.Len() }) }

func (s *side) note(step http2.Step) {
	line := ""
	switch step.Event {
	case http2.HeadRead:
		line = "head " + headLine(step.Head)
	case http2.Data:
		line = fmt.Sprintf("data %s", step.Data)
		if n := len(s.steps); n > 0 && strings.HasPrefix(s.steps[n-1], fmt.Sprintf("%d data", step.Stream)) {
			s.steps[n-1] += string(step.Data)
			return
		}
	case http2.End:
		line = strings.TrimSpace("end " + fieldLines(step.Trailers))
	case http2.Reset:
		line = fmt.Sprintf("reset %v %v", step.Err.Reason, step.Err.Code)
		if step.Retry {
			line += " retry"
		}
	case http2.Refused:
		line = fmt.Sprintf("refused %v", step.Err.Reason)
	case http2.Writable:
		line = "writable"
	case http2.GoAway:
		line = fmt.Sprintf("goaway %v", step.Err.Code)
	case http2.Pong:
		line = "pong"
	}
	s.steps = append(s.steps, fmt.Sprintf("%d %s", step.Stream, line))
}

func headLine(h *http1.Head) string {
	start := fmt.Sprint(h.Status)
	if h.Status == 0 {
		start = fmt.Sprintf("%s %s %s", h.Method, h.Path, h.Host)
	}
	return strings.TrimSpace(fmt.Sprintf("%s %d %s", start, h.Length, fieldLines(h.Fields)))
}

func fieldLines(fields []http1.Field) string {
	var lines []string
	for _, f := range fields {
		lines = append(lines, fmt.Sprintf("%s=%s", f.Name, f.Value))
	}
	return strings.Join(lines, "|")
}

// said is what a side has said to its peer, as x/net reads it, without SETTINGS and WINDOW_UPDATE.
func said(t testing.TB, out []byte) (lines []string) {
	t.Helper()
	if bytes.HasPrefix(out, []byte(http2.Preface)) {
		out = out[len(http2.Preface):]
	}
	fr := xhttp2.NewFramer(nil, bytes.NewReader(out))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			if err.Error() != "EOF" {
				t.Fatalf("x/net cannot read what we say: %v\n%q", err, out)
			}
			return lines
		}
		switch f := f.(type) {
		case *xhttp2.MetaHeadersFrame:
			var fields []string
			for _, h := range f.Fields {
				fields = append(fields, h.Name+"="+h.Value)
			}
			lines = append(lines, fmt.Sprintf("%d head %v %s", f.StreamID, f.StreamEnded(), strings.Join(fields, "|")))
		case *xhttp2.DataFrame:
			lines = append(lines, fmt.Sprintf("%d data %v %s", f.StreamID, f.StreamEnded(), f.Data()))
		case *xhttp2.RSTStreamFrame:
			lines = append(lines, fmt.Sprintf("%d reset %v", f.StreamID, f.ErrCode))
		case *xhttp2.GoAwayFrame:
			lines = append(lines, fmt.Sprintf("goaway %d %v", f.LastStreamID, f.ErrCode))
		case *xhttp2.PingFrame:
			lines = append(lines, fmt.Sprintf("ping %v", f.IsAck()))
		}
	}
}

// head makes a head as http1 or a server reads it.
func requestHead(t testing.TB, fields ...string) *http1.Head {
	t.Helper()
	var to http1.Head
	k := client()
	s := server(http2.Defaults())
	s.on = func(step http2.Step) {
		if step.Event == http2.HeadRead {
			step.Head.CopyTo(&to)
		}
	}
	if s.whole(k.head(1, false, fields...)); len(to.Method) == 0 {
		t.Fatalf("no head: %q, %v", s.steps, s.err)
	}
	return &to
}

func responseHead(t testing.TB, status int, fields ...string) *http1.Head {
	t.Helper()
	h := &http1.Head{}
	h.Begin()
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		field, r := http1.CheckField([]byte(name), []byte(value))
		if r != 0 {
			t.Fatal(r)
		}
		h.Fields = append(h.Fields, field)
	}
	if r := h.JudgeResponse(status, false, false); r != 0 {
		t.Fatal(r)
	}
	return h
}
