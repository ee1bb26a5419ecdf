// Package tune says what a platform team may set of a waypoint from outside of its pod, how it is written, and within which
// bounds: what is bounded and what the access log has. It is shared by the operator, which checks it, and the
// waypoint, whose flags have the same names; it holds no settings, and applies none.
package tune

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bound is one that a waypoint keeps. Its name is that of the flag of heddle-waypoint.
type Bound struct {
	Name string
	// Least and Most are what it may be: nanoseconds where it is a time, else a number, of bytes where the name says so.
	Least, Most int64
	Time        bool
}

// Drain is the name of the bound of how long a waypoint takes to stop: its pod has to be given as long.
const Drain = "drain"

// Bounds are all that may be set, in the order in which they are told. What they may be has room in a waypoint's pod, which has
// 1 GiB of memory: an idle connection takes some 4 KB, and the bytes that are held are counted once.
func Bounds() []Bound {
	number := func(name string, least, most int64) Bound { return Bound{Name: name, Least: least, Most: most} }
	span := func(name string, least, most time.Duration) Bound {
		return Bound{Name: name, Least: int64(least), Most: int64(most), Time: true}
	}
	return []Bound{
		number("max-connections", 1, 100_000), number("max-requests", 1, 100_000), number("max-buffered-bytes", 1<<20, 512<<20),
		number("max-replay-bytes", 1, 16<<20), number("max-body", 0, 1<<40),
		span("header-timeout", 100*time.Millisecond, 10*time.Minute), span("hold", time.Millisecond, time.Minute), span("idle-timeout", time.Second, 24*time.Hour),
		span("stall-timeout", time.Second, 24*time.Hour), span("connect-timeout", 10*time.Millisecond, time.Minute), span(Drain, time.Second, time.Hour),
	}
}

// limit writes a bound's least or most as one writes it.
func (b *Bound) limit(n int64) string {
	if b.Time {
		return time.Duration(n).String()
	}
	return strconv.FormatInt(n, 10)
}

// Ends are the least and the most that it may be, as one writes them.
func (b *Bound) Ends() [2]string { return [2]string{b.limit(b.Least), b.limit(b.Most)} }

// example is what is shown to who wrote a bound that is none.
const example = "max-requests=20000,stall-timeout=2m"

// ParseBounds reads bounds such as "max-requests=20000" and "stall-timeout=2m". The error names the one that is none, and what may
// be written in its place.
func ParseBounds(texts []string) (map[string]string, error) {
	said := map[string]string{}
	for _, text := range texts {
		name, value, ok := strings.Cut(strings.TrimSpace(text), "=")
		all := Bounds()
		i := slices.IndexFunc(all, func(b Bound) bool { return b.Name == name })
		if !ok || i < 0 {
			return nil, fmt.Errorf("%q is no bound of a waypoint; write NAME=VALUE, such as %s, of %s", text, example, names(all))
		}
		if _, twice := said[name]; twice {
			return nil, fmt.Errorf("%s is there twice; leave one out", name)
		}
		if err := all[i].check(value); err != nil {
			return nil, err
		}
		said[name] = value
	}
	return said, nil
}

func (b *Bound) check(value string) error {
	var n int64
	var err error
	if b.Time {
		var d time.Duration
		d, err = time.ParseDuration(value)
		n = int64(d)
	} else {
		n, err = strconv.ParseInt(value, 10, 64)
	}
	if err != nil || n < b.Least || n > b.Most {
		what, ends := map[bool]string{true: "time", false: "number"}[b.Time], b.Ends()
		return fmt.Errorf("%s: %q: want a %s from %s to %s", b.Name, value, what, ends[0], ends[1])
	}
	return nil
}

func names(all []Bound) string {
	list := make([]string, len(all))
	for i := range all {
		list[i] = all[i].Name
	}
	return strings.Join(list, ", ")
}

// AccessFields are the names of the access log's fields, in their order: those that it may mask.
func AccessFields() []string {
	return []string{"time", "client", "peer", "service", "route", "backend", "workload", "method", "host", "path", "query", "user_agent", "status",
		"received_bytes", "sent_bytes", "seconds", "tries", "first_error", "reason"}
}

// CheckAccess says what is wrong with the share of requests that the access log is to have, 0 for none.
func CheckAccess(share string) error {
	part, err := strconv.ParseFloat(share, 64)
	if err != nil || math.IsNaN(part) || part < 0 || part > 1 {
		return fmt.Errorf("%q is no share of the requests; write one from 0, for no access log, to 1, for all of them, such as 0.01", share)
	}
	return nil
}

// NoAccess reports whether a share that CheckAccess takes is none of the requests.
func NoAccess(share string) bool {
	part, err := strconv.ParseFloat(share, 64)
	return err != nil || part == 0
}

// CheckMask says which of some names is not that of a field of the access log. There may be none.
func CheckMask(fields []string) error {
	for _, name := range fields {
		if !slices.Contains(AccessFields(), name) {
			return fmt.Errorf("%q is no field of the access log; write some of %s", name, strings.Join(AccessFields(), ","))
		}
	}
	return nil
}

// List reads a list as a flag of one has it: "" has nothing in it.
func List(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}
