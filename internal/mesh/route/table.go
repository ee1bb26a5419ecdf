package route

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// Table finds the rule for a request. The zero Table has no routes.
type Table struct {
	parents map[Parent]*parent
	targets []*Target
}

// parent has the routes of one parent, apart for those whom they are for.
type parent struct {
	producers *site
	consumers map[string]*site // by the client's namespace
}

// Target is a Rule in its Table.
type Target struct {
	Route ID
	// Index is the place of the Rule in its Route, from 0.
	Index int
	Rule  *Rule
	// number is its place among the targets of the table.
	number int
}

// NewTable compiles routes. It takes them over: they must not be changed afterwards.
// The error names the route, the field and the remedy: of rules that Check has nothing
// against there is none, but for routes of both kinds that meet at one parent, and a Route
// that is given twice.
func NewTable(routes []Route) (*Table, error) {
	t := &Table{parents: map[Parent]*parent{}}
	building := map[*site][]candidate{}
	given := map[ID]bool{}
	for i := range routes {
		r := &routes[i]
		if given[r.ID] {
			return nil, fmt.Errorf("compile routes: %s is given twice", r.ID)
		}
		given[r.ID] = true
		candidates, err := t.candidates(r)
		if err != nil {
			return nil, fmt.Errorf("compile %s: %w", r.ID, err)
		}
		for _, p := range r.Parents {
			s := t.site(p, r)
			if s.kind != r.Kind {
				return nil, fmt.Errorf("compile %s: %s has routes of another kind already; let all of them be of one kind", r.ID, p)
			}
			building[s] = append(building[s], candidates...)
		}
	}
	for s, candidates := range building {
		slices.SortFunc(candidates, candidate.compare)
		s.build(candidates)
	}
	return t, nil
}

// Targets returns the rules of all routes: read only.
func (t *Table) Targets() []*Target { return t.targets }

// About reports whether any route is about requests to a parent, whoever its client is.
func (t *Table) About(p Parent) bool {
	at := t.parents[p]
	if at == nil {
		return false
	}
	for _, s := range at.consumers {
		if s.kind.Requests() {
			return true
		}
	}
	return at.producers != nil && at.producers.kind.Requests()
}

// candidates returns the matches of a route, and numbers its rules.
func (t *Table) candidates(r *Route) (all []candidate, err error) {
	for _, h := range r.Hostnames {
		if r.Kind == TCP || h == "" || len(h) > maxHost || h != strings.ToLower(h) || strings.Contains(strings.TrimPrefix(h, "*."), "*") {
			return nil, fmt.Errorf("hostnames: %q is no host name; write one such as shop.example.com or *.example.com", h)
		}
	}
	var room Room
	for i := range r.Rules {
		rule := &r.Rules[i]
		if err := cmp.Or(rule.Check(r.Kind), room.Take(rule)); err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
		target := &Target{Route: r.ID, Index: i, Rule: rule, number: len(t.targets)}
		t.targets = append(t.targets, target)
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []Match{{}}
		}
		for j := range matches {
			c, err := newCandidate(r, target, &matches[j])
			if err != nil {
				return nil, fmt.Errorf("rules[%d].matches[%d]: %w", i, j, err)
			}
			c.place = len(all)
			all = append(all, c)
		}
	}
	return all, nil
}

func (t *Table) site(p Parent, r *Route) *site {
	at := t.parents[p]
	if at == nil {
		at = &parent{consumers: map[string]*site{}}
		t.parents[p] = at
	}
	if r.Namespace == p.Service.Namespace {
		if at.producers == nil {
			at.producers = &site{kind: r.Kind}
		}
		return at.producers
	}
	if at.consumers[r.Namespace] == nil {
		at.consumers[r.Namespace] = &site{kind: r.Kind}
	}
	return at.consumers[r.Namespace]
}

// candidate is one Match of a Rule, with what precedence is decided by.
type candidate struct {
	route *Route
	place int // among the matches of the route
	entry
	// How specific it is: the larger the earlier, one after the other. Of HTTP: the type of the
	// path and its length, whether there is a method, the numbers of headers and of
	// parameters. Of gRPC: type and length of the service, then of the method, headers.
	rank [5]int
	// at is where it is found: an exact path, a prefix, a gRPC service or method.
	at string
	in shelf
}

// shelf is the part of a set of matches that a candidate is found in.
type shelf uint8

const (
	exactPaths    shelf = iota // by HTTP path; by /service/method of gRPC
	expressions                // by HTTP path; by the gRPC service
	prefixes                   // by HTTP path
	services                   // by gRPC service, for every method
	methods                    // by gRPC method, of every service
	methodMatches              // by an expression for the gRPC method alone
	anyCall                    // every gRPC call
)

// Types of comparison, by precedence.
const (
	rankAny = iota
	rankExpression
	rankExact
)

func newCandidate(r *Route, target *Target, m *Match) (c candidate, err error) {
	c = candidate{route: r, entry: entry{target: target, match: m, method: m.Method}}
	if c.headers, err = conditions(m.Headers, true); err != nil {
		return c, err
	}
	if c.params, err = conditions(m.Params, false); err != nil {
		return c, err
	}
	if r.Kind == GRPC {
		return c, c.setCall(&m.Call)
	}
	return c, c.setPath(m)
}

func (c *candidate) setPath(m *Match) (err error) {
	hasMethod := 0
	if m.Method != "" {
		hasMethod = 1
	}
	switch m.Path.Type {
	case PathExpression:
		c.in, c.rank[0], c.rank[1] = expressions, rankExpression, len(m.Path.Value)
		c.path, err = pattern.Compile(m.Path.Value)
	case PathExact:
		c.at, _ = uri.NormalPath(m.Path.Value)
		c.in, c.rank[0], c.rank[1] = exactPaths, rankExact, len(c.at)
	default:
		normal, _ := uri.NormalPath(cmp.Or(m.Path.Value, "/"))
		c.at = strings.TrimSuffix(normal, "/")
		c.in, c.rank[0], c.rank[1] = prefixes, rankAny, len(c.at)
		c.prefix = c.at
	}
	c.rank[2], c.rank[3], c.rank[4] = hasMethod, len(c.headers), len(c.params)
	return err
}

func (c *candidate) setCall(m *CallMatch) (err error) {
	kind := rankExact
	if m.Expression {
		kind = rankExpression
		if m.Service != "" {
			if c.path, err = pattern.Compile(m.Service); err != nil {
				return err
			}
		}
		if m.Method != "" {
			if c.call, err = pattern.Compile(m.Method); err != nil {
				return err
			}
		}
	}
	if m.Service != "" {
		c.rank[0], c.rank[1] = kind, len(m.Service)
	}
	if m.Method != "" {
		c.rank[2], c.rank[3] = kind, len(m.Method)
	}
	c.rank[4] = len(c.headers)
	switch {
	case m.Service == "" && m.Method == "":
		c.in = anyCall
	case m.Expression && m.Service != "":
		c.in = expressions
	case m.Expression:
		c.in = methodMatches
	case m.Service == "":
		c.in, c.at = methods, m.Method
	case m.Method == "":
		c.in, c.at = services, m.Service
	default:
		c.in, c.at = exactPaths, "/"+m.Service+"/"+m.Method
	}
	return nil
}

// conditions returns what a request is compared with.
func conditions(all []ValueMatch, fold bool) ([]condition, error) {
	var out []condition
	for _, v := range firsts(all, fold) {
		c := condition{name: v.Name, value: v.Value}
		if v.Expression {
			var err error
			if c.expression, err = pattern.Compile(v.Value); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// compare orders candidates by precedence, but for their hostnames: the first that
// matches a request is the one.
func (c candidate) compare(o candidate) int {
	for i := range c.rank {
		if d := cmp.Compare(o.rank[i], c.rank[i]); d != 0 {
			return d
		}
	}
	return cmp.Or(
		c.route.Created.Compare(o.route.Created),
		c.route.Key.Compare(o.route.Key),
		cmp.Compare(c.place, o.place),
	)
}

// site has all that one request may match, by its host.
type site struct {
	kind  Kind
	hosts map[string]*shelves
	// wild has shelves by what comes after the "*" of a hostname, such as .example.com.
	wild map[string]*shelves
	any  *shelves
}

// build sorts candidates, which come by precedence, onto the shelves of their hosts.
func (s *site) build(candidates []candidate) {
	s.hosts, s.wild, s.any = map[string]*shelves{}, map[string]*shelves{}, &shelves{}
	sets := map[*shelves][]candidate{}
	for _, c := range candidates {
		if len(c.route.Hostnames) == 0 {
			sets[s.any] = append(sets[s.any], c)
		}
		for _, h := range slices.Compact(slices.Sorted(slices.Values(c.route.Hostnames))) {
			in := s.hosts
			if strings.HasPrefix(h, "*.") {
				in, h = s.wild, h[1:]
			}
			if in[h] == nil {
				in[h] = &shelves{}
			}
			sets[in[h]] = append(sets[in[h]], c)
		}
	}
	for at, set := range sets {
		at.build(set)
	}
}

// shelves have the matches for one host. Precedence is that of their order: a match on a
// shelf comes before all on the shelves after it.
type shelves struct {
	exact       map[string]*bucket // HTTP paths, or gRPC calls
	services    map[string]*bucket
	expressions *bucket
	prefixes    prefixSet
	methods     map[string]*bucket
	methodMatch *bucket
	anyCall     *bucket
}

func (s *shelves) build(candidates []candidate) {
	type spot struct {
		in shelf
		at string
	}
	groups := map[spot][]entry{}
	for _, c := range candidates {
		at := spot{c.in, c.at}
		groups[at] = append(groups[at], c.entry)
	}
	s.exact, s.services, s.methods = map[string]*bucket{}, map[string]*bucket{}, map[string]*bucket{}
	for at, entries := range groups {
		b := newBucket(entries)
		switch at.in {
		case exactPaths:
			s.exact[at.at] = b
		case services:
			s.services[at.at] = b
		case methods:
			s.methods[at.at] = b
		case expressions:
			s.expressions = b
		case methodMatches:
			s.methodMatch = b
		case anyCall:
			s.anyCall = b
		case prefixes:
			s.prefixes.add(at.at, b)
		}
	}
}
