package fast_test

import (
	"crypto/cipher"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// keyRing makes AES-GCM, and knows which keys are not wiped yet. A key that is
// used after that fails the test.
type keyRing struct {
	t    *testing.T
	mu   sync.Mutex
	made []*ringKey
}

type ringKey struct {
	cipher.AEAD
	ring  *keyRing
	wiped atomic.Bool
}

func (r *keyRing) gcm(key []byte) (cipher.AEAD, error) {
	aead, err := tlsrecord.StandardGCM(key)
	k := &ringKey{AEAD: aead, ring: r}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made = append(r.made, k)
	return k, err
}

// left counts the keys that were made, and those that are not wiped.
func (r *keyRing) left() (made, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.made {
		if !k.wiped.Load() {
			left++
		}
	}
	return len(r.made), left
}

func (k *ringKey) Wipe() { k.wiped.Store(true) }

func (k *ringKey) Seal(dst, nonce, plaintext, aad []byte) []byte {
	if k.wiped.Load() {
		k.ring.t.Error("a wiped key seals")
	}
	return k.AEAD.Seal(dst, nonce, plaintext, aad)
}

func (k *ringKey) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if k.wiped.Load() {
		k.ring.t.Error("a wiped key opens")
	}
	return k.AEAD.Open(dst, nonce, ciphertext, aad)
}

// TestEndWipesKeys: at both ends of a connection nothing is left of its keys when
// it has ended.
func TestEndWipesKeys(t *testing.T) {
	ring := &keyRing{t: t}
	t.Cleanup(func() { // after the engines' end
		if made, left := ring.left(); made != 4 || left != 0 {
			t.Errorf("%d of %d keys are left, want 0 of 4", left, made)
		}
	})
	p := newPods(t, fast.Config{Loops: 1, GCM: ring.gcm})
	d := p.add("pod", 0, hbone.Limits{})
	program, app := d.open()
	if made, left := ring.left(); made != 4 || left != 4 {
		t.Errorf("%d of %d keys live while the connection does, want 4 of 4", left, made)
	}
	transfer(t, program, app, 1<<20)
}

// TestMoveWipesKeys: whoever has given a connection away keeps nothing of the
// keys that it goes on with.
func TestMoveWipesKeys(t *testing.T) {
	for _, end := range []string{"client", "server"} {
		t.Run(end, func(t *testing.T) {
			ring := &keyRing{t: t}
			var once atomic.Bool
			donor := func() hbone.Engine {
				if once.Swap(true) {
					return newFastEngine()
				}
				return fast.New(fast.Config{Loops: 2, GCM: ring.gcm})
			}
			makers := map[string]func() hbone.Engine{"client": newFastEngine, "server": newFastEngine}
			makers[end] = donor
			w := newWorld(t, makers["client"], makers["server"])
			f := w.mustOpen()
			if err := f.echo("before the move"); err != nil {
				t.Fatal(err)
			}
			if made, left := ring.left(); made != 2 || left != 2 {
				t.Fatalf("%d of %d keys live, want 2 of 2", left, made)
			}
			map[string]*site{"client": w.client, "server": w.server}[end].mustMove(nil)
			if made, left := ring.left(); made != 2 || left != 0 {
				t.Errorf("%d of %d keys are left after the move, want 0 of 2", left, made)
			}
			if err := errors.Join(f.echo("after the move"), f.finish()); err != nil {
				t.Error(err)
			}
		})
	}
}
