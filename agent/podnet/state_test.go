package podnet

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestStateSpoiled: a pod whose file cannot be understood is neither enrolled
// nor opened.
func TestStateSpoiled(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.start(t)
	w.enroll(t, n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.config.StateDir, "shop_web.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{", `{"Version":99}`, strings.Replace(string(good), "shop_web", "other", 1)} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		n = w.reopen(t)
		pins := w.pins(t)
		for what, err := range map[string]error{"enroll": second(n.Enroll(t.Context(), w.spec())), "unenroll": n.Unenroll(t.Context(), "shop_web")} {
			if err == nil || !strings.Contains(err.Error(), file) {
				t.Errorf("%s with state %q: %v", what, bad, err)
			}
		}
		if len(pins) == 0 || len(w.pins(t)) != len(pins) {
			t.Errorf("the gate was opened: pins %v, then %v", pins, w.pins(t))
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
}

func second(_ *Pod, err error) error { return err }

func TestName(t *testing.T) {
	long := strings.Repeat("x", 200)
	names := map[string]mesh.Key{}
	for _, k := range []mesh.Key{{Namespace: "a", Name: "b-c"}, {Namespace: "a-b", Name: "c"}, {Namespace: "a", Name: "b.c"}, {Namespace: "a", Name: long + "1"}, {Namespace: "a", Name: long + "2"}} {
		name := Name(k)
		spec := Spec{Name: name, NetNSPath: "/x", Addresses: []netip.Addr{pod4}}
		if err := spec.validate(); err != nil {
			t.Error(err)
		}
		if other, ok := names[name]; ok {
			t.Errorf("%v and %v are both %s", k, other, name)
		}
		names[name] = k
	}
}

func TestConfigRefuses(t *testing.T) {
	whole := Config{PinDir: "/sys/fs/bpf/x", StateDir: t.TempDir(), Cgroup: "/x"}
	for name, spoil := range map[string]func(*Config){
		"no pins":  func(c *Config) { c.PinDir = "" },
		"mark":     func(c *Config) { c.Mark, c.MarkMask = 0x11, 0x10 },
		"no mark":  func(c *Config) { c.MarkMask = 0x10 },
		"cgroup":   func(c *Config) { c.Cgroup = "" },
		"no netns": func(c *Config) { c.NetNS = "/no/such" },
	} {
		c := whole
		spoil(&c)
		if n, err := Open(c); err == nil {
			n.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

// TestSpecOfRevoked: of a pod whose identity is revoked queries are captured, whatever the
// configuration says, and of no other.
func TestSpecOfRevoked(t *testing.T) {
	for _, dns := range []mesh.DNSMode{mesh.DNSDefault, mesh.DNSDirect, mesh.DNSCapture} {
		w := mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: "web"}, DNS: dns}
		if s := SpecOf(&w, false, true); !s.Revoked || !s.CaptureDNS {
			t.Errorf("DNS mode %v, revoked: %+v", dns, s)
		}
		if s := SpecOf(&w, false, false); s.Revoked || s.CaptureDNS != (dns == mesh.DNSCapture) {
			t.Errorf("DNS mode %v: %+v", dns, s)
		}
	}
}
