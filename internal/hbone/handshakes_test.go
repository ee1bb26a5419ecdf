package hbone

import (
	"errors"
	"net/netip"
	"testing"
)

// crowd begins n handshakes of a source; cuts counts those that were cut.
func crowd(h *Handshakes, source string, n int, cuts *int) (begun []*Handshake, refused int) {
	for range n {
		hs, err := h.Begin(netip.MustParseAddr(source), func() { *cuts++ })
		if errors.Is(err, ErrLimit) {
			refused++
			continue
		}
		begun = append(begun, hs)
	}
	return begun, refused
}

func TestHandshakesOfOneSource(t *testing.T) {
	h, cuts := NewHandshakes(256), 0
	begun, refused := crowd(h, "192.0.2.1", 1000, &cuts)
	if len(begun) != 64 || refused != 936 || h.Len() != 64 {
		t.Errorf("%d begun, %d refused, %d under way", len(begun), refused, h.Len())
	}
	// The whole /64 is one source, and so is an IPv4 address in either form.
	six, _ := crowd(h, "2001:db8::1", 50, &cuts)
	more, _ := crowd(h, "2001:db8::ffff:2%eth0", 50, &cuts)
	if len(six)+len(more) != 64 {
		t.Errorf("%d begun of one /64", len(six)+len(more))
	}
	if got, _ := crowd(h, "::ffff:192.0.2.1", 1, &cuts); len(got) != 0 {
		t.Error("an IPv4 address has two shares")
	}
	for _, hs := range append(append(begun, six...), more...) {
		if err := h.End(hs); err != nil {
			t.Error(err)
		}
	}
	if h.Len() != 0 || len(h.sources) != 0 || cuts != 0 {
		t.Errorf("%d under way of %d sources, %d cut", h.Len(), len(h.sources), cuts)
	}
}

func TestHandshakesMakeRoom(t *testing.T) {
	h, cuts := NewHandshakes(16), 0
	var greedy [][]*Handshake
	for _, source := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"} {
		begun, _ := crowd(h, source, 9, &cuts)
		greedy = append(greedy, begun)
	}
	honest, refused := crowd(h, "198.51.100.1", 1, &cuts)
	if refused != 0 || cuts != 1 || h.Len() != 16 {
		t.Fatalf("%d refused, %d cut, %d under way", refused, cuts, h.Len())
	}
	if err := h.End(greedy[0][0]); !errors.Is(err, ErrLimit) {
		t.Errorf("the oldest of all: %v, want ErrLimit", err)
	}
	if err := h.End(honest[0]); err != nil || h.Len() != 15 {
		t.Errorf("%v, %d under way", err, h.Len())
	}
	// The one that lost a place ended once more changes nothing.
	if err := h.End(greedy[0][0]); err == nil || h.Len() != 15 {
		t.Errorf("%v, %d under way", err, h.Len())
	}
	h.Cut()
	if cuts != 16 || h.Len() != 15 {
		t.Errorf("%d cut, %d under way", cuts, h.Len())
	}
}

// TestHandshakesOfEqualsFinish: where nobody has more than others, those who
// came first are served.
func TestHandshakesOfEqualsFinish(t *testing.T) {
	h, cuts := NewHandshakes(4), 0
	for _, source := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"} {
		crowd(h, source, 1, &cuts)
	}
	if _, refused := crowd(h, "192.0.2.5", 1, &cuts); refused != 1 || cuts != 0 {
		t.Errorf("%d refused, %d cut", refused, cuts)
	}
	if _, err := h.Begin(netip.Addr{}, func() {}); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
}
