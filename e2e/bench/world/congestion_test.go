package world

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestCongestion: all of a world goes by the congestion control that it is told, the agents included, which
// look at their namespaces' when they begin.
func TestCongestion(t *testing.T) {
	w := up(t, "heddle", "reno") // it is allowed on every machine
	err := w.eachNetNS(func(name string) error {
		out, err := exec.Command("ip", "netns", "exec", name, "cat", procIPv4+"tcp_congestion_control").Output()
		if got := strings.TrimSpace(string(out)); err == nil && got != "reno" {
			t.Errorf("%s goes by %s, want reno", name, got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Where it paces, the agent has the pods' programs go by another one, by their routes to it (ADR 31).
	err = w.mesh.InPod(Client(0), func() error {
		out, err := exec.Command("ip", "route", "show", "table", "all").Output()
		if strings.Contains(string(out), "congctl") {
			t.Errorf("the agent goes by what was there before:\n%s", out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, w)
}

func TestAllowCongestion(t *testing.T) {
	testenv.NeedRoot(t)
	allowed := func() string {
		text, err := os.ReadFile(procIPv4 + "tcp_allowed_congestion_control")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	before := allowed()
	undo, err := AllowCongestion("cubic") // Linux's own default, so it is there
	if err != nil {
		t.Fatal(err)
	}
	if now := allowed(); !strings.Contains(now, "cubic") {
		t.Errorf("allowed: %s", now)
	}
	ns := testenv.NewNetNS(t, "congestion")
	ns.Must(t, func() error { return os.WriteFile(procIPv4+"tcp_congestion_control", []byte("cubic"), 0) })
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	if now := allowed(); now != before {
		t.Errorf("allowed: %s, and before %s", now, before)
	}
	if _, err := AllowCongestion("joy"); err == nil || !strings.Contains(err.Error(), "cubic") {
		t.Errorf("what is not there: %v", err)
	}
}
