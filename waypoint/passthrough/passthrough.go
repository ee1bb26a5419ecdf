// Package passthrough reads which server a client of TLS asks for, from its ClientHello (RFC 8446, section 4.1.2; RFC 6066,
// section 3), and answers what is refused by an alert. Nothing is decrypted, and nothing is changed of what it reads.
//
// It is pure. A Hello belongs to one connection, and is not safe for concurrent use.
package passthrough

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// MaxBytes bounds a ClientHello with the headers of its records. Those of browsers have some two thousand.
const MaxBytes = 16 << 10

// Verdict is what is known of what a client has sent.
type Verdict uint8

// The verdicts. More of it is needed of the zero value.
const (
	More Verdict = iota
	// Named is a ClientHello with the name of a server, Nameless one without.
	Named
	Nameless
	// Foreign is no ClientHello of TLS, whatever comes.
	Foreign
	// Malformed is a ClientHello that is not as the specification has it, or longer than MaxBytes.
	Malformed
)

// String returns the name of a Verdict.
func (v Verdict) String() string {
	return [...]string{More: "More", Named: "Named", Nameless: "Nameless", Foreign: "Foreign", Malformed: "Malformed"}[v]
}

const (
	recordHeader = 5
	// maxRecord is the longest fragment of plaintext (RFC 8446, section 5.1).
	maxRecord       = 1 << 14
	handshakeRecord = 22
	alertRecord     = 21
	clientHello     = 1
	messageHeader   = 4
	serverName      = 0 // the extension, and the type of a host's name in it
	maxName         = 253
)

// Hello is a ClientHello on its way. It may come in any number of records, and these in any pieces. The zero Hello has read nothing.
type Hello struct {
	at  int // where the next record begins
	got int // bytes of the message in the records before it
}

// Read looks at all that a client has sent so far: what it was given before, and more. The name is in lower case, and
// there when the Verdict is Named. What it costs is in the length of what came since.
func (h *Hello) Read(all []byte) (name string, is Verdict) {
	for {
		n, is := record(all[h.at:], h.at == 0)
		if is != More {
			return "", is
		}
		end := h.at + recordHeader + n
		switch {
		case n == 0 && len(all) >= MaxBytes, n > 0 && end > MaxBytes:
			return "", Malformed
		case n == 0, end > len(all):
			return "", More
		}
		h.at, h.got = end, h.got+n
		if h.got < messageHeader {
			continue
		}
		var header [messageHeader]byte
		join(header[:0], all, messageHeader)
		size := messageHeader + int(header[1])<<16 + int(header[2])<<8 + int(header[3])
		switch {
		case size > MaxBytes:
			return "", Malformed
		case h.got >= size:
			return read(join(make([]byte, 0, size), all, size)[messageHeader:])
		}
	}
}

// record returns the length of the record that b begins with; 0 when more of its header is needed. First is the
// record with the beginning of the message, which others than clients of TLS do not have.
func record(b []byte, first bool) (n int, is Verdict) {
	wrong := Malformed
	if first {
		wrong = Foreign
	}
	// The version of a record says nothing but that it is one (RFC 8446, section 5.1).
	if len(b) > 0 && b[0] != handshakeRecord || len(b) > 1 && b[1] != 3 {
		return 0, wrong
	}
	if first && len(b) > recordHeader && b[recordHeader] != clientHello {
		return 0, Malformed
	}
	if len(b) < recordHeader {
		return 0, More
	}
	n = int(binary.BigEndian.Uint16(b[3:]))
	if n == 0 || n > maxRecord { // an empty one has no place in a message (RFC 8446, section 5.1)
		return 0, Malformed
	}
	return n, More
}

// join appends the first size bytes of a message, of which the records are all there.
func join(to, all []byte, size int) []byte {
	for len(to) < size {
		n := int(binary.BigEndian.Uint16(all[3:]))
		to = append(to, all[recordHeader:recordHeader+min(n, size-len(to))]...)
		all = all[recordHeader+n:]
	}
	return to
}

// text is what is left of a message.
type text []byte

// take cuts off what has its length before it, in a number of so many bytes; false when it is not there.
func (t *text) take(bytes int) (out text, ok bool) {
	n := 0
	for i := range bytes {
		if i >= len(*t) {
			return nil, false
		}
		n = n<<8 | int((*t)[i])
	}
	if len(*t) < bytes+n {
		return nil, false
	}
	out, *t = (*t)[bytes:bytes+n], (*t)[bytes+n:]
	return out, true
}

// read returns the server that a ClientHello asks for. Extensions that it does not know say nothing; of one that is
// encrypted in it (ECH) the outer name is what there is.
func read(hello text) (name string, is Verdict) {
	const fixed = 2 + 32 // version, random
	if len(hello) < fixed {
		return "", Malformed
	}
	hello = hello[fixed:]
	session, ok := hello.take(1)
	suites, ok2 := hello.take(2)
	methods, ok3 := hello.take(1)
	if !ok || !ok2 || !ok3 || len(session) > 32 || len(suites) < 2 || len(suites)%2 != 0 || len(methods) == 0 {
		return "", Malformed
	}
	if len(hello) == 0 { // before TLS 1.2 there may be none
		return "", Nameless
	}
	extensions, ok := hello.take(2)
	if !ok || len(hello) > 0 {
		return "", Malformed
	}
	is = Nameless
	for len(extensions) > 0 {
		if len(extensions) < 2 {
			return "", Malformed
		}
		kind := binary.BigEndian.Uint16(extensions)
		extensions = extensions[2:]
		body, ok := extensions.take(2)
		if !ok || kind == serverName && is == Named { // each comes once (RFC 8446, section 4.2)
			return "", Malformed
		}
		if kind != serverName {
			continue
		}
		if name, ok = host(body); !ok {
			return "", Malformed
		}
		is = Named
	}
	return name, is
}

// host returns the one host's name that the extension has.
func host(body text) (name string, ok bool) {
	list, ok := body.take(2)
	if !ok || len(body) > 0 {
		return "", false
	}
	for len(list) > 0 {
		kind := list[0]
		list = list[1:]
		value, ok := list.take(2)
		if !ok || len(value) == 0 || kind == serverName && name != "" { // one of each type (RFC 6066, section 3)
			return "", false
		}
		if kind == serverName {
			if name = lower(value); !valid(name) {
				return "", false
			}
		}
	}
	return name, name != ""
}

// lower is a text with the letters of ASCII in lower case; Unicode has others whose lower case is one of these.
func lower(b []byte) string {
	small := bytes.Clone(b)
	for i, c := range small {
		if 'A' <= c && c <= 'Z' {
			small[i] = c + 'a' - 'A'
		}
	}
	return string(small)
}

// valid reports whether a text in lower case is the name of a host: of letters, digits, "-" and "_", without a dot at its end, and no
// address (RFC 6066, section 3).
func valid(name string) bool {
	if len(name) > maxName {
		return false
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		case c == '.' && label > 0:
			label = 0
		default:
			return false
		}
	}
	_, err := netip.ParseAddr(name)
	return label > 0 && err != nil
}

// Alerts of TLS, by which a client is told why it is refused (RFC 8446, section 6.2).
const (
	DecodeError      = 50
	MissingExtension = 109 // it names no server
	UnrecognizedName = 112
)

// Alert returns a fatal alert, in a record that clients of every version read before a handshake.
func Alert(description byte) []byte { return []byte{alertRecord, 3, 1, 0, 2, 2, description} }
