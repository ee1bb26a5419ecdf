// Package wire reads and makes DNS messages as far as a forwarder needs it: it
// finds its way through any message without looking into records that it does not
// know, and changes in place what a forwarder has to change (RFC 1035, RFC 6891).
// What was read goes on byte for byte: no record type has to be known.
//
// Everything is bounded by the message's length. It knows no sockets and no time.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Sizes and codes of RFC 1035, section 4.1, and RFC 6891, section 6.1.
const (
	headerLen = 12
	recordLen = 10 // after the name: type, class, TTL, length
	maxName   = 255

	// SmallestUDP is what a client takes over UDP that says nothing else.
	SmallestUDP = 512
	// LargestUDP is what is asked of upstream over UDP: what passes any link
	// without fragments, which the gate drops.
	LargestUDP = 1232
	// Largest is the largest message that there is.
	Largest = 65535
)

// Record types, and the class IN.
const (
	TypeA     = 1
	typeNS    = 2
	typeCNAME = 5
	TypeSOA   = 6
	typePTR   = 12
	typeMX    = 15
	typeTXT   = 16
	TypeAAAA  = 28
	typeSRV   = 33
	TypeOPT   = 41
	typeHTTPS = 65
	typeIXFR  = 251
	typeAXFR  = 252
	TypeANY   = 255

	classIN = 1
)

// Header flags.
const (
	flagResponse  = 1 << 15
	opcodeMask    = 0xf << 11
	flagAuthority = 1 << 10
	flagTruncated = 1 << 9
	flagRecursion = 1 << 8 // desired
	flagAvailable = 1 << 7
	flagAuthentic = 1 << 5
	flagUnchecked = 1 << 4
	rcodeMask     = 0xf

	ednsDO = 1 << 15
)

// Response codes.
const (
	NoError       = 0
	FormatError   = 1
	ServerFailure = 2
	NameError     = 3
	Refused       = 5
)

// EDNS options (RFC 7871 and others) that are between two neighbours only, and
// that one that we say something by (RFC 8914).
const (
	optionCookie    = 10
	optionKeepalive = 11
	optionPadding   = 12
	optionError     = 15
)

// ErrMalformed says that bytes are no DNS message; ErrNoQuery that they are no
// query, so that nobody waits for an answer.
var (
	ErrMalformed = errors.New("malformed DNS message")
	ErrNoQuery   = errors.New("not a DNS query")
)

// Query is a query as a client sent it.
type Query struct {
	// ID is the client's.
	ID uint16
	// Name is the name in wire form and lower case, Type and Class what is
	// asked of it. They are set for a query with one question.
	Name        string
	Type, Class uint16
	// EDNS says that the client understands it, Size what it takes over UDP, and
	// DNSSEC that it wants signatures.
	EDNS   bool
	Size   uint16
	DNSSEC bool
	// Plain queries have equal answers, whoever asks. Others go to upstream as
	// they are, and the answer to nobody else.
	Plain bool
	// Transfer queries have more than one message for an answer.
	Transfer bool

	raw      []byte
	question []byte // as sent
	flags    uint16
	sizeAt   int // in raw, of what the client takes over UDP; 0: it may not be changed
}

// record is a resource record's place in a message.
type record struct {
	section    int // 0 answer, 1 authority, 2 additional
	start, end int
	fixed      int // where its type is
	kind       uint16
}

// layout is where things are in a message.
type layout struct {
	flags   uint16
	counts  [4]int
	name    string // of the first question, lower case
	kind    uint16
	class   uint16
	bodyAt  int // end of the questions
	records []record
}

// scan finds everything in a message, which must end with its last record.
func scan(b []byte) (*layout, error) {
	if len(b) < headerLen || len(b) > Largest {
		return nil, ErrMalformed
	}
	l := &layout{flags: binary.BigEndian.Uint16(b[2:])}
	for i := range l.counts {
		l.counts[i] = int(binary.BigEndian.Uint16(b[4+2*i:]))
	}
	at := headerLen
	for i := range l.counts[0] {
		end, err := skipName(b, at, i == 0)
		if err != nil || end+4 > len(b) {
			return nil, ErrMalformed
		}
		if i == 0 {
			l.name = lower(b[at:end])
			l.kind, l.class = binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint16(b[end+2:])
		}
		at = end + 4
	}
	l.bodyAt = at
	for section := range 3 {
		for range l.counts[1+section] {
			end, err := skipName(b, at, false)
			if err != nil || end+recordLen > len(b) {
				return nil, ErrMalformed
			}
			r := record{section: section, start: at, fixed: end, kind: binary.BigEndian.Uint16(b[end:])}
			r.end = end + recordLen + int(binary.BigEndian.Uint16(b[end+8:]))
			if r.end > len(b) {
				return nil, ErrMalformed
			}
			l.records = append(l.records, r)
			at = r.end
		}
	}
	if at != len(b) {
		return nil, fmt.Errorf("%w: %d bytes after the last record", ErrMalformed, len(b)-at)
	}
	return l, nil
}

// skipName returns the end of the name at an offset. whole: it has no pointer.
func skipName(b []byte, at int, whole bool) (int, error) {
	start := at
	for at < len(b) {
		switch n := int(b[at]); {
		case n == 0:
			return at + 1, nil
		case n >= 0xc0 && !whole:
			if at+2 > len(b) {
				return 0, ErrMalformed
			}
			return at + 2, nil
		case n > 63 || at+1+n-start >= maxName:
			return 0, ErrMalformed
		default:
			at += 1 + n
		}
	}
	return 0, ErrMalformed
}

// lower is a name in lower case: lengths of labels are below 'A'.
func lower(name []byte) string {
	out := make([]byte, len(name))
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return string(out)
}

// ParseQuery reads a query. b is kept and must not be changed afterwards. What it
// returns beside ErrMalformed is answered by FormatFailure, beside ErrNoQuery by
// nothing.
func ParseQuery(b []byte) (*Query, error) {
	if len(b) < headerLen || binary.BigEndian.Uint16(b[2:])&flagResponse != 0 {
		return nil, ErrNoQuery
	}
	l, err := scan(b)
	if err != nil {
		return nil, err
	}
	q := &Query{ID: binary.BigEndian.Uint16(b), raw: b, flags: l.flags, Size: SmallestUDP}
	if l.flags&opcodeMask != 0 {
		return q, nil // notifications, updates: forwarded as they are
	}
	if l.counts[0] != 1 {
		return nil, ErrMalformed
	}
	q.Name, q.Type, q.Class = l.name, l.kind, l.class
	q.question = b[headerLen:l.bodyAt]
	q.Transfer = l.kind == typeAXFR || l.kind == typeIXFR
	q.Plain = l.class == classIN && !q.Transfer && l.kind != TypeOPT && l.counts[1] == 0 && l.counts[2] == 0 && l.flags&flagTruncated == 0
	for _, r := range l.records {
		if r.kind != TypeOPT || r.section != 2 {
			q.Plain = false // a signature of the transaction, or something new
			continue
		}
		if q.EDNS || r.fixed != r.start+1 || b[r.start] != 0 {
			return nil, ErrMalformed
		}
		q.EDNS = true
		q.Size = max(binary.BigEndian.Uint16(b[r.fixed+2:]), SmallestUDP)
		q.sizeAt = r.fixed + 2
		q.DNSSEC = binary.BigEndian.Uint16(b[r.fixed+6:])&ednsDO != 0
		neighbours, err := forNeighbours(b[r.fixed+recordLen : r.end])
		if err != nil {
			return nil, err
		}
		q.Plain = q.Plain && neighbours && b[r.fixed+5] == 0 // the version
	}
	if len(l.records) > 1 {
		q.sizeAt = 0
	}
	return q, nil
}

// forNeighbours reports whether all options are for the next hop alone, so that
// the answer does not depend on them.
func forNeighbours(options []byte) (bool, error) {
	only := true
	for len(options) > 0 {
		if len(options) < 4 {
			return false, ErrMalformed
		}
		n := 4 + int(binary.BigEndian.Uint16(options[2:]))
		if n > len(options) {
			return false, ErrMalformed
		}
		switch binary.BigEndian.Uint16(options) {
		case optionCookie, optionKeepalive, optionPadding:
		default:
			only = false
		}
		options = options[n:]
	}
	return only, nil
}

// Bits are what of the query's header and EDNS an answer depends on.
func (q *Query) Bits() uint16 {
	bits := q.flags & (flagRecursion | flagAuthentic | flagUnchecked)
	if q.EDNS {
		bits |= 1
	}
	if q.DNSSEC {
		bits |= 2
	}
	return bits
}

// Host is the name as text, in lower case and without the last dot; "" for one
// that is no host's.
func (q *Query) Host() string {
	var host strings.Builder
	for rest := q.Name; len(rest) > 1; {
		n := int(rest[0])
		if n+1 > len(rest) {
			return ""
		}
		label := rest[1 : 1+n]
		if host.Len() > 0 {
			host.WriteByte('.')
		}
		for i := range label {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return ""
			}
		}
		host.WriteString(label)
		rest = rest[1+n:]
	}
	return host.String()
}

// Text is the question for a person: the name, and the type's mnemonic or number.
func (q *Query) Text() string {
	name := q.Host()
	if name == "" {
		name = "a name that is no host's"
	}
	return name + " " + typeText(q.Type)
}

// typeText is a type's mnemonic, if it is often asked for, or its number (RFC 3597,
// section 5).
func typeText(kind uint16) string {
	switch kind {
	case TypeA:
		return "A"
	case TypeAAAA:
		return "AAAA"
	case typeNS:
		return "NS"
	case typeCNAME:
		return "CNAME"
	case TypeSOA:
		return "SOA"
	case typePTR:
		return "PTR"
	case typeMX:
		return "MX"
	case typeTXT:
		return "TXT"
	case typeSRV:
		return "SRV"
	case typeHTTPS:
		return "HTTPS"
	}
	return fmt.Sprintf("TYPE%d", kind)
}

// RcodeText is a response code's mnemonic or number.
func RcodeText(rcode int) string {
	switch rcode {
	case NoError:
		return "NOERROR"
	case FormatError:
		return "FORMERR"
	case ServerFailure:
		return "SERVFAIL"
	case NameError:
		return "NXDOMAIN"
	case 4:
		return "NOTIMP"
	case Refused:
		return "REFUSED"
	}
	return fmt.Sprintf("RCODE %d", rcode)
}

// Upstream is the query as it is sent on, under another ID. EDNS is between
// neighbours (RFC 6891, section 6.2.1): a plain query gets options of our own,
// which are none.
func (q *Query) Upstream(id uint16) []byte {
	if !q.Plain {
		b := append([]byte(nil), q.raw...)
		binary.BigEndian.PutUint16(b, id)
		if q.sizeAt > 0 {
			binary.BigEndian.PutUint16(b[q.sizeAt:], min(q.Size, LargestUDP))
		}
		return b
	}
	b := q.header(id, q.flags&^flagTruncated)
	if q.EDNS {
		binary.BigEndian.PutUint16(b[10:], 1)
		b = q.appendOPT(b, LargestUDP, 0, nil)
	}
	return b
}

// header begins a message with the query's question.
func (q *Query) header(id, flags uint16) []byte {
	b := make([]byte, headerLen, headerLen+len(q.question)+64)
	binary.BigEndian.PutUint16(b, id)
	binary.BigEndian.PutUint16(b[2:], flags)
	if len(q.question) > 0 {
		binary.BigEndian.PutUint16(b[4:], 1)
	}
	return append(b, q.question...)
}

// appendOPT appends an OPT record. high are the upper bits of the response code.
func (q *Query) appendOPT(b []byte, size uint16, high uint8, options []byte) []byte {
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, TypeOPT)
	b = binary.BigEndian.AppendUint16(b, size)
	b = append(b, high, 0)
	var do uint16
	if q.DNSSEC {
		do = ednsDO
	}
	b = binary.BigEndian.AppendUint16(b, do)
	b = binary.BigEndian.AppendUint16(b, uint16(len(options)))
	return append(b, options...)
}
