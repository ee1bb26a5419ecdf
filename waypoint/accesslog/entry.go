package accesslog

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// Entry is what became of one request.
type Entry struct {
	Time time.Time // when its head had come
	// Client is who asked, Peer the identity that was proven, "" without one.
	Client netip.AddrPort
	Peer   string
	// Service is the name and port that were dialled, Route and Rule what decided, Workload
	// who answered in the end; "" where there is none.
	Service, Route, Backend, Workload string
	Method, Host, Path, Agent         []byte
	// Status is 0 when there was no answer.
	Status int
	// Received and Sent are bytes that came from the client and went to it.
	Received, Sent int64
	Took           time.Duration
	// Tries is how often it was sent to a workload, First why the first one failed.
	Tries int
	First string
	// Reason says why the answer is the waypoint's own, or why there is none; "" otherwise.
	Reason string
}

// Fields of a line, in their order.
const (
	fTime = iota
	fClient
	fPeer
	fService
	fRoute
	fBackend
	fWorkload
	fMethod
	fHost
	fPath
	fQuery
	fAgent
	fStatus
	fReceived
	fSent
	fSeconds
	fTries
	fFirst
	fReason
	fieldCount
)

var fieldNames = [fieldCount]string{
	fTime: "time", fClient: "client", fPeer: "peer", fService: "service", fRoute: "route", fBackend: "backend", fWorkload: "workload",
	fMethod: "method", fHost: "host", fPath: "path", fQuery: "query", fAgent: "user_agent", fStatus: "status",
	fReceived: "received_bytes", fSent: "sent_bytes", fSeconds: "seconds", fTries: "tries", fFirst: "first_error", fReason: "reason",
}

// Fields are the names of what a line has: what is empty is left out.
func Fields() []string { return append([]string(nil), fieldNames[:]...) }

// append appends a line.
func (l *Log) append(b []byte, e *Entry) []byte {
	b = append(b, '{')
	b = l.key(b, fTime)
	if l.mask[fTime] {
		b = append(b, `"`+masked+`"`...)
	} else {
		b = append(e.Time.UTC().AppendFormat(append(b, '"'), "2006-01-02T15:04:05.000000Z"), '"')
	}
	if e.Client.IsValid() {
		if b = l.key(b, fClient); l.mask[fClient] {
			b = append(b, `"`+masked+`"`...)
		} else {
			b = append(e.Client.AppendTo(append(b, '"')), '"')
		}
	}
	b = text(l, b, fPeer, e.Peer)
	b = text(l, b, fService, e.Service)
	b = text(l, b, fRoute, e.Route)
	b = text(l, b, fBackend, e.Backend)
	b = text(l, b, fWorkload, e.Workload)
	b = text(l, b, fMethod, e.Method)
	b = text(l, b, fHost, e.Host)
	path, query := cut(e.Path)
	b = text(l, b, fPath, path)
	b = text(l, b, fQuery, query)
	b = text(l, b, fAgent, e.Agent)
	b = l.number(b, fStatus, int64(e.Status))
	b = l.number(b, fReceived, e.Received)
	b = l.number(b, fSent, e.Sent)
	if b = l.key(b, fSeconds); l.mask[fSeconds] {
		b = append(b, `"`+masked+`"`...)
	} else {
		b = strconv.AppendFloat(b, e.Took.Seconds(), 'f', 6, 64)
	}
	b = l.number(b, fTries, int64(e.Tries))
	b = text(l, b, fFirst, e.First)
	b = text(l, b, fReason, e.Reason)
	return append(b, "}\n"...)
}

func cut(path []byte) (before, after []byte) {
	for i, c := range path {
		if c == '?' {
			return path[:i], path[i+1:]
		}
	}
	return path, nil
}

func (l *Log) key(b []byte, f int) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, fieldNames[f]...)
	return append(b, `":`...)
}

func (l *Log) number(b []byte, f int, n int64) []byte {
	if b = l.key(b, f); l.mask[f] {
		return append(b, `"`+masked+`"`...)
	}
	return strconv.AppendInt(b, n, 10)
}

// text appends a field, unless it is empty.
func text[S string | []byte](l *Log, b []byte, f int, s S) []byte {
	if len(s) == 0 {
		return b
	}
	if b = append(l.key(b, f), '"'); l.mask[f] {
		return append(b, masked+`"`...)
	}
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			const hex = "0123456789abcdef"
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			n := runeLength(s, i)
			if n == 0 {
				b, n = append(b, `\ufffd`...), 1
			} else {
				b = append(b, s[i:i+n]...)
			}
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}

// runeLength is how many bytes the character at i has; 0 when there is none in UTF-8.
func runeLength[S string | []byte](s S, i int) int {
	var few [utf8.UTFMax]byte
	n := copy(few[:], s[i:min(len(s), i+utf8.UTFMax)])
	r, size := utf8.DecodeRune(few[:n])
	if r == utf8.RuneError && size <= 1 {
		return 0
	}
	return size
}
