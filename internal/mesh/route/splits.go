package route

import (
	"fmt"
	"hash/fnv"
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
	names     []uint64 // of the backends in the tokens of sessions
	scheduler *split.Scheduler
}

// turnKey names a rule in whatever table it is, and wherever it is in its route.
type turnKey struct {
	route ID
	rule  uint64 // its identity
	again int    // how many rules before it have the same
	place int    // 0 for its backends, else that of a mirror
}

// identity tells a rule from the others of its route: by its own name, else by its matches.
func (r *Rule) identity() uint64 {
	if r.Name != "" && !strings.HasPrefix(r.Name, "rules[") {
		return hash(r.Name)
	}
	return hash(fmt.Sprintf("%+v", r.Matches))
}

// hash is FNV-1a: no secret, and the same everywhere.
func hash(text string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return h.Sum64()
}

// NewSplits returns the Splits of a table. What is as it was in those before, which may
// be nil, goes on where it is; what is new begins where phase says, which is called for
// each: a random number, so that replicas do not all begin with the same backend. A rule is
// the same as before when its name is, or, without one, when its matches are: other rules
// of its route do not matter. It is an error when the weights of a rule add up to more than
// split.MaxTotal.
func NewSplits(t *Table, before *Splits, phase func() uint64) (*Splits, error) {
	s := &Splits{mirrors: map[*Mirror]*split.Scheduler{}, known: map[turnKey]turn{}}
	if before == nil {
		before = &Splits{}
	}
	for _, target := range t.targets {
		key := turnKey{route: target.Route, rule: target.Rule.identity()}
		for _, taken := s.known[key]; taken; _, taken = s.known[key] {
			key.again++
		}
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
		at.names = append(at.names, hash(fmt.Sprintf("%s %x %d %s:%d", key.route, key.rule, key.again, backends[i].Service, backends[i].Port)))
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

// Mirrored reports whether it is this request's turn to be mirrored.
func (s *Splits) Mirrored(m *Mirror) bool { return m.Broken == "" && s.mirrors[m].Next() == 0 }
