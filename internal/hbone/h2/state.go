package h2

import (
	"errors"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// firstDynamic is the index of the dynamic table's newest entry (RFC 7541
	// section 2.3.3).
	firstDynamic = 62
	// entryOverhead is what an entry counts beside its strings (section 4.1).
	entryOverhead = 32
	// maxHeaderList bounds MaxHeaderBytes of a state.
	maxHeaderList = 1 << 20
)

// ParserState is a Parser as a plain value, at any point between two calls of
// Feed.
type ParserState struct {
	Server         bool
	MaxHeaderBytes int
	Preface        int  `json:",omitzero"`
	Started        bool `json:",omitzero"`
	// Head is what came of a frame's header, Left the bytes of its payload to
	// come, Payload those that came, unless it is DATA; Padding is DATA's.
	Head    []byte `json:",omitempty"`
	Left    int    `json:",omitzero"`
	Payload []byte `json:",omitempty"`
	Padding int    `json:",omitzero"`
	// Block is a header without END_HEADERS; nil for none.
	Block *BlockState `json:",omitempty"`
	// Table is the decoder's dynamic table, newest first.
	Table []Field `json:",omitempty"`
}

// BlockState is the beginning of a header that CONTINUATIONs follow.
type BlockState struct {
	ID     uint32
	End    bool
	Bytes  []byte
	Frames int
}

// Field is an entry of the dynamic table. Its strings may be any bytes.
type Field struct{ Name, Value []byte }

// State returns a copy of what NewParser needs to go on.
func (p *Parser) State() ParserState {
	s := ParserState{
		Server: p.Server, MaxHeaderBytes: p.MaxHeaderBytes, Preface: p.preface, Started: p.started,
		Head: append([]byte(nil), p.head[:p.have]...), Left: p.left, Payload: append([]byte(nil), p.payload...), Padding: p.padding,
		Table: p.table(),
	}
	if p.block.open {
		s.Block = &BlockState{ID: p.block.id, End: p.block.end, Bytes: append([]byte(nil), p.block.bytes...), Frames: p.block.frames}
	}
	return s
}

// table reads the dynamic table out of the decoder, which shows it to nobody but
// a peer: an indexed field (RFC 7541 section 6.1) emits an entry and changes
// nothing. The first index beyond the table is an error, which Close clears.
func (p *Parser) table() (fields []Field) {
	if p.decoder == nil {
		return nil
	}
	p.decoder.SetEmitFunc(func(f hpack.HeaderField) {
		fields = append(fields, Field{[]byte(f.Name), []byte(f.Value)})
	})
	defer p.decoder.SetEmitFunc(func(hpack.HeaderField) {})
	for i := firstDynamic; ; i++ {
		_, err := p.decoder.Write(appendInteger(nil, 0x80, 127, i))
		_ = p.decoder.Close() // fails on half a field only
		if err != nil {
			return fields
		}
	}
}

// NewParser goes on from a state, or says that no parser can have it.
func NewParser(s ParserState) (Parser, error) {
	p := Parser{Server: s.Server, MaxHeaderBytes: s.MaxHeaderBytes, preface: s.Preface, started: s.Started, left: s.Left, payload: s.Payload, padding: s.Padding}
	switch {
	case s.MaxHeaderBytes <= 0 || s.MaxHeaderBytes > maxHeaderList || s.Preface < 0 || s.Preface > len(http2.ClientPreface):
		return p, errors.New("parser's bounds out of range")
	case s.Server && s.Started && s.Preface != len(http2.ClientPreface):
		return p, errors.New("frames before the end of the preface")
	case len(s.Head) > HeaderBytes || s.Left < 0 || s.Padding < -1 || s.Padding > 255:
		return p, errors.New("no state of a frame")
	}
	p.have = copy(p.head[:], s.Head)
	if err := p.checkFrame(); err != nil {
		return p, err
	}
	if b := s.Block; b != nil {
		if b.ID == 0 || b.Frames < 0 || b.Frames > maxContinuations || len(b.Bytes) > 2*p.MaxHeaderBytes+MaxFrame {
			return p, errors.New("no state of a header")
		}
		p.block.open, p.block.id, p.block.end, p.block.bytes, p.block.frames = true, b.ID, b.End, b.Bytes, b.Frames
	}
	return p, p.fill(s.Table)
}

// checkFrame wants the payload to be what the frame's header says.
func (p *Parser) checkFrame() error {
	wrong := errors.New("payload of another length than its frame")
	if p.have < HeaderBytes {
		if p.left > 0 && p.have > 0 || len(p.payload) > 0 {
			return wrong
		}
		return nil
	}
	came := p.length() - p.left
	switch {
	case !p.started || p.length() > MaxFrame || p.left == 0 || came < 0:
		return wrong
	case p.kind() == http2.FrameData && len(p.payload) > 0, p.kind() != http2.FrameData && len(p.payload) != came:
		return wrong
	}
	return nil
}

// fill makes a decoder with a table, by literals that go into it (RFC 7541
// section 6.2.1), the oldest first. Its bound is the largest that a peer may
// use: entries that a smaller one would have dropped have indexes that the peer
// does not use.
func (p *Parser) fill(table []Field) error {
	if len(table) == 0 {
		return nil
	}
	size := 0
	var block []byte
	for i := len(table) - 1; i >= 0; i-- {
		f := table[i]
		size += len(f.Name) + len(f.Value) + entryOverhead
		block = appendString(appendString(append(block, 0x40), string(f.Name)), string(f.Value))
	}
	if size > decoderTable {
		return errors.New("table larger than a decoder's")
	}
	p.decoder = hpack.NewDecoder(decoderTable, func(hpack.HeaderField) {})
	_, err := p.decoder.Write(block)
	return errors.Join(err, p.decoder.Close())
}
