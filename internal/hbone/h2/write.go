package h2

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/net/http2"
)

const (
	// statusOK is ":status: 200" of the static table (RFC 7541 appendix A).
	statusOK = 0x88
	// NoTable begins a header, and says that the encoder uses no dynamic table from
	// then on (section 6.3). We use none, but a decoder takes it for granted that we
	// may: it may want to hear it before the first header once its SETTINGS allow
	// less than 4,096 bytes (RFC 9113 section 4.3.1).
	NoTable = 0x20
)

// Frame writes a frame's header into b, which has HeaderBytes of room.
func Frame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, length int) {
	_ = b[HeaderBytes-1]
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = byte(kind), byte(flags)
	binary.BigEndian.PutUint32(b[5:], id)
}

// AppendFrame appends a whole frame.
func AppendFrame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) []byte {
	n := len(b)
	b = append(b, make([]byte, HeaderBytes)...)
	Frame(b[n:], kind, flags, id, len(payload))
	return append(b, payload...)
}

// AppendSettings appends a SETTINGS frame.
func AppendSettings(b []byte, list ...http2.Setting) []byte {
	payload := make([]byte, 0, 6*len(list))
	for _, s := range list {
		payload = binary.BigEndian.AppendUint16(payload, uint16(s.ID))
		payload = binary.BigEndian.AppendUint32(payload, s.Val)
	}
	return AppendFrame(b, http2.FrameSettings, 0, 0, payload)
}

// InitialWindow looks for the initial windows in the parameters of one SETTINGS
// frame: the last, which counts, and the largest, for a moment in force before it
// (RFC 9113 section 6.5.3). A frame has room for 2,730 of them, none of which may
// cost a look at every stream.
func InitialWindow(list []http2.Setting) (last, largest int64, ok bool) {
	for _, s := range list {
		if s.ID == http2.SettingInitialWindowSize {
			last, largest, ok = int64(s.Val), max(largest, int64(s.Val)), true
		}
	}
	return last, largest, ok
}

// Last looks for the last value of a parameter in a SETTINGS frame.
func Last(list []http2.Setting, id http2.SettingID) (value uint32, ok bool) {
	for _, s := range list {
		if s.ID == id {
			value, ok = s.Val, true
		}
	}
	return value, ok
}

// Grow makes a window to send larger by a WINDOW_UPDATE's increment, or says what
// is wrong with that: of a stream, or of the connection (RFC 9113 section 6.9).
func Grow(window *int64, increment uint32) *Error {
	if increment == 0 {
		return &Error{http2.ErrCodeProtocol, "WINDOW_UPDATE of 0"}
	}
	if *window += int64(increment); *window > MaxWindow {
		return &Error{http2.ErrCodeFlowControl, "window larger than 2^31-1"}
	}
	return nil
}

// AppendField appends a header field that goes into no table (RFC 7541 section
// 6.2.2), with its name written out.
func AppendField(b []byte, name, value string) []byte {
	b = append(b, 0)
	return appendString(appendString(b, name), value)
}

// AppendConnect appends the two pseudo-header fields of a CONNECT (RFC 9113
// section 8.5); their names are in the static table.
func AppendConnect(b []byte, authority string) []byte {
	b = appendString(append(b, 2), "CONNECT")
	return appendString(append(b, 1), authority)
}

// AppendStatus appends the header of an answer.
func AppendStatus(b []byte, code int) []byte {
	if code == 200 {
		return append(b, statusOK)
	}
	return appendString(append(b, 8), strconv.Itoa(code))
}

// appendString appends a string literal without Huffman coding (RFC 7541
// section 5.2).
func appendString(b []byte, s string) []byte {
	return append(appendInteger(b, 0, 127, len(s)), s...)
}

// appendInteger appends an integer behind the bits of first that are above a
// prefix of the given greatest value (RFC 7541 section 5.1).
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

const (
	// DefaultWindow is what RFC 9113 section 6.9.2 begins with, MaxWindow what
	// section 6.9.1 allows.
	DefaultWindow = 65535
	MaxWindow     = 1<<31 - 1
)

// Window is a receive window: what the peer may still send, and what was used
// up and not told it yet. It is a plain value.
type Window struct{ Size, Available, Owed int64 }

// NewWindow is a window of the given size.
func NewWindow(size int64) Window { return Window{Size: size, Available: size} }

// Take counts what the peer sent; false when it may not have.
func (w *Window) Take(n int64) bool {
	if n > w.Available {
		return false
	}
	w.Available -= n
	return true
}

// Give returns the increment to send now that n bytes are free again; 0 for
// none: updates wait until they are worth a frame.
func (w *Window) Give(n int64) uint32 {
	w.Owed += n
	if w.Owed < w.Size/4 {
		return 0
	}
	n, w.Owed = w.Owed, 0
	w.Available += n
	return uint32(n)
}

// Grow makes the window n bytes larger. The peer learns of it with what Give
// returns next.
func (w *Window) Grow(n int64) { w.Size, w.Owed = w.Size+n, w.Owed+n }

// Shrink makes the window up to n bytes smaller, but not below least, by bytes
// that are free again and not given back. It returns those that are left to
// give.
func (w *Window) Shrink(n, least int64) int64 {
	cut := min(n, max(0, w.Size-least))
	w.Size -= cut
	return n - cut
}
