package hbone

import (
	"errors"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestPeers: one identity's places are not another's, those who were let in
// elsewhere count, and nothing stays of who has left.
func TestPeers(t *testing.T) {
	one, other := spiffeid.RequireFromString("spiffe://mesh.test/one"), spiffeid.RequireFromString("spiffe://mesh.test/other")
	p := NewPeers(2)
	for range 3 {
		p.Keep(one)
	}
	if err := p.Enter(one); !errors.Is(err, ErrLimit) {
		t.Errorf("one too many: %v", err)
	}
	if err := p.Enter(other); err != nil {
		t.Error(err)
	}
	p.Leave(one)
	if err := p.Enter(one); !errors.Is(err, ErrLimit) {
		t.Errorf("still one too many: %v", err)
	}
	p.Leave(one)
	if err := p.Enter(one); err != nil || p.Len() != 3 {
		t.Errorf("%d connections, %v", p.Len(), err)
	}
	for _, peer := range []spiffeid.ID{one, one, other} {
		p.Leave(peer)
	}
	if p.Len() != 0 || len(p.of) != 0 {
		t.Errorf("%d connections of %v are left", p.Len(), p.of)
	}
}
