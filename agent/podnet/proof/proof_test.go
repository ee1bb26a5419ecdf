package proof

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestFrames: checksums are right (the sum over what they cover, with them, is
// zero), and the addresses are known again.
func TestFrames(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for family, own := range map[int]string{unix.AF_INET: "10.0.0.1", unix.AF_INET6: "fd00::1"} {
		src, dst := netip.MustParseAddr(own), Address(family)
		if !Is(dst) || Is(src) {
			t.Errorf("%s, %s", src, dst)
		}
		frame := Frame(mac, mac, src, dst, 4321)
		tcp := frame[len(frame)-22:]
		if binary.BigEndian.Uint16(tcp) != 4321 || checksum(append(pseudoHeader(src, dst, len(tcp)), tcp...)) != 0 {
			t.Errorf("TCP: % x", tcp)
		}
		if family == unix.AF_INET && checksum(frame[14:34]) != 0 {
			t.Errorf("IPv4: % x", frame[14:34])
		}
	}
}
