package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func (w *world) promptly(t *testing.T, n *Node) *Pod {
	t.Helper()
	spec := w.spec()
	spec.Prompt = true
	return w.enrollSpec(t, n, spec)
}

// finish does so many parts of what is left, or all when it is -1.
func finish(t *testing.T, p *Pod, parts int) {
	t.Helper()
	for ; parts != 0 && p.Unfinished(); parts-- {
		if err := p.Finish(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPrompt: a pod that is enrolled promptly is as any other, before it is finished and after.
func TestPrompt(t *testing.T) {
	for _, parts := range []int{0, 2, -1} {
		t.Run(fmt.Sprint(parts), func(t *testing.T) { enrolledPromptly(t, parts) })
	}
}

func enrolledPromptly(t *testing.T, parts int) {
	w := newWorld(t, true, true)
	n := w.open(t)
	before := w.snapshot(t)
	p := w.promptly(t, n)
	if !p.Unfinished() {
		t.Error("nothing was left for later")
	}
	finish(t, p, parts)
	if err := p.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
	w.each(t, func(t *testing.T, pod, ext netip.Addr) { tryEveryPath(t, w, p, pod, ext) })
	finish(t, p, -1)
	if err := errors.Join(p.Check(), p.Unrefused()); err != nil || p.Unfinished() {
		t.Errorf("finished: %v, %v", !p.Unfinished(), err)
	}
	if again := w.promptly(t, n); again != p || p.Unfinished() {
		t.Error("told again, the pod was enrolled again")
	}
	if err := p.Unenroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "unenrolling", before, w.snapshot(t))
	if err := p.Finish(); err != nil {
		t.Errorf("finish what has left: %v", err)
	}
}

// TestPromptlyLeft: what an agent has not finished its successor finishes, or takes back whole.
func TestPromptlyLeft(t *testing.T) {
	w := newWorld(t, true, false)
	before := w.snapshot(t)
	for parts := range 5 {
		for _, successor := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d, adopted: %v", parts, successor), func(t *testing.T) {
				n := w.reopen(t)
				finish(t, w.promptly(t, n), parts)
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				n = w.reopen(t)
				if successor {
					p := w.promptly(t, n)
					if err := p.Check(); err != nil || p.Unfinished() {
						t.Errorf("finished: %v, %v", !p.Unfinished(), err)
					}
				}
				if _, err := n.Prune(t.Context(), nil); err != nil {
					t.Error(err)
				}
				wantSame(t, "taking it back", before, w.snapshot(t))
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	w.remove(t)
}

// TestPromptForTheNewOnly: a pod with a connection is enrolled as before: none may lose a packet.
func TestPromptForTheNewOnly(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	pair := w.pair(t, w.pod, w.ext, netip.AddrPortFrom(ext4, 7000))
	if p := w.promptly(t, n); p.Unfinished() {
		t.Error("something was left for later")
	}
	if err := bothWays(pair[0], pair[1]); err != nil {
		t.Error(err)
	}
}
