package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/split"
)

// Splits keeps whose turn it is: among the backends of each rule of a Table, and whether
// a request is mirrored. It is safe for concurrent use.
type Splits struct {
	turns   []turn // by the number of the target
	mirrors map[*Mirror]*split.Scheduler
	known   map[turnKey]turn
}

// turn is who shares the requests of a rule, or of a mirror, and whose turn it is.
type turn struct {
	backends  []Backend
	names     []uint64 // of the backends, for sessions
	scheduler *split.Scheduler
}

// turnKey names a rule in whatever table it is; place is 0 for its backends, else that of a mirror.
type turnKey struct {
	route ID
	rule  int
	place int
}

// NewSplits returns the Splits of a table. What is as it was in those before, which may
// be nil, goes on where it is; what is new begins where phase says, which is called for
// each: a random number, so that replicas do not all begin with the same backend. It is an error when the weights of
// a rule add up to more than split.MaxTotal.
func NewSplits(t *Table, before *Splits, phase func() uint64) (*Splits, error) {
	s := &Splits{mirrors: map[*Mirror]*split.Scheduler{}, known: map[turnKey]turn{}}
	if before == nil {
		before = &Splits{}
	}
	for _, target := range t.targets {
		key := turnKey{target.Route, target.Index, 0}
		at, err := before.turn(key, target.Rule.Backends, phase)
		if err != nil {
			return nil, fmt.Errorf("%s: rules[%d].backendRefs: %w", target.Route, target.Index, err)
		}
		s.known[key], s.turns = at, append(s.turns, at)
		for _, m := range target.Rule.mirrors() {
			key.place++
			at, err := before.turn(key, m.shares(), phase)
			if err != nil {
				return nil, fmt.Errorf("%s: rules[%d].filters: %w", target.Route, target.Index, err)
			}
			s.known[key], s.mirrors[m] = at, at.scheduler
		}
	}
	return s, nil
}

// turn returns the turn of a key, new when it is not among these backends by these weights.
func (s *Splits) turn(key turnKey, backends []Backend, phase func() uint64) (turn, error) {
	weights := make([]uint32, len(backends))
	for i := range backends {
		weights[i] = backends[i].Weight
	}
	if old, ok := s.known[key]; ok && slices.EqualFunc(old.backends, backends, sameShare) {
		old.backends = backends
		return old, nil
	}
	scheduler, err := split.New(weights, phase())
	at := turn{backends: backends, scheduler: scheduler}
	for i := range backends {
		at.names = append(at.names, split.Hash(fmt.Sprintf("%s:%d", backends[i].Service, backends[i].Port)))
	}
	return at, err
}

func sameShare(a, b Backend) bool {
	return a.Service == b.Service && a.Port == b.Port && a.Weight == b.Weight
}

// mirrors returns those of the rule and of its backends.
func (r *Rule) mirrors() (all []*Mirror) {
	lists := [][]Filter{r.Filters}
	for i := range r.Backends {
		lists = append(lists, r.Backends[i].Filters)
	}
	for _, filters := range lists {
		for i := range filters {
			if m := filters[i].Mirror; m != nil {
				all = append(all, m)
			}
		}
	}
	return all
}

// shares returns what is mirrored and what is not, as if by two backends.
func (m *Mirror) shares() []Backend {
	n := min(m.Numerator, m.Denominator)
	return []Backend{{Service: m.Service, Port: m.Port, Weight: n}, {Service: m.Service, Port: m.Port, Weight: m.Denominator - n}}
}

// Backend returns the backend of a request that Match found a target for, in the Table of
// these Splits; nil when the rule has none with a weight. What is Broken may be whose
// turn it is. Requests of one session go to one backend, as long as it has a weight: by
// its hash, so that every replica sends it there. Who begins a session makes its key, and
// puts it into the request, before asking: the first request would go elsewhere else.
func (s *Splits) Backend(target *Target, r *Request) *Backend {
	at := &s.turns[target.number]
	var i int
	if key := target.Rule.Session.key(r); key != "" {
		i = split.Sticky(at.scheduler.Weights(), at.names, key)
	} else {
		i = at.scheduler.Next()
	}
	if i == split.None {
		return nil
	}
	return &at.backends[i]
}

// Mirrored reports whether it is this request's turn to be mirrored.
func (s *Splits) Mirrored(m *Mirror) bool { return m.Broken == "" && s.mirrors[m].Next() == 0 }

// key returns what tells the session of a request from others; "" when it has none.
func (s *Session) key(r *Request) string {
	switch {
	case s == nil:
		return ""
	case s.Header:
		if at, _ := r.field(s.Name); at >= 0 {
			return r.Headers[at].Value
		}
		return ""
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
