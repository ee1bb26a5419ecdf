package wire

import (
	"strconv"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
)

// Heads are compressed with the static table alone (RFC 7541 appendix A). A dynamic one would be shared by
// all clients whose requests go over a backend's connection, and tell the one what the other has sent (section 7.1); and
// every entry of it would be an allocation.

// Entries of the static table, and what a first byte says (section 6).
const (
	authority     = 1
	methodGET     = 2
	methodPOST    = 3
	pathSlash     = 4
	schemeHTTP    = 0x80 | 6 // 7 is https
	status200     = 8
	ContentLength = 28
	Via           = 60

	NoTable      = 0x20 // the size of the table, 0
	indexedField = 0x80
	neverIndexed = 0x10
)

// statusIndex is the entry of a status, 0 for most.
func statusIndex(code int) byte {
	switch code {
	case 200:
		return status200
	case 204:
		return 9
	case 206:
		return 10
	case 304:
		return 11
	case 400:
		return 12
	case 404:
		return 13
	case 500:
		return 14
	}
	return 0
}

// staticNames are the entries of the static table that have a name of their own, staticByLength where they are.
var staticNames = [...]string{
	15: "accept-charset", 16: "accept-encoding", 17: "accept-language", 18: "accept-ranges", 19: "accept", 20: "access-control-allow-origin",
	21: "age", 22: "allow", 23: "authorization", 24: "cache-control", 25: "content-disposition", 26: "content-encoding",
	27: "content-language", 28: "content-length", 29: "content-location", 30: "content-range", 31: "content-type", 32: "cookie",
	33: "date", 34: "etag", 35: "expect", 36: "expires", 37: "from", 38: "host",
	39: "if-match", 40: "if-modified-since", 41: "if-none-match", 42: "if-range", 43: "if-unmodified-since", 44: "last-modified",
	45: "link", 46: "location", 47: "max-forwards", 48: "proxy-authenticate", 49: "proxy-authorization", 50: "range",
	51: "referer", 52: "refresh", 53: "retry-after", 54: "server", 55: "set-cookie", 56: "strict-transport-security",
	57: "transfer-encoding", 58: "user-agent", 59: "vary", 60: "via", 61: "www-authenticate",
}

var staticByLength = [...][]byte{
	3:  {21, 60},
	4:  {33, 34, 37, 38, 45, 59},
	5:  {22, 50},
	6:  {19, 32, 35, 54},
	7:  {36, 51, 52},
	8:  {39, 42, 46},
	10: {55, 58},
	11: {53},
	12: {31, 47},
	13: {18, 23, 24, 30, 41, 44},
	14: {15, 28},
	15: {16, 17},
	16: {26, 27, 29, 61},
	17: {40, 57},
	18: {48},
	19: {25, 43, 49},
	25: {56},
	27: {20},
}

// staticIndex is the entry of a name in lower case, 0 when there is none.
func staticIndex(name []byte) byte {
	if len(name) >= len(staticByLength) {
		return 0
	}
	for _, i := range staticByLength[len(name)] {
		if staticNames[i] == string(name) {
			return i
		}
	}
	return 0
}

// Ask is what the pseudo-header fields of a request say (RFC 9113 section 8.3.1). A CONNECT has no path; one for
// WebSocket is a GET with one, written as RFC 8441 section 4 has it.
type Ask struct {
	Method, Authority, Path []byte
	Secure, WebSocket       bool
}

// AppendAsk appends them.
func AppendAsk(b []byte, a Ask) []byte {
	if a.WebSocket {
		b = AppendField(AppendIndexed(b, methodGET, []byte("CONNECT")), ":protocol", "websocket")
	} else {
		b = appendMethod(b, a.Method)
	}
	if len(a.Path) > 0 {
		b = appendScheme(b, a.Secure)
	}
	if b = AppendIndexed(b, authority, a.Authority); len(a.Path) > 0 {
		b = appendPath(b, a.Path)
	}
	return b
}

func appendMethod(b, name []byte) []byte {
	switch string(name) {
	case "GET":
		return append(b, indexedField|methodGET)
	case "POST":
		return append(b, indexedField|methodPOST)
	}
	return AppendIndexed(b, methodGET, name)
}

func appendPath(b, path []byte) []byte {
	if string(path) == "/" {
		return append(b, indexedField|pathSlash)
	}
	return AppendIndexed(b, pathSlash, path)
}

// AppendIndexed appends a field whose name is an entry of the static table.
func AppendIndexed(b []byte, index byte, value []byte) []byte {
	return appendString(appendInteger(b, firstByte(index), 15, int(index)), value)
}

// firstByte keeps whoever compresses behind us from compressing secrets (section 7.1.3).
func firstByte(index byte) byte {
	switch index {
	case 23, 32, 49, 55: // authorization, cookie, proxy-authorization, set-cookie
		return neverIndexed
	}
	return 0
}

// AppendField appends any other, its name in lower case (RFC 9113 section 8.2).
func AppendField[S []byte | string](b []byte, name, value S) []byte {
	var few [32]byte // the longest name in the table has 27
	if len(name) <= len(few) {
		for i := range len(name) {
			few[i] = grammar.Lower(name[i])
		}
		if index := staticIndex(few[:len(name)]); index != 0 {
			return appendString(appendInteger(b, firstByte(index), 15, int(index)), value)
		}
	}
	b = appendInteger(append(b, 0), 0, 127, len(name))
	for i := range len(name) {
		b = append(b, grammar.Lower(name[i]))
	}
	return appendString(b, value)
}

// appendString appends a string without Huffman's code (section 5.2): bytes are cheap inside of a cluster.
func appendString[S []byte | string](b []byte, s S) []byte {
	return append(appendInteger(b, 0, 127, len(s)), s...)
}

// appendInteger appends an integer behind the bits of first that are above a prefix of the given
// greatest value (section 5.1).
func appendInteger(b []byte, first byte, prefix, n int) []byte {
	if n < prefix {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(prefix))
	for n -= prefix; n >= 128; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(b, byte(n))
}

// AppendStatus appends :status, AppendNumber a field that is one.
func AppendStatus(b []byte, code int) []byte {
	if i := statusIndex(code); i != 0 {
		return append(b, 0x80|i)
	}
	var digits [3]byte
	return AppendIndexed(b, status200, strconv.AppendInt(digits[:0], int64(code), 10))
}

func AppendNumber(b []byte, index byte, n int64) []byte {
	var digits [20]byte
	return AppendIndexed(b, index, strconv.AppendInt(digits[:0], n, 10))
}

func appendScheme(b []byte, secure bool) []byte {
	if secure {
		return append(b, schemeHTTP+1)
	}
	return append(b, schemeHTTP)
}
