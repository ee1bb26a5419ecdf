package sniff

// Line judges what a client says at a port of which nobody says whether it is HTTP, before a
// workload gets it: whether some server of HTTP may take it for the first line of a request. It
// goes by what servers take, not by what the specification lets a client send: methods in any
// letters, empty lines before the request (RFC 9112 section 2.2), any white space between its
// parts, more than three of them, a lone CR or LF for the line's end, and a GET without a version
// whose fields are read nevertheless.
//
// The bytes may come in any pieces. The zero value has seen none.
type Line struct {
	n       int
	words   int
	get     int // how much of get the first word is
	version int // how much of version the word is
	inWord  bool
	ended   bool // by a CR or LF, of whatever line
	cr      bool // the last byte was CR
	other   bool
	is      bool
}

const (
	get     = "GET"
	version = "http/" // in any letters
	// lineBytes is what no server takes for one line: beyond, it is no request.
	lineBytes = 1 << 20
)

// Read takes the next bytes, and says what all so far are: HTTP and Opaque are final; Unsaid is
// neither of them yet.
func (l *Line) Read(b []byte) Spoken {
	for i := 0; i < len(b) && !l.is && !l.other; i++ {
		l.one(b[i])
	}
	switch {
	case l.is:
		return HTTP
	case l.other:
		return Opaque
	}
	return Unsaid
}

// Begun reports whether there is a part of a line, which may be a request when the rest of it has come.
func (l *Line) Begun() bool { return l.words > 0 && !l.ended }

func (l *Line) one(c byte) {
	l.n++
	if !space(c) {
		l.letter(c)
		l.cr = false
	} else {
		l.inWord = false
		if c == '\r' || c == '\n' {
			l.end(c)
		}
		l.cr = c == '\r'
	}
	l.other = l.other || l.n >= lineBytes && !l.is
}

// end is the end of a line, for some servers. Others take a lone CR, or LF, for white space.
func (l *Line) end(c byte) {
	l.is = l.words >= 3 && l.version > len(version) || l.words == 2 && l.get == len(get)
	l.ended = l.ended || l.words > 0
	l.other = !l.is && l.words > 0 && l.cr && c == '\n'
}

// letter is a byte of a word.
func (l *Line) letter(c byte) {
	if !l.inWord {
		l.inWord, l.version = true, 0
		l.words++
	}
	if l.words == 1 {
		if l.other = !token(c); l.get >= 0 && l.get < len(get) && c == get[l.get] {
			l.get++
		} else {
			l.get = -1
		}
	}
	switch v := l.version; {
	case v < 0:
	case v < len(version) && lower(c) == version[v], v >= len(version) && '0' <= c && c <= '9':
		l.version++
	case v > len(version) && c == '.':
	default:
		l.version = -1
	}
}

// space is what some server takes for white space (Python's str.split is the one that takes most).
func space(c byte) bool {
	return '\t' <= c && c <= '\r' || 0x1c <= c && c <= ' ' || c == 0x85 || c == 0xa0
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// token is what a method consists of (RFC 9110 section 5.6.2).
func token(c byte) bool {
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// settingsFrame is the type of a SETTINGS frame, setting the length of each of its entries.
const settingsFrame, setting = 4, 6

// Settings says whether what a server says first is how one of HTTP/2 begins that does not wait
// for its client: a SETTINGS frame (RFC 9113 sections 3.4 and 6.5).
func Settings(b []byte) bool {
	return len(b) >= 9 && (int(b[0])<<16|int(b[1])<<8|int(b[2]))%setting == 0 && string(b[3:9]) == string([]byte{settingsFrame, 0, 0, 0, 0, 0})
}
