package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// readChunkSize reads the line before a chunk: its size and extensions (RFC 9112 section 7.1).
func (p *Parser) readChunkSize(in []byte) (n int, whole bool, r Reason) {
	i := bytes.IndexByte(in, '\n')
	n = i + 1
	if i < 0 {
		n = len(in)
	}
	text := in[:n]
	if len(p.buf) > 0 || i < 0 {
		p.buf = append(p.buf, text...)
		text = p.buf
	}
	if len(text) > maxSizeDigits+p.config.ExtensionBytes+len("\r\n") {
		if grammar.Span(text, grammar.Hex) > maxSizeDigits {
			return n, false, reason.BadChunkSize
		}
		return n, false, reason.ExtensionsTooLarge
	}
	if i < 0 {
		return n, false, 0
	}
	p.buf = p.buf[:0]
	if len(text) < 2 || text[len(text)-2] != '\r' {
		return n, false, reason.BareLF
	}
	return n, true, p.beginChunk(text[:len(text)-2])
}

// beginChunk reads size [extensions].
func (p *Parser) beginChunk(text []byte) Reason {
	digits := grammar.Span(text, grammar.Hex)
	if digits == 0 || digits > maxSizeDigits {
		return firstWrong(text, digits, reason.BadChunkSize)
	}
	size := uint64(0)
	for _, c := range text[:digits] {
		size = size<<4 | grammar.HexValue(c)
	}
	if at, begun, ok := grammar.Extensions(text[digits:]); !ok && begun {
		return firstWrong(text[digits:], at, reason.BadChunkExtension)
	} else if !ok {
		return firstWrong(text[digits:], at, reason.BadChunkSize)
	}
	if p.extension += len(text) - digits; p.extension > p.config.ExtensionBytes {
		return reason.ExtensionsTooLarge
	}
	if size > maxLength-uint64(p.body) {
		return reason.BadChunkSize
	}
	p.body += int64(size)
	if limit := p.config.BodyBytes; limit > 0 && p.body > limit && !p.responses {
		return reason.BodyTooLarge
	}
	if p.state, p.left = inChunk, int64(size); size == 0 {
		p.state, p.started, p.at, p.lines = inTrailers, true, 0, p.lines[:0]
	}
	return 0
}

// wrong is the reason for a byte that stands where it must not.
func wrong(c byte, otherwise Reason) Reason {
	switch {
	case c == '\r':
		return reason.BareCR
	case c < ' ' && c != '\t' || c == 0x7f:
		return reason.ControlByte
	}
	return otherwise
}

// badChunkEnd is the reason for a byte that is not the CR, or not the LF, behind a chunk.
func badChunkEnd(c byte, at int) Reason {
	switch {
	case c == '\n':
		return reason.BareLF
	case at == 1:
		return reason.BareCR
	}
	return reason.BadChunkEnd
}
