package hbone

import (
	"net/netip"
	"strings"
	"testing"
	"testing/quick"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestForwardedRoundTrip(t *testing.T) {
	same := func(raw [16]byte, four bool, port uint16) bool {
		addr := netip.AddrFrom16(raw)
		if four {
			addr = netip.AddrFrom4([4]byte(raw[:4]))
		}
		if addr.Is4In6() {
			return true
		}
		want := netip.AddrPortFrom(addr, port)
		got, err := ParseForwarded(FormatForwarded(want))
		return err == nil && got == want
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}

func TestForwardedRefusals(t *testing.T) {
	for _, s := range []string{
		"", ",", ";", "for", "for=", "for=1.2.3.4,", `for="1.2.3.4`, `for="1.2.3.4"x`, "for=1.2.3.4;;proto=http", "for=1.2.3.4;for=1.2.3.4",
		"for=1.2.3.4;FOR=1.2.3.5", "for=1.2.3.4 proto=http", `for="1.2.3.4\`, "for=\"1.2.3.4\x00\"", `for="1.2.3.4:99999"`, `for="1.2.3.4:+5"`, `for="1.2.3.4:05"`,
		`for="[::ffff:1.2.3.4]:5"`, `for="[1.2.3.4]:5"`, `for="::1"`, `for="[fe80::1%lo]:1"`, `for="[::1"`, "for=host.example", strings.Repeat("for=1.2.3.4,", 100) + "for=1.2.3.4",
	} {
		if got, err := ParseForwarded(s); err == nil {
			t.Errorf("%q: got %v", s, got)
		}
	}
}

func TestTraceParent(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for s, want := range map[string]bool{
		good: true, "": false, good + "0": false, strings.ToUpper(good): false, "ff" + good[2:]: false, strings.Replace(good, "-", "_", 1): false,
	} {
		if got := ValidTraceParent(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// FuzzForwarded: what is accepted has one meaning, which survives being
// written again, and an address that is no guess.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{`for="10.0.0.1:1"`, `for="[2001:db8::1]:99";host=x, for=_y`, `By=1.2.3.4;for=unknown;proto="a\"b"`, `for="1.2.3.4:_p"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseForwarded(s)
		if err != nil || !got.IsValid() {
			return
		}
		if got.Addr().Zone() != "" || got.Addr().Is4In6() || len(s) > maxForwardedBytes {
			t.Errorf("%q: accepted as %v", s, got)
		}
		if again, err := ParseForwarded(FormatForwarded(got)); err != nil || again != got {
			t.Errorf("%q: %v, then %v, %v", s, got, again, err)
		}
		if !strings.Contains(strings.ToLower(s), "for=") {
			t.Errorf("%q: %v from nowhere", s, got)
		}
	})
}

// FuzzAuthority: whatever is accepted, net/netip reads the same, and it is a
// target that one can connect to.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[::1]:443", "[2001:DB8::1]:5", "1.2.3.4:065", "host:1", "[::ffff:1.2.3.4]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseAuthority(s)
		if err != nil {
			return
		}
		same, err := netip.ParseAddrPort(s)
		if err != nil || same != got {
			t.Errorf("%q: %v here, %v, %v there", s, got, same, err)
		}
		if a := got.Addr(); got.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() || strings.ContainsAny(s, "@/ +%") {
			t.Errorf("%q: accepted as %v", s, got)
		}
	})
}
