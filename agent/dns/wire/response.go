package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Response is an answer that can be given to everybody who asks the same. It is
// immutable, and safe for concurrent use.
type Response struct {
	// Rcode is the response code, with EDNS' upper bits; Truncated says that the
	// rest has to be fetched over TCP.
	Rcode     int
	Truncated bool
	// TTL is for how long all of it holds, in seconds; ok only if Lasting, and 0 of what
	// holds for who asked alone, and may be kept for when its server does not answer. It
	// is the least of its records', and of the SOA's minimum when it says that something
	// is not there (RFC 2308, section 5), which then lasts only beyond 0.
	TTL      uint32
	Lasting  bool
	Negative bool

	raw  []byte // without OPT, which is made anew for each client
	at   int    // end of the question
	ttls []int  // offsets
}

// Size is how many bytes it takes.
func (r *Response) Size() int { return len(r.raw) + 8*len(r.ttls) }

// ParseResponse reads what upstream has sent as an answer to a query that was
// sent on under an ID. Anything else is an error, and has to be passed over: it
// may be somebody's try to answer first. b is kept.
func ParseResponse(b []byte, q *Query, id uint16) (*Response, error) {
	l, err := scan(b)
	switch {
	case err != nil:
		return nil, err
	case binary.BigEndian.Uint16(b) != id || l.flags&flagResponse == 0 || (l.flags^q.flags)&opcodeMask != 0:
		return nil, fmt.Errorf("%w: not an answer to this query", ErrMalformed)
	case len(q.question) == 0 || l.counts[0] == 0 && l.flags&rcodeMask != NoError && l.flags&rcodeMask != NameError:
		// Of an update, or of a server that could not read the question.
	case l.counts[0] != 1 || l.name != q.Name || l.kind != q.Type || l.class != q.Class:
		return nil, fmt.Errorf("%w: an answer to another question", ErrMalformed)
	}
	r := &Response{raw: b, at: l.bodyAt, Rcode: int(l.flags & rcodeMask), Truncated: l.flags&flagTruncated != 0}
	if q.Plain {
		r.takeOPT(l)
		if err := r.judge(l, q); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// takeOPT takes the OPT record out, which may be anywhere in the additional section
// (RFC 6891, section 6.1.1). What is behind it goes along as far as it can be moved:
// nobody needs additional records.
func (r *Response) takeOPT(l *layout) {
	i := slices.IndexFunc(l.records, func(rec record) bool { return rec.kind == TypeOPT && rec.section == 2 })
	if i < 0 {
		return
	}
	opt, left := l.records[i], l.counts[3]-1
	r.Rcode |= int(r.raw[opt.fixed+4]) << 4
	raw, kept := append([]byte(nil), r.raw[:opt.start]...), l.records[:i]
	for j, rec := range l.records[i+1:] {
		moved, ok := r.moved(rec, opt)
		if !ok && rec.kind != TypeOPT { // a second one is for judge to refuse
			left -= len(l.records[i+1+j:])
			break
		}
		gap := opt.end - opt.start
		raw, rec.start, rec.fixed, rec.end = append(raw, moved...), rec.start-gap, rec.fixed-gap, rec.end-gap
		kept = append(kept, rec)
	}
	binary.BigEndian.PutUint16(raw[10:], uint16(left))
	r.raw, l.records = raw, kept
}

// moved is a record as it is without one before it: names point to where others are in
// the message. It returns false for one that may have names in its data.
func (r *Response) moved(rec, gone record) ([]byte, bool) {
	b := append([]byte(nil), r.raw[rec.start:rec.end]...)
	if rec.kind != TypeA && rec.kind != TypeAAAA {
		return b, false
	}
	for at := 0; b[at] != 0; at += 1 + int(b[at]) {
		if b[at] < 0xc0 {
			continue
		}
		to := int(binary.BigEndian.Uint16(b[at:]) &^ 0xc000)
		if to >= gone.end {
			binary.BigEndian.PutUint16(b[at:], uint16(to-gone.end+gone.start)|0xc000)
		}
		return b, to < gone.start || to >= gone.end
	}
	return b, true
}

// judge finds out whether and for how long the response may be kept.
func (r *Response) judge(l *layout, q *Query) error {
	r.TTL = 1<<31 - 1
	answered, denied := false, false
	for _, rec := range l.records {
		if rec.kind == TypeOPT {
			return fmt.Errorf("%w: OPT twice, or among the answers", ErrMalformed)
		}
		r.ttls = append(r.ttls, rec.fixed+4)
		ttl := binary.BigEndian.Uint32(r.raw[rec.fixed+4:])
		if ttl > 1<<31-1 {
			ttl = 0 // RFC 2181, section 8
		}
		if rec.section == 0 && (rec.kind == q.Type || q.Type == TypeANY) {
			answered = true
		}
		if rec.section == 1 && rec.kind == TypeSOA && rec.end-rec.fixed >= recordLen+22 {
			denied = true
			ttl = min(ttl, binary.BigEndian.Uint32(r.raw[rec.end-4:])) // its MINIMUM
		}
		r.TTL = min(r.TTL, ttl)
	}
	r.Negative = r.Rcode == NameError || !answered
	known := r.Rcode == NoError || r.Rcode == NameError
	r.Lasting = known && !r.Truncated && len(r.ttls) > 0 && (!r.Negative || denied && r.TTL > 0)
	return nil
}

// Final reports whether upstream has said whether the name is there. Everything
// else is a failure of upstream's (RFC 8767, section 4).
func (r *Response) Final() bool { return r.Rcode == NoError || r.Rcode == NameError }

// Stale is what a stale answer's records hold for, in seconds (RFC 8767,
// section 4).
const Stale = 30

// For is the response to a query that asks the same, of at most limit bytes, age
// seconds after it came; stale when it holds no more.
func (r *Response) For(q *Query, limit int, age uint32, stale bool) []byte {
	if !q.Plain {
		b := append([]byte(nil), r.raw...)
		binary.BigEndian.PutUint16(b, q.ID)
		if len(b) > limit && len(q.question) > 0 {
			return q.truncated()
		}
		return b
	}
	if r.at-headerLen != len(q.question) {
		return q.Failure(r.Rcode&rcodeMask, 0) // upstream has left the question out
	}
	b := make([]byte, len(r.raw), len(r.raw)+32)
	copy(b, r.raw)
	copy(b[headerLen:], q.question) // in the client's case
	flags := binary.BigEndian.Uint16(b[2:])&^(flagRecursion|flagUnchecked) | q.flags&(flagRecursion|flagUnchecked)
	if age > 0 {
		flags &^= flagAuthority // it is told, not asked
	}
	binary.BigEndian.PutUint16(b, q.ID)
	binary.BigEndian.PutUint16(b[2:], flags)
	for _, at := range r.ttls {
		ttl := binary.BigEndian.Uint32(b[at:])
		ttl -= min(ttl, age)
		if stale {
			ttl = Stale
		}
		binary.BigEndian.PutUint32(b[at:], ttl)
	}
	var reason uint16
	if stale {
		reason = StaleAnswer
		if r.Rcode == NameError {
			reason = StaleNameError
		}
	}
	return q.finish(b, limit, uint8(r.Rcode>>4), reason)
}

// Extended errors (RFC 8914): why an answer is what it is.
const (
	StaleAnswer    = 3
	Prohibited     = 18
	StaleNameError = 19
	Unreachable    = 22
)

// finish ends a message with an OPT record for those who sent one, and cuts it
// off if it is larger than limit.
func (q *Query) finish(b []byte, limit int, high uint8, reason uint16) []byte {
	if q.EDNS {
		var options []byte
		if reason != 0 {
			options = []byte{0, optionError, 0, 2, byte(reason >> 8), byte(reason)}
		}
		binary.BigEndian.PutUint16(b[10:], binary.BigEndian.Uint16(b[10:])+1)
		b = q.appendOPT(b, LargestUDP, high, options)
	}
	if len(b) > limit {
		return q.truncated()
	}
	return b
}

// truncated tells the client to ask over TCP.
func (q *Query) truncated() []byte {
	b := q.header(q.ID, flagResponse|flagTruncated|flagAvailable|q.flags&(opcodeMask|flagRecursion|flagUnchecked))
	if q.EDNS {
		binary.BigEndian.PutUint16(b[10:], 1)
		b = q.appendOPT(b, LargestUDP, 0, nil)
	}
	return b
}

// Failure answers with a response code below 16, and an extended error unless
// that is 0.
func (q *Query) Failure(rcode int, reason uint16) []byte {
	b := q.header(q.ID, flagResponse|flagAvailable|q.flags&(opcodeMask|flagRecursion|flagUnchecked)|uint16(rcode&rcodeMask))
	return q.finish(b, Largest, 0, reason)
}

// FormatFailure answers what ParseQuery could not read.
func FormatFailure(b []byte) []byte {
	out := make([]byte, headerLen)
	if len(b) < 4 {
		return nil
	}
	copy(out, b[:2])
	flags := binary.BigEndian.Uint16(b[2:])&(opcodeMask|flagRecursion) | flagResponse | FormatError
	binary.BigEndian.PutUint16(out[2:], flags)
	return out
}

// Addresses answers a query of type A or AAAA with addresses of its family, or,
// when there is none, with the word that the name has none (RFC 2308, section
// 2.2), for ttl seconds. domain is the one that the name
// is in, as text.
func (q *Query) Addresses(addrs []netip.Addr, ttl uint32, domain string, limit int) []byte {
	b := q.header(q.ID, flagResponse|flagAuthority|flagAvailable|q.flags&(flagRecursion|flagUnchecked))
	n := uint16(0)
	for _, a := range addrs {
		if a.Is4() != (q.Type == TypeA) {
			continue
		}
		b = append(b, 0xc0, headerLen) // the question's name
		b = appendRecord(b, q.Type, ttl, a.AsSlice())
		n++
	}
	binary.BigEndian.PutUint16(b[6:], n)
	if n == 0 {
		zone := wireName(domain)
		var soa bytes.Buffer
		soa.WriteString("\x02ns\x03dns" + zone + "\x0ahostmaster" + zone)
		for _, v := range []uint32{1, 7200, 1800, 86400, ttl} { // serial, refresh, retry, expire, minimum
			soa.Write(binary.BigEndian.AppendUint32(nil, v))
		}
		b = append(b, zone...)
		b = appendRecord(b, TypeSOA, ttl, soa.Bytes())
		binary.BigEndian.PutUint16(b[8:], 1)
	}
	return q.finish(b, limit, 0, 0)
}

// appendRecord appends what follows a record's name.
func appendRecord(b []byte, kind uint16, ttl uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, classIN)
	b = binary.BigEndian.AppendUint32(b, ttl)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// wireName is a domain, as text without the last dot, in wire form.
func wireName(host string) string {
	var b strings.Builder
	for label := range strings.SplitSeq(host, ".") {
		b.WriteByte(byte(len(label)))
		b.WriteString(label)
	}
	b.WriteByte(0)
	return b.String()
}
