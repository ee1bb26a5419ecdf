package main

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/cmd/internal/startup"
	"github.com/heddle-mesh/heddle/internal/tune"
	"github.com/heddle-mesh/heddle/waypoint"
)

// TestTuned: each bound that a Gateway may set is a flag, takes its least and its most from the environment, and is within
// what the waypoint has by itself.
func TestTuned(t *testing.T) {
	for _, b := range tune.Bounds() {
		o := options{cfg: waypoint.Defaults()}
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		o.register(flags)
		f := flags.Lookup(b.Name)
		if f == nil {
			t.Errorf("there is no --%s", b.Name)
			continue
		}
		if _, err := tune.ParseBounds([]string{b.Name + "=" + f.DefValue}); err != nil || (f.Value.Type() == "duration") != b.Time {
			t.Errorf("--%s, a %s: %v", b.Name, f.Value.Type(), err)
		}
		for _, value := range b.Ends() {
			env := func(name string) (string, bool) {
				return value, name == "HEDDLE_"+strings.ToUpper(strings.ReplaceAll(b.Name, "-", "_"))
			}
			if err := startup.FromEnvironment(flags, env); err != nil || !f.Changed || f.Value.String() != value {
				t.Errorf("%s is %s, want %s: %v", b.Name, f.Value, value, err)
			}
			f.Changed = false
		}
	}
	folder, _ := documented(t)
	err := run(t.Context(), []string{"--waypoint", "shop/waypoint", "--config", folder, "--listen", "127.0.0.1:0", "--metrics", "", "--max-body", "-1"}, noEnvironment, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "bound of a body") {
		t.Errorf("a bound below 0: %v", err)
	}
}
