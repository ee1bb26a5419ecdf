// Package period reads lengths of time as people write them: those of time.ParseDuration, with
// days of 24 hours and weeks of seven days. It knows no calendar.
//
// Functions may be called from any goroutine; a Flag belongs to the flags that it is one of.
package period

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// part is one number with its unit.
var part = regexp.MustCompile(`^([0-9]+\.?[0-9]*|\.[0-9]+)([a-zµμ]+)`)

var errTooLong = errors.New("is longer than 292 years")

// Parse reads such as 90s, 12h, 7d, 1w or 1d12h, also with a sign. The error quotes the text.
func Parse(text string) (time.Duration, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	rest, negative := strings.CutPrefix(text, "-")
	if !negative {
		rest = strings.TrimPrefix(rest, "+")
	}
	total := time.Duration(0)
	for first := true; first || rest != ""; first = false {
		found := part.FindStringSubmatch(rest)
		if found == nil {
			return 0, unread(text)
		}
		d, err := length(found[1], found[2])
		switch {
		case errors.Is(err, errTooLong) || err == nil && total > math.MaxInt64-d:
			return 0, fmt.Errorf("%q %w", text, errTooLong)
		case err != nil:
			return 0, unread(text)
		}
		total, rest = total+d, rest[len(found[0]):]
	}
	if negative {
		total = -total
	}
	return total, nil
}

func unread(text string) error {
	return fmt.Errorf("%q is no duration: write such as 30m, 12h, 7d, 1w or 1d12h", text)
}

// length is that of so many of a unit.
func length(number, unit string) (time.Duration, error) {
	size := map[string]time.Duration{"d": day, "w": week}[unit]
	if size == 0 {
		return time.ParseDuration(number + unit)
	}
	hours, err := time.ParseDuration(number + "h")
	if err != nil || hours > math.MaxInt64/(size/time.Hour) {
		return 0, errTooLong // the number is one
	}
	return hours * (size / time.Hour), nil
}

// Format writes what Parse reads, in days, and what is left of them, from one day on.
func Format(d time.Duration) string {
	if d < day {
		return d.String()
	}
	text := fmt.Sprintf("%dd", d/day)
	if left := d % day; left > 0 {
		text += left.String()
	}
	return text
}

// Flag is a flag of the command line.
type Flag struct{ to *time.Duration }

// Var returns a Flag that sets to, which is initial until then.
func Var(to *time.Duration, initial time.Duration) *Flag {
	*to = initial
	return &Flag{to}
}

// Set is of pflag.Value, as the others are.
func (f *Flag) Set(text string) (err error) {
	d, err := Parse(text)
	if err == nil {
		*f.to = d
	}
	return err
}

func (f *Flag) String() string { return Format(*f.to) }

// Type is what help calls the value.
func (f *Flag) Type() string { return "duration" }
