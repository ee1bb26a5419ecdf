package period

import (
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "10m": 10 * time.Minute, "7d": 7 * 24 * time.Hour, "1w": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour, "1w2d3h4m5.5s": (9*24+3)*time.Hour + 4*time.Minute + 5500*time.Millisecond,
		"1.5d": 36 * time.Hour, ".5w": 84 * time.Hour, "-1d": -24 * time.Hour, "+1d": 24 * time.Hour, "1d500ms": 24*time.Hour + time.Second/2, "1d3µs": 24*time.Hour + 3*time.Microsecond,
		"106751d": 106751 * 24 * time.Hour,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "is no duration", "-": "is no duration", "d": "is no duration", "7": "write such as 30m, 12h, 7d", "7D": "is no duration", "7 days": "is no duration", "7days": "is no duration", "1y": "is no duration",
		"1d-1h": "is no duration", "--1d": "is no duration", "yesterday": "is no duration", "1d ": "is no duration", "106752d": "292 years", "99999999999999999999w": "292 years", "106751d24h": "292 years",
	} {
		if got, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"1d12h", "-1w", ".d", "1.d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		if strings.HasPrefix(text, "-") != (d < 0) && d != 0 {
			t.Errorf("%q is %v", text, d)
		}
		if again, err := Parse(Format(d)); err != nil || again != d {
			t.Errorf("%q is %v, written %s, and that is %v, %v", text, d, Format(d), again, err)
		}
	})
}

func TestFlag(t *testing.T) {
	var d time.Duration
	f := Var(&d, 7*24*time.Hour)
	if f.String() != "7d" || d != 7*24*time.Hour {
		t.Errorf("at first: %s, %v", f, d)
	}
	if err := f.Set("36h"); err != nil || f.String() != "1d12h0m0s" || d != 36*time.Hour {
		t.Errorf("36h: %s, %v, %v", f, d, err)
	}
	if err := f.Set("soon"); err == nil || d != 36*time.Hour {
		t.Errorf("soon: %v, %v", d, err)
	}
}
