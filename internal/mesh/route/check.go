package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// Bounds of what a Rule may say. Those of the Gateway API are the same or lower.
const (
	// MaxMatches is the number of matches of a Route.
	MaxMatches = 128
	// MaxValues is the number of headers, and of parameters, in a Match.
	MaxValues = 16
	// MaxSegments is the number of segments of a prefix.
	MaxSegments = 64
	// MaxSteps and MaxRanges are those that all regular expressions of a Route may have; see
	// package pattern, which has what one may. Each counts as stepsEach steps more.
	MaxSteps, MaxRanges = 64 << 10, 32 << 10
	stepsEach           = 24
	// maxValue is the length of the longest value that is compared, in octets.
	maxValue = 4096
)

// Fault is what is wrong with a Rule.
type Fault struct {
	// Field is its path inside the Rule, such as matches[0].path.value.
	Field string
	// Text says what is wrong, Remedy what to do.
	Text, Remedy string
}

// Error returns the three in one line.
func (f *Fault) Error() string { return f.Field + ": " + f.Text + "; " + f.Remedy }

// Check returns what is wrong with the matches of a Rule of a kind: a *Fault, or nil.
// A Table can be made of Routes whose rules have no fault.
func (r *Rule) Check(kind Kind) error {
	if !kind.Requests() && (len(r.Matches)+len(r.Filters) > 0 || r.RequestTimeout+r.BackendTimeout > 0 || r.Retry != nil || r.Session != nil) {
		return &Fault{"matches", "and what is done with requests are no part of a " + kind.String(), "write backendRefs alone"}
	}
	for i := range r.Matches {
		if f := r.Matches[i].check(kind); f != nil {
			f.Field = fmt.Sprintf("matches[%d].%s", i, f.Field)
			return f
		}
	}
	return nil
}

func (m *Match) check(kind Kind) *Fault {
	if kind == GRPC {
		if m.Path != (PathMatch{}) || m.Method != "" || len(m.Params) > 0 {
			return &Fault{"path", "is not a condition of a GRPCRoute", "use method and headers"}
		}
		if f := m.Call.check(); f != nil {
			return f
		}
	} else {
		if m.Call != (CallMatch{}) {
			return &Fault{"method", "names a gRPC call", "use a GRPCRoute"}
		}
		if f := m.Path.check(); f != nil {
			return f
		}
	}
	if f := checkValues("headers", m.Headers); f != nil {
		return f
	}
	return checkValues("queryParams", m.Params)
}

func (p *PathMatch) check() *Fault {
	switch {
	case p.Type == PathExpression:
		return checkExpression("path.value", p.Value)
	case p.Value == "" && p.Type == PathPrefix:
		return nil
	case p.Type > PathExpression:
		return &Fault{"path.type", "is not known", "write Exact, PathPrefix or RegularExpression"}
	}
	for _, part := range []string{"//", "/./", "/../", "%2f", "%2F", "?", "#"} {
		if strings.Contains(p.Value, part) {
			return &Fault{"path.value", fmt.Sprintf("%q has %q", p.Value, part), "take it out: no path of a request is matched by it"}
		}
	}
	if strings.HasSuffix(p.Value, "/.") || strings.HasSuffix(p.Value, "/..") {
		return &Fault{"path.value", fmt.Sprintf("%q ends in a dot segment", p.Value), "write the path that it leads to"}
	}
	normal, ok := uri.NormalPath(p.Value)
	if !ok || normal[0] != '/' {
		return &Fault{"path.value", fmt.Sprintf("%q is not a path", p.Value), "write one such as /shop, of at most 8192 characters"}
	}
	if n := strings.Count(strings.TrimSuffix(normal, "/"), "/"); p.Type == PathPrefix && n > MaxSegments {
		return &Fault{"path.value", fmt.Sprintf("has %d segments", n), fmt.Sprintf("write a prefix of at most %d", MaxSegments)}
	}
	return nil
}

func (c *CallMatch) check() *Fault {
	if c.Expression {
		for _, part := range []struct{ field, value string }{{"method.service", c.Service}, {"method.method", c.Method}} {
			if part.value == "" {
				continue
			}
			if f := checkExpression(part.field, part.value); f != nil {
				return f
			}
		}
		return nil
	}
	for _, part := range []struct{ field, value string }{{"method.service", c.Service}, {"method.method", c.Method}} {
		if strings.ContainsAny(part.value, "/ \t\r\n") {
			return &Fault{part.field, fmt.Sprintf("%q has a slash or a space", part.value), "write the service in one field and the method in the other"}
		}
	}
	return nil
}

func checkValues(field string, all []ValueMatch) *Fault {
	if len(all) > MaxValues {
		return &Fault{field, fmt.Sprintf("are %d", len(all)), fmt.Sprintf("write at most %d", MaxValues)}
	}
	for i, v := range all {
		if v.Name == "" || field == "headers" && !isToken(v.Name) {
			return &Fault{fmt.Sprintf("%s[%d].name", field, i), fmt.Sprintf("%q is not a name", v.Name), "write one such as x-version"}
		}
		if limit := map[string]int{"headers": maxName, "queryParams": maxParam}[field]; len(v.Name) > limit || len(v.Value) > maxValue {
			return &Fault{fmt.Sprintf("%s[%d]", field, i), "is too long", fmt.Sprintf("write a name of at most %d octets and a value of at most %d", limit, maxValue)}
		}
		if !v.Expression {
			continue
		}
		if f := checkExpression(fmt.Sprintf("%s[%d].value", field, i), v.Value); f != nil {
			return f
		}
	}
	return nil
}

// isToken reports whether a text may be the name of a header (RFC 9110, section 5.6.2).
func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(c rune) bool {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	})
}

func checkExpression(field, text string) *Fault {
	if _, err := pattern.Measure(text); err != nil {
		return &Fault{field, err.Error(), fmt.Sprintf("write one in the syntax of RE2, of at most %d characters", pattern.MaxLength)}
	}
	return nil
}

// Room counts what the rules of one Route hold together, so that no Route holds much
// memory. The zero Room is that of a Route without rules.
type Room struct{ matches, steps, ranges int }

// Take counts a Rule that Check has nothing against. The error is a *Fault, and the Rule
// not counted, when there is no room for it.
func (u *Room) Take(r *Rule) error {
	sum := *u
	sum.matches += max(1, len(r.Matches))
	for i := range r.Matches {
		m := &r.Matches[i]
		if m.Path.Type == PathExpression {
			sum.add(m.Path.Value)
		}
		if m.Call.Expression {
			sum.add(m.Call.Service)
			sum.add(m.Call.Method)
		}
		for _, list := range [][]ValueMatch{m.Headers, m.Params} {
			for _, v := range list {
				if v.Expression {
					sum.add(v.Value)
				}
			}
		}
	}
	switch {
	case sum.matches > MaxMatches:
		return &Fault{"matches", fmt.Sprintf("the route has more than %d matches", MaxMatches), "split it"}
	case sum.steps > MaxSteps || sum.ranges > MaxRanges:
		return &Fault{"matches", fmt.Sprintf("the regular expressions of the route have %d steps and %d ranges of characters, at most %d and %d may be",
			sum.steps, sum.ranges, MaxSteps, MaxRanges), "write smaller ones, or split it"}
	}
	*u = sum
	return nil
}

func (u *Room) add(text string) {
	size, err := pattern.Measure(text)
	if text == "" || err != nil {
		return // none, or one that Check has refused
	}
	u.steps, u.ranges = u.steps+size.Steps+stepsEach, u.ranges+size.Ranges
}

// firsts returns those of several conditions that are the first of their names, which
// is in lower case where case does not count.
func firsts(all []ValueMatch, fold bool) (kept []ValueMatch) {
	for _, v := range all {
		if fold {
			v.Name = strings.ToLower(v.Name)
		}
		if !slices.ContainsFunc(kept, func(k ValueMatch) bool { return k.Name == v.Name }) {
			kept = append(kept, v)
		}
	}
	return kept
}
