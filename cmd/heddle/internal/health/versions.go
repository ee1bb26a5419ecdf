package health

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// release is what a version says of a release: MAJOR.MINOR, whatever follows.
var release = regexp.MustCompile(`^v?(\d+)\.(\d+)\.\d+`)

// Versions are who runs which.
type Versions map[string][]string

// Add notes who runs a version; "" is not known.
func (v Versions) Add(version, who string) {
	if version != "" {
		v[version] = append(v[version], who)
	}
}

// String returns "v1.2.0 (n1, n2), v1.3.0 (heddle-operator-0)".
func (v Versions) String() string {
	var all []string
	for _, version := range slices.SortedFunc(maps.Keys(v), compareVersions) {
		who := slices.Sorted(slices.Values(v[version]))
		if more := len(who) - 3; more > 0 {
			who = append(who[:3], fmt.Sprintf("and %d more", more))
		}
		all = append(all, fmt.Sprintf("%s (%s)", version, strings.Join(who, ", ")))
	}
	return strings.Join(all, ", ")
}

func compareVersions(a, b string) int {
	x, xOK := releaseOf(a)
	y, yOK := releaseOf(b)
	if xOK && yOK {
		return cmp.Or(slices.Compare(x[:], y[:]), strings.Compare(a, b))
	}
	return strings.Compare(a, b)
}

// releaseOf reads MAJOR and MINOR; a build without a release has none.
func releaseOf(version string) (of [2]int, ok bool) {
	found := release.FindStringSubmatch(version)
	if found == nil {
		return of, false
	}
	var errs [2]error
	for i := range of {
		of[i], errs[i] = strconv.Atoi(found[i+1])
	}
	return of, errs[0] == nil && errs[1] == nil
}

// MajorStep reports whether versions are of two releases, and the newer one is the first of
// the next major version. Whether there was one between them, no version says.
func (v Versions) MajorStep() bool {
	releases := map[[2]int]bool{}
	for version := range v {
		if of, ok := releaseOf(version); ok {
			releases[of] = true
		}
	}
	if len(releases) != 2 {
		return false
	}
	two := slices.SortedFunc(maps.Keys(releases), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
	return two[1] == [2]int{two[0][0] + 1, 0}
}

// TooFar says what is wrong when versions are known to be further apart than one release, which
// is as far as their programs were tested to understand each other; "" is nothing.
func (v Versions) TooFar() (detail, remedy string) {
	var all [][2]int
	for version := range v {
		if of, ok := releaseOf(version); ok {
			all = append(all, of)
		}
	}
	if len(all) == 0 {
		return "", ""
	}
	order := func(a, b [2]int) int { return slices.Compare(a[:], b[:]) }
	oldest, newest := slices.MinFunc(all, order), slices.MaxFunc(all, order)
	if oldest[0] == newest[0] && newest[1]-oldest[1] <= 1 || v.MajorStep() {
		return "", ""
	}
	return "further apart than one release: " + v.String(),
		"upgrade to one release after the other, the operator and the agents of each, with `heddle upgrade`"
}

// Versions looks at who runs which version.
func (r *Report) Versions(v Versions) {
	const part, name = "mesh", "versions"
	detail, remedy := v.TooFar()
	switch {
	case detail != "":
		r.Bad(part, name, detail, remedy)
	case len(v) > 1:
		r.Good(part, name, "an upgrade is on its way: %s", v)
	case len(v) == 1:
		r.Good(part, name, "all are %s", slices.Collect(maps.Keys(v))[0])
	}
}
