package steer

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestInstall: installing twice is installing once, other settings replace
// earlier ones, a family that is not there any more goes, and foreign rules and
// routes stay.
func TestInstall(t *testing.T) {
	ns := testenv.NewNetNS(t, "steer")
	v4, v6 := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")
	show := func() string {
		var all strings.Builder
		for _, args := range []string{"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"} {
			out, err := exec.Command("ip", append([]string{"-n", ns.Name}, strings.Fields(args)...)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			all.Write(out)
		}
		return all.String()
	}
	ns.Must(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{v4.String() + "/32", v6.String() + "/128"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, addr); err != nil {
				return err
			}
		}
		foreign := netlink.NewRule()
		foreign.Family, foreign.Priority, foreign.Table, foreign.IPProto = unix.AF_INET, 100, 7, unix.IPPROTO_TCP
		return netlink.RuleAdd(foreign)
	})
	var h *netlink.Handle
	ns.Must(t, func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	defer h.Close()
	before := show()
	s := Steering{Mark: 0x10, Mask: 0xf0, Table: 100, Loopback: 1, Addrs: []netip.Addr{v4, v6}}
	install := func(s Steering) string {
		t.Helper()
		if err := s.Install(h); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(h); err != nil {
			t.Errorf("check: %v", err)
		}
		return show()
	}
	once := install(s)
	if once == before || install(s) != once {
		t.Errorf("installed once:\n%s\ntwice:\n%s", once, show())
	}
	other := s
	other.Mark, other.Table, other.Addrs = 0x20, 200, []netip.Addr{v6}
	replaced := install(other)
	if strings.Contains(replaced, "fwmark 0x10/") || strings.Contains(replaced, "table 100") || strings.Count(replaced, "fwmark 0x20/0xf0") != 1 {
		t.Errorf("other settings:\n%s", replaced)
	}
	if err := s.Check(h); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("check of former settings: %v", err)
	}
	if err := Uninstall(h); err != nil {
		t.Fatal(err)
	}
	if after := show(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestFamilies(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")
	if f := Families([]netip.Addr{v6, v4}); len(f) != 2 || f[0] != unix.AF_INET || f[1] != unix.AF_INET6 {
		t.Errorf("families %v", f)
	}
	if f := Families([]netip.Addr{v6}); len(f) != 1 || f[0] != unix.AF_INET6 {
		t.Errorf("families %v", f)
	}
	if a := AddressOf([]netip.Addr{v6}, unix.AF_INET); a.IsValid() {
		t.Errorf("IPv4 address %s of an IPv6 pod", a)
	}
}
