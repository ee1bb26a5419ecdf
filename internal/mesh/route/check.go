package route

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// Bounds of what a Rule may say. Those of the Gateway API are the same or lower.
const (
	// MaxExpression is the length of the longest regular expression, in octets.
	MaxExpression = 1024
	// MaxProgram is the number of instructions that one may compile to.
	MaxProgram = 1000
	// MaxMatches is the number of matches of a Route.
	MaxMatches = 128
	// MaxValues is the number of headers, and of parameters, in a Match.
	MaxValues = 16
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
	if _, ok := NormalPath(p.Value); !ok || p.Value[0] != '/' {
		return &Fault{"path.value", fmt.Sprintf("%q is not a path", p.Value), "write one such as /shop, of at most 8192 characters"}
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
	if _, err := newExpression(text); err != nil {
		return &Fault{field, err.Error(), fmt.Sprintf("write one in the syntax of RE2, of at most %d characters", MaxExpression)}
	}
	return nil
}

// expression matches whole values.
type expression struct {
	*regexp.Regexp
	size int // in instructions
}

func newExpression(text string) (*expression, error) {
	if len(text) > MaxExpression {
		return nil, fmt.Errorf("a regular expression of %d characters is too long: at most %d", len(text), MaxExpression)
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("%q is not a regular expression: %w", text, err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("compile regular expression %q: %w", text, err)
	}
	if len(program.Inst) > MaxProgram {
		return nil, fmt.Errorf("regular expression %q is too large: it has %d steps, at most %d may be", text, len(program.Inst), MaxProgram)
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("compile regular expression %q: %w", text, err)
	}
	return &expression{re, len(program.Inst) + 8}, nil
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
