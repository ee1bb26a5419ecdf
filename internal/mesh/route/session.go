package route

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route/split"
)

// Backend returns the backend of a request that Match found a target for, in the Table of
// these Splits; nil when the rule has none with a weight. What is Broken may be whose
// turn it is.
//
// For a rule with a Session it returns the token that the response has to carry, in the
// Session's cookie or header, when a session begins; "" when the request is of one that
// goes on. A session goes on at the backend where it began, whatever the weights are now,
// 0 included, at every replica and after every restart, until AbsoluteTimeout, or until its
// rule does not have that backend any more, or it is Broken. A token says nothing that its
// client may not know, and is no permission: whoever makes one up picks a backend of the
// rule.
func (s *Splits) Backend(target *Target, r *Request, now time.Time) (*Backend, string) {
	at := &s.turns[target.number]
	session := target.Rule.Session
	if name, ok := session.of(r, now); ok {
		if i := slices.Index(at.names, name); i >= 0 && at.backends[i].Broken == "" {
			return &at.backends[i], ""
		}
	}
	i := at.scheduler.Next()
	if i == split.None {
		return nil, ""
	}
	if session == nil || at.backends[i].Broken != "" {
		return &at.backends[i], ""
	}
	return &at.backends[i], token{began: uint32(now.Unix()), backend: at.names[i]}.String()
}

// DefaultSessionName returns the name of a Session of a Rule of a Route for which the object
// has none: another one for each rule, and the same wherever the rule is in its route.
func (r *Rule) DefaultSessionName(of ID) string {
	return fmt.Sprintf("heddle-session-%016x", hash(fmt.Sprintf("%s %x", of, r.identity())))
}

// token tells a session: when it began, in seconds since 1970, and the name of its backend.
type token struct {
	began   uint32
	backend uint64
}

const (
	// tokenVersion is the first octet of each token, so that others are not taken for it.
	tokenVersion = 1
	tokenOctets  = 13
	// maxSkew is how far the clocks of replicas may be apart.
	maxSkew = time.Minute
)

// String returns the token in base64url, of always the same length.
func (t token) String() string {
	octets := binary.BigEndian.AppendUint32([]byte{tokenVersion}, t.began)
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(octets, t.backend))
}

func parseToken(text string) (t token, ok bool) {
	if base64.RawURLEncoding.DecodedLen(len(text)) != tokenOctets {
		return t, false
	}
	octets, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(octets) != tokenOctets || octets[0] != tokenVersion {
		return t, false
	}
	return token{binary.BigEndian.Uint32(octets[1:]), binary.BigEndian.Uint64(octets[5:])}, true
}

// of returns the name of the backend of a request's session, if it has one that is not over.
func (s *Session) of(r *Request, now time.Time) (backend uint64, ok bool) {
	t, ok := parseToken(s.text(r))
	age := now.Sub(time.Unix(int64(t.began), 0))
	if !ok || s.AbsoluteTimeout > 0 && (age < -maxSkew || age >= s.AbsoluteTimeout) {
		return 0, false
	}
	return t.backend, true
}

// text returns what a request has as the token of its session; "" when it has none.
func (s *Session) text(r *Request) string {
	switch {
	case s == nil:
		return ""
	case s.Header:
		return r.first(s.Name)
	}
	for i := range r.Headers {
		if !fold(r.Headers[i].Name, "cookie") {
			continue
		}
		for pair := range strings.SplitSeq(r.Headers[i].Value, ";") {
			if name, value, ok := strings.Cut(strings.TrimLeft(pair, " "), "="); ok && name == s.Name {
				return value
			}
		}
	}
	return ""
}
