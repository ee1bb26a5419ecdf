// Package pattern has the regular expressions of routes: RE2's, for whole values, with
// bounds on what each costs in time and in memory that hold before it is compiled.
package pattern

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

const (
	// MaxLength is the length of the longest expression, in octets.
	MaxLength = 1024
	// MaxSteps is the number of instructions that one may compile to.
	MaxSteps = 1000
	// MaxRanges is the number of ranges that its classes of characters may have: \pL has
	// some 650.
	MaxRanges = 4096
	// maxClasses bounds \p and \P, each of which is a large table for the parser already.
	maxClasses = 16
)

// Size is what an expression compiles to, at most.
type Size struct{ Steps, Ranges int }

// Pattern is a compiled expression. It is immutable.
type Pattern struct {
	re    *regexp.Regexp
	steps int
	// What each value that matches begins with, ends in and has.
	prefix, suffix, inside string
}

// Measure returns the size of an expression, counted on its syntax tree: nothing is
// compiled. The error says what is wrong with it.
func Measure(text string) (Size, error) {
	_, size, err := parse(text)
	return size, err
}

func parse(text string) (*syntax.Regexp, Size, error) {
	if len(text) > MaxLength {
		return nil, Size{}, fmt.Errorf("a regular expression of %d characters is too long: at most %d", len(text), MaxLength)
	}
	if n := strings.Count(text, `\p`) + strings.Count(text, `\P`); n > maxClasses {
		return nil, Size{}, fmt.Errorf("regular expression %q is too large: it names %d classes of Unicode, at most %d may be", text, n, maxClasses)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, Size{}, fmt.Errorf("%q is not a regular expression: %w", text, err)
	}
	size := measure(tree)
	switch {
	case size.Steps > MaxSteps:
		return nil, size, fmt.Errorf("regular expression %q is too large: it has %d steps or more, at most %d may be", text, size.Steps, MaxSteps)
	case size.Ranges > MaxRanges:
		return nil, size, fmt.Errorf("regular expression %q is too large: its classes have %d ranges or more, at most %d may be", text, size.Ranges, MaxRanges)
	}
	return tree, size, nil
}

// enough ends the counting, so that repeats of repeats do not overflow it.
const enough = 1 << 20

// measure counts instructions as package syntax compiles them, or more.
func measure(re *syntax.Regexp) Size {
	size := Size{Steps: 2}
	for _, sub := range re.Sub {
		s := measure(sub)
		size.Steps, size.Ranges = size.Steps+s.Steps, size.Ranges+s.Ranges
	}
	switch re.Op {
	case syntax.OpLiteral:
		size.Steps = len(re.Rune)
	case syntax.OpCharClass:
		size = Size{1, len(re.Rune) / 2}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL, syntax.OpEmptyMatch:
		size.Steps = 1
	case syntax.OpConcat:
		size.Steps -= 2
	case syntax.OpAlternate:
		size.Steps += len(re.Sub)
	case syntax.OpRepeat:
		n := max(1, re.Min, re.Max)
		size.Steps, size.Ranges = n*(size.Steps-2)+max(0, re.Max-re.Min)+2, n*size.Ranges
	}
	return Size{min(size.Steps, enough), min(size.Ranges, enough)}
}

// Compile returns the Pattern of an expression. The error says what is wrong with it.
func Compile(text string) (*Pattern, error) {
	tree, size, err := parse(text)
	if err != nil {
		return nil, err
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil { // then \Q has no \E, as the text alone is an expression
		re, err = regexp.Compile(`\A(?:` + text + `\E)\z`)
	}
	if err != nil {
		return nil, fmt.Errorf("compile regular expression %q: %w", text, err)
	}
	p := &Pattern{re: re, steps: size.Steps + 10}
	p.prefix, p.suffix, p.inside = literals(tree)
	return p, nil
}

// literals returns texts that every match begins with, ends in and has; "" when it is not
// known of any.
func literals(re *syntax.Regexp) (prefix, suffix, inside string) {
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	for i, part := range parts {
		text := string(part.Rune)
		// An octet that is no UTF-8 is matched by U+FFFD, which is another text.
		if part.Op != syntax.OpLiteral || part.Flags&syntax.FoldCase != 0 || strings.ContainsRune(text, '\uFFFD') {
			continue
		}
		switch {
		case i == 0:
			prefix = text
		case i == len(parts)-1:
			suffix = text
		case len(text) > len(inside):
			inside = text
		}
	}
	return prefix, suffix, inside
}

// Excludes reports whether a value cannot match, as a literal text of the expression is
// missing: that costs little.
func (p *Pattern) Excludes(value string) bool {
	return !strings.HasPrefix(value, p.prefix) || !strings.HasSuffix(value, p.suffix) || !strings.Contains(value, p.inside)
}

// Cost bounds the steps that Match takes: instructions times length.
func (p *Pattern) Cost(value string) int { return p.steps * (len(value) + 1) }

// Match reports whether the expression matches a value, as a whole.
func (p *Pattern) Match(value string) bool { return p.re.MatchString(value) }
