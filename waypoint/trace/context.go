package trace

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"

	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
)

// ID is of a trace, and of its spans. All zero is none.
type (
	ID     [16]byte
	SpanID [8]byte
)

// form is how a client says what its request belongs to.
type form uint8

const (
	none   form = iota
	w3c         // traceparent and tracestate (W3C Trace Context)
	single      // b3, one field (openzipkin/b3-propagation)
	multi       // x-b3-traceid and its like
)

// decision is what the client says of sampling.
type decision uint8

const (
	open decision = iota // nothing
	drop
	keep
)

// Context is what a request belongs to, and the span that it has here. It is used for one request after the
// other, by one goroutine.
type Context struct {
	Trace  ID
	Parent SpanID // zero for the first one of its trace
	Span   SpanID
	// Sampled says that the span is told of, and that those after it ought to be.
	Sampled bool

	came    form
	wants   decision
	stale   bool                            // a tracestate came that belongs to no traceparent
	written [parentBytes + singleBytes]byte // as long as the fields of either form of B3
}

const (
	parentBytes = len("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
	singleBytes = len("0123456789abcdef0123456789abcdef-0123456789abcdef-1-0123456789abcdef")
)

// The names of the fields, in lower case.
const (
	traceparent, tracestate                           = "traceparent", "tracestate"
	b3, b3Trace, b3Span, b3Parent, b3Sampled, b3Flags = "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"
)

// Read takes in what the fields of a request say. What is not as it has to be is as if it were not there: a new trace begins.
// Of several forms W3C's counts, then the single field of B3.
func (c *Context) Read(fields []http1.Field) {
	*c = Context{}
	var parents, states int
	var parent, one []byte
	var b multiple
	for i := range fields {
		f := &fields[i]
		switch n := f.Name; len(n) {
		case len(b3):
			if grammar.FoldEqual(n, b3) {
				one = f.Value
			}
		case len(traceparent):
			if grammar.FoldEqual(n, traceparent) {
				parents++
				parent = f.Value
			} else {
				b.read(f)
			}
		case len(tracestate):
			if grammar.FoldEqual(n, tracestate) {
				states++
			} else {
				b.read(f)
			}
		default:
			b.read(f)
		}
	}
	ok := parents == 1 && c.readParent(parent)
	c.stale = states > 0 && !ok
	if !ok && !c.readSingle(one) {
		c.readMultiple(&b)
	}
}

// readParent reads a traceparent (W3C Trace Context, section 3.2): of versions after 00 what 00 has.
func (c *Context) readParent(v []byte) bool {
	if len(v) < parentBytes || v[2] != '-' || v[35] != '-' || v[52] != '-' || len(v) > parentBytes && (v[parentBytes] != '-' || string(v[:2]) == "00") {
		return false
	}
	var version, flags [1]byte
	if !unhex(version[:], v[:2]) || version[0] == 0xff || !unhex(flags[:], v[53:55]) {
		return false
	}
	c.wants = drop
	if flags[0]&1 == 1 {
		c.wants = keep
	}
	return c.ids(w3c, v[3:35], v[36:52])
}

// ids takes an ID and the parent's, neither of which may be all zeroes.
func (c *Context) ids(came form, id, parent []byte) bool {
	var t ID
	var p SpanID
	into := t[:]
	if came != w3c && len(id) == 16 { // B3 has short ones, too
		into = t[8:]
	}
	if !unhex(into, id) || !unhex(p[:], parent) || t == (ID{}) || p == (SpanID{}) {
		c.wants = open
		return false
	}
	c.came, c.Trace, c.Parent = came, t, p
	return true
}

// readSingle reads the field b3: "TRACE-SPAN-SAMPLED-PARENT", of which the last two may lack, or SAMPLED alone.
func (c *Context) readSingle(v []byte) bool {
	id, rest, ok := bytes.Cut(v, []byte("-"))
	if !ok {
		c.wants = sampled(id)
		if c.wants != open {
			c.came = single
		}
		return c.wants != open
	}
	span, rest, _ := bytes.Cut(rest, []byte("-"))
	state, _, _ := bytes.Cut(rest, []byte("-"))
	c.wants = sampled(state)
	return c.ids(single, id, span)
}

// sampled reads what B3 says of sampling: "d" is debug.
func sampled(v []byte) decision {
	switch string(v) {
	case "0", "false":
		return drop
	case "1", "d", "true":
		return keep
	}
	return open
}

// multiple are the fields of B3 that have a part each.
type multiple struct{ trace, span, sampled, flags []byte }

func (b *multiple) read(f *http1.Field) {
	switch n := f.Name; {
	case len(n) < len(b3Flags) || n[0]|0x20 != 'x' || n[2]|0x20 != 'b' || n[3] != '3':
	case grammar.FoldEqual(n, b3Trace):
		b.trace = f.Value
	case grammar.FoldEqual(n, b3Span):
		b.span = f.Value
	case grammar.FoldEqual(n, b3Sampled):
		b.sampled = f.Value
	case grammar.FoldEqual(n, b3Flags):
		b.flags = f.Value
	}
}

func (c *Context) readMultiple(b *multiple) {
	c.wants = sampled(b.sampled)
	if string(b.flags) == "1" {
		c.wants = keep
	}
	wants := c.wants
	if !c.ids(multi, b.trace, b.span) && wants != open {
		c.wants, c.came = wants, multi // a decision, without a trace
	}
}

// Begin gives the request its span, in the trace that it belongs to or a new one. The client decides whether
// it is sampled; where it says nothing the rules do.
func (c *Context) Begin(rules *sample.Rules, service, path string) {
	if c.Trace == (ID{}) {
		fill(c.Trace[:8])
		fill(c.Trace[8:])
	}
	fill(c.Span[:])
	switch c.wants {
	case open:
		c.Sampled = rules.Want(service, path)
	default:
		c.Sampled = c.wants == keep
	}
}

// fill draws octets that are not all zero.
func fill(b []byte) {
	for n := rand.Uint64(); ; n = rand.Uint64() {
		for i := range b {
			b[i] = byte(n >> (8 * i))
		}
		if n != 0 {
			return
		}
	}
}

// Write appends what takes the place of the client's fields: traceparent always, and B3 in the form in which it
// came. Values lie in c, until it is used again.
func (c *Context) Write(remove []string, add []http1.Field, names *Names) ([]string, []http1.Field) {
	flag, bit := byte('0'), "00"
	if c.Sampled {
		flag, bit = '1', "01"
	}
	at := c.written[:0]
	put := func(name []byte, parts ...[]byte) {
		from := len(at)
		for i, p := range parts {
			if i > 0 {
				at = append(at, '-')
			}
			at = append(at, p...)
		}
		add = append(add, http1.Field{Name: name, Value: at[from:len(at):len(at)]})
	}
	var id [32]byte
	var span, parent [16]byte
	hex.Encode(id[:], c.Trace[:])
	hex.Encode(span[:], c.Span[:])
	hex.Encode(parent[:], c.Parent[:])
	at = append(append(append(append(append(append(at, "00-"...), id[:]...), '-'), span[:]...), '-'), bit...)
	add = append(add, http1.Field{Name: names.parent, Value: at[:len(at):len(at)]})
	remove = append(remove, traceparent)
	if c.stale {
		remove = append(remove, tracestate)
	}
	switch c.came {
	case single:
		put(names.b3, id[:], span[:], []byte{flag})
		if c.Parent != (SpanID{}) {
			last := &add[len(add)-1]
			at = append(append(at, '-'), parent[:]...)
			last.Value = at[parentBytes:len(at):len(at)]
		}
		remove = append(remove, b3)
	case multi:
		put(names.trace, id[:])
		put(names.span, span[:])
		put(names.sampled, []byte{flag})
		remove = append(remove, b3Trace, b3Span, b3Sampled, b3Flags, b3Parent)
		if c.Parent != (SpanID{}) {
			put(names.above, parent[:])
		}
	}
	return remove, add
}

// Names are those of the fields that are written.
type Names struct{ parent, b3, trace, span, sampled, above []byte }

// NewNames returns them.
func NewNames() *Names {
	return &Names{[]byte(traceparent), []byte(b3), []byte(b3Trace), []byte(b3Span), []byte(b3Sampled), []byte(b3Parent)}
}

// unhex reads lower-case hexadecimal digits (RFC 4648, section 8), of which text has to be just as many.
func unhex(to, text []byte) bool {
	if len(text) != 2*len(to) {
		return false
	}
	for _, d := range text {
		if 'A' <= d && d <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(to, text)
	return err == nil
}
