package route

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route/session"
	"github.com/heddle-mesh/heddle/internal/mesh/route/split"
)

// Backend returns the backend whose turn it is, of a target of the Table of these Splits, and what tokens of sessions call
// it; nil when the rule has none with a weight. What is Broken may be whose turn it is.
func (s *Splits) Backend(target *Target) (b *Backend, name uint64) {
	at := &s.turns[target.number]
	i := at.scheduler.Next()
	if i == split.None {
		return nil, 0
	}
	return &at.backends[i], at.names[i]
}

// Session returns the backend of the session that a request is of, and its token; nil when it is of none that goes on: then
// it takes its turn by Backend. A session goes on where it began, whatever the weights are now, 0 included, at every replica
// and after every restart, until AbsoluteTimeout, or until its rule does not have that backend any more, or it is Broken.
// Whether the workload is there still is for whoever knows workloads. A token says nothing that its client may not know, and
// is no permission: whoever makes one up picks a backend of the rule, and one of its workloads.
func (s *Splits) Session(target *Target, r *Request, now time.Time) (*Backend, session.Token) {
	of := target.Rule.Session
	if of == nil {
		return nil, session.Token{}
	}
	token, ok := session.Parse(of.text(r))
	if !ok || token.Over(of.AbsoluteTimeout, now) {
		return nil, session.Token{}
	}
	at := &s.turns[target.number]
	i := slices.Index(at.names, token.Backend())
	if i < 0 || at.backends[i].Broken != "" {
		return nil, session.Token{}
	}
	return &at.backends[i], token
}

// DefaultSessionName returns the name of a Session of a Rule of a Route for which the object
// has none: another one for each rule, and the same wherever the rule is in its route.
func (r *Rule) DefaultSessionName(of ID) string {
	return fmt.Sprintf("heddle-session-%016x", hash(fmt.Sprintf("%s %x", of, r.identity())))
}

// text returns what a request has as the token of its session; "" when it has none.
func (s *Session) text(r *Request) string {
	if s.Header {
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
