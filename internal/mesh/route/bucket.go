package route

import (
	"github.com/heddle-mesh/heddle/internal/mesh/route/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// entry is one match, compiled.
type entry struct {
	target *Target
	match  *Match
	prefix string // that was matched, without a slash at its end
	method string
	// path is an expression for the HTTP path or the gRPC service, call for its method.
	path, call      *pattern.Pattern
	headers, params []condition
}

// condition is on one header or parameter.
type condition struct {
	name, value string
	expression  *pattern.Pattern
}

// always reports whether an entry matches all that is looked up where it is.
func (e *entry) always() bool {
	return e.method == "" && e.path == nil && e.call == nil && len(e.headers) == 0 && len(e.params) == 0
}

// indexed is how many entries make it worth to look them up by what they ask for,
// instead of trying one after the other.
const indexed = 8

// bucket has the matches for one path, by precedence.
type bucket struct {
	entries []entry
	// open are the places of entries that may match any request.
	open []int32
	// headers and params have the places of the others, each under one condition that it
	// has, by name and value; sorted.
	headers, params pairs
}

// pairs are places of entries by a name and a value.
type pairs struct {
	byName map[string]*named
	// lengths has a bit for the length of each name, modulo 64.
	lengths uint64
}

// named are the places of entries that ask for one name.
type named struct {
	name    string
	number  int // among the names, from 0
	byValue map[string][]int32
}

func newBucket(entries []entry) *bucket {
	for i := range entries {
		if entries[i].always() {
			entries = entries[:i+1] // no request gets beyond it
			break
		}
	}
	b := &bucket{entries: entries}
	if len(entries) <= indexed {
		for i := range entries {
			b.open = append(b.open, int32(i))
		}
		return b
	}
	headers, params := map[[2]string]int{}, map[[2]string]int{}
	for i := range entries {
		count(headers, entries[i].headers)
		count(params, entries[i].params)
	}
	for i := range entries {
		h, rare := rarest(headers, entries[i].headers)
		p, rarer := rarest(params, entries[i].params)
		switch {
		case h == nil && p == nil:
			b.open = append(b.open, int32(i))
		case p == nil || h != nil && rare <= rarer:
			b.headers.add(h, int32(i))
		default:
			b.params.add(p, int32(i))
		}
	}
	return b
}

func count(users map[[2]string]int, all []condition) {
	for _, c := range all {
		if c.expression == nil {
			users[[2]string{c.name, c.value}]++
		}
	}
}

// rarest returns the condition that the fewest entries have, of those that can be looked up.
func rarest(users map[[2]string]int, all []condition) (best *condition, n int) {
	for i := range all {
		c := &all[i]
		if c.expression != nil {
			continue
		}
		if used := users[[2]string{c.name, c.value}]; best == nil || used < n {
			best, n = c, used
		}
	}
	return best, n
}

func (p *pairs) add(c *condition, place int32) {
	if p.byName == nil {
		p.byName = map[string]*named{}
	}
	at := p.byName[c.name]
	if at == nil {
		at = &named{name: c.name, number: len(p.byName), byValue: map[string][]int32{}}
		p.byName[c.name] = at
	}
	at.byValue[c.value] = append(at.byValue[c.value], place)
	p.lengths |= 1 << (len(c.name) % 64)
}

// find returns the first entry that matches, or nil. Entries that are looked up come
// first: of the open ones only those before them are tried.
func (b *bucket) find(s *search) *entry {
	if b == nil || s.work < 0 {
		return nil
	}
	best := len(b.entries)
	if b.headers.byName != nil {
		best = b.byHeader(s, best)
	}
	if b.params.byName != nil {
		best = b.byParam(s, best)
	}
	if best = b.first(s, b.open, best); best == len(b.entries) {
		return nil
	}
	return &b.entries[best]
}

// first returns the first of some places whose entry matches, or best if that is earlier.
func (b *bucket) first(s *search, places []int32, best int) int {
	for _, i := range places {
		if int(i) >= best || s.work < 0 {
			break
		}
		if s.matches(&b.entries[i]) {
			return int(i)
		}
	}
	return best
}

// byHeader is first of the places that the request's headers lead to.
func (b *bucket) byHeader(s *search, best int) int {
	if host := b.headers.byName["host"]; host != nil {
		best = b.first(s, host.byValue[s.req.Host], best)
	}
	s.spend(len(s.req.Headers))
	var done seen
	for i := 0; i < len(s.req.Headers) && s.work >= 0; i++ {
		field := &s.req.Headers[i]
		if b.headers.lengths&(1<<(len(field.Name)%64)) == 0 || len(field.Name) > maxName {
			continue
		}
		var buf [maxName]byte
		at := b.headers.byName[string(lower(buf[:0], field.Name))]
		if at == nil || field.isHost() || done.again(at.number) {
			continue
		}
		value, _ := s.lookUp(at.name, false)
		best = b.first(s, at.byValue[value], best)
	}
	return best
}

// byParam is first of the places that the parameters of the request's query lead to.
func (b *bucket) byParam(s *search, best int) int {
	query := s.query()
	var done seen
	var buf [maxParam]byte
	for at := 0; at < len(query) && s.work >= 0; {
		p := uri.NextParam(query, &at)
		name, whole := uri.Unescape(buf[:0], p.Name)
		if !whole {
			continue
		}
		to := b.params.byName[string(name)]
		if to == nil || done.again(to.number) {
			continue
		}
		best = b.first(s, to.byValue[s.decoded(p.Value)], best)
	}
	return best
}

// seen says which numbers were there before.
type seen struct {
	few  [16]uint64
	more []uint64
}

// again reports whether a number was given before.
func (s *seen) again(n int) bool {
	words := s.few[:]
	if n >= 64*len(words) {
		if missing := n/64 + 1 - len(s.more); missing > 0 {
			s.more = append(s.more, make([]uint64, missing)...)
		}
		words = s.more
	}
	was := words[n/64]
	words[n/64] |= 1 << (n % 64)
	return words[n/64] == was
}
