package route

// entry is one match, compiled.
type entry struct {
	target *Target
	prefix string // that was matched, without a slash at its end
	method string
	// path is an expression for the HTTP path or the gRPC service, call for its method.
	path, call      *expression
	headers, params []condition
}

// condition is on one header or parameter.
type condition struct {
	name, value string
	expression  *expression
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
	byName map[string]map[string][]int32
	// lengths has a bit for the length of each name, modulo 64.
	lengths uint64
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
		p.byName = map[string]map[string][]int32{}
	}
	if p.byName[c.name] == nil {
		p.byName[c.name] = map[string][]int32{}
	}
	p.byName[c.name][c.value] = append(p.byName[c.name][c.value], place)
	p.lengths |= 1 << (len(c.name) % 64)
}

// find returns the first entry that matches, or nil.
func (b *bucket) find(s *search) *entry {
	if b == nil {
		return nil
	}
	best := b.first(s, b.open, len(b.entries))
	if b.headers.byName != nil {
		best = b.byHeader(s, best)
	}
	if b.params.byName != nil {
		best = b.byParam(s, best)
	}
	if best == len(b.entries) {
		return nil
	}
	return &b.entries[best]
}

// first returns the first of some places whose entry matches, or best if that is earlier.
func (b *bucket) first(s *search, places []int32, best int) int {
	for _, i := range places {
		if int(i) >= best {
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
	if values := b.headers.byName["host"]; values != nil {
		best = b.first(s, values[s.req.Host], best)
	}
	for i := range s.req.Headers {
		field := &s.req.Headers[i]
		if b.headers.lengths&(1<<(len(field.Name)%64)) == 0 || len(field.Name) > maxName {
			continue
		}
		var buf [maxName]byte
		values := b.headers.byName[string(lower(buf[:0], field.Name))]
		if values == nil || field.isHost() {
			continue
		}
		value := field.Value
		if first, again := s.req.field(field.Name); first != i {
			continue // it was seen with the first
		} else if again {
			value = s.joined(i)
		}
		best = b.first(s, values[value], best)
	}
	return best
}

// byParam is first of the places that the parameters of the request's query lead to.
func (b *bucket) byParam(s *search, best int) int {
	var name, value [maxParam]byte
	for query, at := s.req.Query, 0; at < len(query); {
		p := nextParam(query, &at)
		if len(p.name) > maxParam || len(p.value) > maxParam {
			continue
		}
		key := unescape(name[:0], p.name)
		values := b.params.byName[string(key)]
		if values == nil || !firstOf(query, p, key) {
			continue
		}
		best = b.first(s, values[string(unescape(value[:0], p.value))], best)
	}
	return best
}
