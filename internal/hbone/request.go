package hbone

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// maxShownBytes of what a peer sent go into an error.
const maxShownBytes = 64

// ParseRequest reads the fields of a CONNECT (RFC 9113 section 8.5) and refuses
// everything that two readers could understand differently. TooLong says that
// fields were left out for their size.
func ParseRequest(fields []hpack.HeaderField, tooLong bool) (*StreamRequest, error) {
	if tooLong {
		return nil, fmt.Errorf("%w: %w: header too long", &StatusError{Code: http.StatusRequestHeaderFieldsTooLarge, Reason: "header too long"}, ErrLimit)
	}
	req := &StreamRequest{}
	seen := map[string]string{}
	regular := false
	for _, f := range fields {
		pseudo := strings.HasPrefix(f.Name, ":")
		if pseudo && regular || !validField(f) {
			return nil, badRequest("malformed field " + strconv.Quote(f.Name))
		}
		regular = regular || !pseudo
		if had, twice := seen[f.Name]; !twice {
			seen[f.Name] = f.Value
		} else if f.Name == "baggage" {
			seen[f.Name] = had + "," + f.Value // a list, by W3C Baggage section 3.1
		} else if singular(f.Name) {
			return nil, badRequest(f.Name + " twice")
		}
	}
	var err error
	if req.Authority, err = target(seen); err != nil {
		return nil, err
	}
	if v, ok := seen["forwarded"]; ok {
		if req.Forwarded, err = ParseForwarded(v); err != nil {
			return nil, badRequest(err.Error())
		}
	}
	req.Baggage = seen["baggage"]
	if tp := seen["traceparent"]; ValidTraceParent(tp) {
		req.TraceParent = tp
	}
	return req, nil
}

// target checks the pseudo-header fields and reads the authority.
func target(seen map[string]string) (a netip.AddrPort, err error) {
	if seen[":method"] != http.MethodConnect {
		return a, badRequest("method " + strconv.Quote(seen[":method"]))
	}
	for _, name := range [...]string{":scheme", ":path", ":protocol", "content-length", "transfer-encoding", "connection", "upgrade"} {
		if _, ok := seen[name]; ok {
			return a, badRequest(name + " in a CONNECT")
		}
	}
	authority := seen[":authority"]
	if host, ok := seen["host"]; ok && host != authority {
		return a, badRequest("host is not the authority")
	}
	if a, err = ParseAuthority(authority); err != nil {
		return a, badRequest(err.Error() + ": " + strconv.Quote(authority[:min(len(authority), maxShownBytes)]))
	}
	return a, nil
}

// validField says whether a field can stand in HTTP/2 (RFC 9113 section 8.2.1). Of those
// that we read, the value is ASCII.
func validField(f hpack.HeaderField) bool {
	name := strings.TrimPrefix(f.Name, ":")
	for i := range len(name) {
		if !IsTokenByte(name[i]) || name[i] >= 'A' && name[i] <= 'Z' {
			return false
		}
	}
	switch {
	case name == "":
		return false
	case singular(f.Name), f.Name == "baggage", f.Name == "traceparent":
		return HeaderSafe(f.Value)
	}
	return !strings.ContainsAny(f.Value, "\x00\r\n")
}

// singular says whether a field may come once only, because we read it.
func singular(name string) bool {
	return strings.HasPrefix(name, ":") || name == "forwarded" || name == "host"
}

// badRequest is a 400 that names its reason.
func badRequest(reason string) error {
	return fmt.Errorf("%w: %w: %s", &StatusError{Code: http.StatusBadRequest, Reason: reason}, ErrBadRequest, reason)
}
