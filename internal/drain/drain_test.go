package drain

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestDrain(t *testing.T) {
	s := New()
	if !s.Enter() {
		t.Fatal("refused before it drains")
	}
	s.Beside()
	drained := make(chan struct{})
	go func() { defer close(drained); s.Drain() }()
	<-s.Begun()
	if s.Enter() {
		t.Error("let in while it drains")
	}
	s.Leave()
	select {
	case <-drained:
		t.Error("what a stream started was not waited for")
	default:
	}
	s.Leave()
	<-drained
	s.Drain() // once more
}
