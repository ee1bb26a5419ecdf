package publish

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestEpochsNeverGoBack(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("test.example")
	now := time.Unix(1_800_000_000, 0)
	s := &State{}
	first := s.next(td, "a", now)
	if first.Epoch != 1_800_000_000 {
		t.Errorf("first epoch %d, want the time: a lost record must not begin below what agents have", first.Epoch)
	}
	s.record = first
	if again := s.next(td, "a", now.Add(time.Hour)); again != first {
		t.Errorf("the same revision became %+v", again)
	}
	if next := s.next(td, "b", now); next.Epoch != first.Epoch+1 {
		t.Errorf("epoch %d in the same second, want one more", next.Epoch)
	}
	if next := s.next(td, "b", now.Add(-time.Hour)); next.Epoch != first.Epoch+1 {
		t.Errorf("epoch %d with a clock that went back, want one more", next.Epoch)
	}
}
