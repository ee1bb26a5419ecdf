package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// How a test ended, in Ginkgo's words, and in ours when it could not be run.
const (
	passed = "passed"
	notRun = "not run"
)

// comparison is how the same tests ended on both sides, by their names.
type comparison struct{ outside, inside map[string]outcome }

// onlyOutside are the tests that pass outside the mesh and do not inside, sorted.
func (c comparison) onlyOutside() []string {
	return c.where(func(outside, inside string) bool { return outside == passed && inside != passed })
}

// onlyInside are those that Heddle makes pass: a cluster whose network enforces no
// NetworkPolicy fails their tests.
func (c comparison) onlyInside() []string {
	return c.where(func(outside, inside string) bool { return outside != passed && inside == passed })
}

func (c comparison) where(holds func(outside, inside string) bool) []string {
	var names []string
	for name, result := range c.outside {
		if holds(result.state, c.inside[name].state) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// group is what a test is about: Kubernetes' own first words, without its tags.
func group(name string) string {
	name = strings.TrimSpace(strings.TrimPrefix(name, "[sig-network] "))
	for _, known := range []string{"Networking Granular Checks: Pods", "Networking Granular Checks: Services", "Service endpoints latency",
		"Services GCE", "Netpol API", "NetworkPolicyLegacy", "Connectivity Pod Lifecycle", "Traffic Distribution", "HostPort"} {
		if strings.HasPrefix(name, known) {
			return known
		}
	}
	word, _, _ := strings.Cut(name, " ")
	return word
}

// markdown is the table of the documents: a row for each group, then what differs.
func (c comparison) markdown() string {
	type row struct{ all, outside, inside int }
	rows := map[string]*row{}
	for name, result := range c.outside {
		r := rows[group(name)]
		if r == nil {
			r = &row{}
			rows[group(name)] = r
		}
		if result.state == "skipped" && c.inside[name].state == "skipped" {
			continue // the test finds that this cluster lacks what it needs
		}
		r.all++
		if result.state == passed {
			r.outside++
		}
		if c.inside[name].state == passed {
			r.inside++
		}
	}
	var out strings.Builder
	out.WriteString("| tests | run | pass outside | pass inside |\n|---|---|---|---|\n")
	total := row{}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		if r.all > 0 {
			fmt.Fprintf(&out, "| %s | %d | %d | %d |\n", name, r.all, r.outside, r.inside)
		}
		total.all, total.outside, total.inside = total.all+r.all, total.outside+r.outside, total.inside+r.inside
	}
	fmt.Fprintf(&out, "| all | %d | %d | %d |\n", total.all, total.outside, total.inside)
	c.list(&out, "Pass outside only", c.onlyOutside(), c.inside)
	c.list(&out, "Pass inside only", c.onlyInside(), c.outside)
	c.list(&out, "Pass on neither side", c.where(func(outside, inside string) bool {
		return outside != passed && inside != passed && (outside != "skipped" || inside != "skipped")
	}), c.outside)
	return out.String()
}

// list names tests with the first line of what the side that fails says.
func (c comparison) list(out *strings.Builder, title string, names []string, failing map[string]outcome) {
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s:\n\n", title)
	for _, name := range names {
		line, _, _ := strings.Cut(strings.TrimSpace(failing[name].message), "\n")
		fmt.Fprintf(out, "- %s (%s: %s)\n", name, cmp.Or(failing[name].state, notRun), line)
	}
}

// verdict is an error when a test passes outside only and is not on the list, or is
// on the list and passes inside.
func (c comparison) verdict(listed []difference) error {
	var errs []error
	for _, name := range c.onlyOutside() {
		if !isListed(listed, name) {
			errs = append(errs, fmt.Errorf("passes outside the mesh only: %s", name))
		}
	}
	for _, d := range listed {
		for name := range c.outside {
			if d.is(name) && c.outside[name].state == passed && c.inside[name].state == passed {
				errs = append(errs, fmt.Errorf("passes on both sides: take it off the list of e2e/k8snet/tests.go: %s", name))
			}
		}
	}
	return errors.Join(errs...)
}

// difference is a test that fails inside the mesh by design, and why.
type difference struct{ name, reason string }

func isListed(listed []difference, name string) bool {
	return slices.ContainsFunc(listed, func(d difference) bool { return d.is(name) })
}

// tag is one of a test's name: [LinuxOnly], [Conformance].
var tag = regexp.MustCompile(`\[[^\]]*\]`)

// is reports whether it is this test; tags of the test's name do not count.
func (d difference) is(name string) bool {
	return strings.Join(strings.Fields(tag.ReplaceAllString(name, " ")), " ") == d.name
}
