package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// up sets a world up for a test, with the programs of this checkout, and the machine's congestion control if none is given.
func up(t *testing.T, subject, congestion string) *World {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	self := filepath.Join(dir, "bench")
	testenv.Build(t, ".", self, "..")
	binaries := filepath.Join(dir, "bin")
	if err := os.Mkdir(binaries, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := testbed.Build("../../..", binaries); err != nil {
		t.Fatal(err)
	}
	w, err := Up(t.Context(), Config{Name: "benchworld-" + subject, Subject: subject, Root: "../../..", Binaries: binaries, Scratch: dir, Self: self, Congestion: congestion})
	t.Cleanup(func() {
		if err := w.Down(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// roundTrip is how long a connection from a client's pod to a server takes that
// nothing carries.
func roundTrip(t *testing.T, w *World) time.Duration {
	t.Helper()
	var took time.Duration
	err := w.mesh.InPod(Client(0), func() error {
		started := time.Now()
		c, err := net.DialTimeout("tcp", Address(0), 5*time.Second)
		took = time.Since(started)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return took
}

// TestMoveApart also shows that the plain world has no proxy, and serves.
func TestMoveApart(t *testing.T) {
	w := up(t, "none", "")
	if len(w.Proxies()) != 0 {
		t.Errorf("the world without mesh has proxies: %v", w.Proxies())
	}
	const delay = 60 * time.Millisecond
	testenv.Eventually(t, 5*time.Second, "nginx serves", func() bool {
		return w.mesh.InPod(Client(0), func() error {
			c, err := net.Dial("tcp", Address(0))
			if err == nil {
				err = c.Close()
			}
			return err
		}) == nil
	})
	near := roundTrip(t, w)
	far, err := w.MoveApart(t.Context(), delay)
	if err != nil {
		t.Fatal(err)
	}
	if took := roundTrip(t, w); took < 2*delay {
		t.Errorf("a round trip of the long way took %v, want %v or more", took, 2*delay)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if took := roundTrip(t, w); took > near+delay {
		t.Errorf("the way is still long: %v, before %v", took, near)
	}
}

// TestRestartProxies has traffic before and after, through other processes.
func TestRestartProxies(t *testing.T) {
	for _, subject := range []string{"heddle", "envoy"} {
		t.Run(subject, func(t *testing.T) {
			w := up(t, subject, "")
			before := w.Proxies()
			ask(t, w)
			if err := w.RestartProxies(t.Context()); err != nil {
				t.Fatal(err)
			}
			ask(t, w)
			after := w.Proxies()
			if len(before) != 2 || len(after) != 2 || before[0].Node != "n1" || after[1].Node != "n2" {
				t.Fatalf("proxies: %v, then %v", before, after)
			}
			for i := range after {
				if before[i].PID == after[i].PID {
					t.Errorf("the proxy of %s is the same as before", after[i].Node)
				}
			}
		})
	}
}

// ask has a few requests answered.
func ask(t *testing.T, w *World) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := w.Load(ctx, Client(1), "rate", "-address", Address(1), "-connections", "4", "-rate", "100", "-duration", "300ms").Output()
	if err != nil {
		t.Fatal(err)
	}
	var timed load.Timed
	if err := json.Unmarshal(out, &timed); err != nil || timed.Answered != 30 || timed.Errors != 0 {
		t.Fatalf("got %s, %v, want 30 answers", fmt.Sprint(timed), err)
	}
}
