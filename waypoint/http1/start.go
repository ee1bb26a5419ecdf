package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// start is a start line, while its head may still move.
type start struct {
	firstEnd, second, secondEnd uint32 // of the method and the target, or of the phrase
	status, minor               int
}

// readRequestLine reads method SP target SP version (RFC 9112 section 3).
func readRequestLine(text []byte, at, maxTarget int) (s start, r Reason) {
	n := grammar.Span(text, grammar.Token)
	if n > maxMethodBytes {
		return s, reason.MethodTooLong
	}
	if n == 0 || n == len(text) || text[n] != ' ' {
		return s, firstWrong(text, n, reason.BadRequestLine)
	}
	target := text[n+1:]
	t := grammar.Span(target, grammar.Target)
	switch {
	case t > maxTarget:
		return s, reason.TargetTooLong
	case t == 0 || t == len(target): // two spaces, or no version: HTTP/0.9
		return s, firstWrong(target, t, reason.BadRequestLine)
	case target[t] != ' ':
		return s, wrong(target[t], reason.BadTarget)
	}
	s = start{firstEnd: uint32(at + n), second: uint32(at + n + 1), secondEnd: uint32(at + n + 1 + t)}
	s.minor, r = readVersion(target[t+1:])
	return s, r
}

func firstWrong(text []byte, n int, otherwise Reason) Reason {
	if n < len(text) {
		return wrong(text[n], otherwise)
	}
	return otherwise
}

// readVersion reads HTTP/1.0 or HTTP/1.1 (RFC 9112 section 2.3).
func readVersion(v []byte) (minor int, r Reason) {
	const form = "HTTP/1.1"
	if len(v) != len(form) || string(v[:5]) != "HTTP/" || v[5] < '0' || v[5] > '9' || v[6] != '.' || v[7] < '0' || v[7] > '9' {
		if i := bytes.IndexByte(v, '\r'); i >= 0 {
			return 0, reason.BareCR
		}
		return 0, reason.BadVersion
	}
	if v[5] != '1' || v[7] > '1' {
		return 0, reason.UnsupportedVersion
	}
	return int(v[7] - '0'), 0
}

// readStatusLine reads version SP status [SP phrase] (RFC 9112 section 4). The
// second space is left out by real servers, and takes no meaning with it.
func readStatusLine(text []byte, at int) (s start, r Reason) {
	const before = len("HTTP/1.1 ")
	if len(text) < before+3 || text[before-1] != ' ' {
		return s, reason.BadStatusLine
	}
	if s.minor, r = readVersion(text[:before-1]); r != 0 {
		return s, r
	}
	for _, c := range text[before : before+3] {
		if c < '0' || c > '9' {
			return s, reason.BadStatusLine
		}
		s.status = s.status*10 + int(c-'0')
	}
	phrase := text[before+3:]
	if s.status < 100 || s.status > 599 || len(phrase) > 0 && phrase[0] != ' ' {
		return s, reason.BadStatusLine
	}
	if n := grammar.Span(phrase, grammar.Value); n < len(phrase) {
		return s, wrong(phrase[n], reason.BadStatusLine)
	}
	s.secondEnd = uint32(at + len(text))
	s.second = s.secondEnd - uint32(max(0, len(phrase)-1))
	return s, 0
}

// readTarget finds out which of the four forms the target has (RFC 9112 section
// 3.2), and what it says.
func (h *Head) readTarget(secure bool) Reason {
	switch t := h.Target; {
	case string(h.Method) == "CONNECT":
		if ok, port := grammar.CheckHost(t); !ok || !port {
			return reason.BadTarget
		}
		return h.agreeOnHost(t)
	case string(t) == "*":
		if string(h.Method) != "OPTIONS" {
			return reason.BadTarget
		}
		h.Path = t
		return 0
	case t[0] == '/':
		if h.Path = t; !grammar.CheckPath(t) {
			return reason.BadTarget
		}
		return 0
	}
	return h.readAbsolute(secure)
}

// readAbsolute reads scheme "://" authority path, which takes the place of Host
// (RFC 9112 section 3.2.2); both must name the same host.
func (h *Head) readAbsolute(secure bool) Reason {
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	if !grammar.HasFoldPrefix(h.Target, scheme) {
		return reason.BadTarget
	}
	rest := h.Target[len(scheme):]
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	if ok, _ := grammar.CheckHost(authority); !ok {
		return reason.BadTarget
	}
	switch h.Path = rest[end:]; {
	case len(h.Path) > 0 && h.Path[0] == '/':
	case len(h.Path) == 0 && string(h.Method) == "OPTIONS":
		h.Path = []byte("*") // section 3.2.4
	default:
		h.Path = append([]byte("/"), h.Path...)
	}
	if !grammar.CheckPath(h.Path) {
		return reason.BadTarget
	}
	return h.agreeOnHost(authority)
}

// agreeOnHost compares what the target says with Host.
func (h *Head) agreeOnHost(authority []byte) Reason {
	if h.Host != nil && !grammar.FoldEqual(h.Host, authority) {
		return reason.HostDiffers
	}
	h.Host = authority
	return 0
}
