package tune_test

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/internal/tune"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestBounds: each may be at its least and most, and nothing beyond.
func TestBounds(t *testing.T) {
	got, err := tune.ParseBounds(tune.List("max-requests=20000, stall-timeout=2m,max-body=0"))
	if err != nil || len(got) != 3 || got["max-requests"] != "20000" || got["stall-timeout"] != "2m" || got["max-body"] != "0" {
		t.Errorf("%v %v", got, err)
	}
	if got, err := tune.ParseBounds(tune.List("")); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %v %v", got, err)
	}
	for text, says := range map[string]string{
		"max-requests":                    "NAME=VALUE",
		"listen=:80":                      "is no bound",
		"max-requests=2,max-requests=3":   "twice",
		"max-requests=0":                  "from 1 to 100000",
		"max-requests=2m":                 "want a number",
		"max-buffered-bytes=536870913":    "from 1048576 to 536870912",
		"max-body=-1":                     "from 0",
		"stall-timeout=60":                "want a time",
		"stall-timeout=25h":               "from 1s to 24h0m0s",
		"drain=0s":                        "drain",
		"max-requests=20000,":             "is no bound",
		"connect-timeout=1ms,idle=1":      "connect-timeout",
		"header-timeout=99999999999999h":  "header-timeout",
		"max-connections=999999999999999": "max-connections",
	} {
		if _, err := tune.ParseBounds(tune.List(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
}

func TestAccess(t *testing.T) {
	for share, none := range map[string]bool{"0": true, "0.0": true, "1": false, "0.01": false} {
		if err := tune.CheckAccess(share); err != nil || tune.NoAccess(share) != none {
			t.Errorf("%s: %v, none: %v", share, err, tune.NoAccess(share))
		}
	}
	for _, share := range []string{"", "on", "true", "-1", "1.01", "NaN", "Inf"} {
		if tune.CheckAccess(share) == nil {
			t.Errorf("%q is taken", share)
		}
	}
	if err := tune.CheckMask(tune.List("")); err != nil {
		t.Error(err)
	}
	if err := tune.CheckMask(tune.List("query,path")); err != nil {
		t.Error(err)
	}
	if err := tune.CheckMask(tune.List("query,cookie")); err == nil || !strings.Contains(err.Error(), "cookie") || !strings.Contains(err.Error(), "user_agent") {
		t.Error(err)
	}
}

// FuzzBounds: what is taken is a bound of each name, and nothing else.
func FuzzBounds(f *testing.F) {
	f.Add("max-requests=20000,stall-timeout=2m")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := tune.ParseBounds(tune.List(text))
		if err != nil {
			return
		}
		var again []string
		for name, value := range got {
			again = append(again, name+"="+value)
		}
		if same, err := tune.ParseBounds(again); err != nil || len(same) != len(got) {
			t.Errorf("%q: %v, %v", text, same, err)
		}
	})
}
