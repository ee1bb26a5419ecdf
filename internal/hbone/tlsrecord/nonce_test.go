package tlsrecord

import (
	"bytes"
	"crypto/cipher"
	"errors"
	"math/rand/v2"
	"testing"
)

// ledger is a cipher that writes down under which key and nonce something was
// sealed. Two of one kind would give the key away.
type ledger struct {
	cipher.AEAD
	key  string
	seen map[string]bool
	t    *testing.T
}

func (l ledger) Seal(dst, nonce, plain, additional []byte) []byte {
	used := l.key + string(nonce)
	if l.seen[used] {
		l.t.Errorf("a second record under one key with the nonce %x", nonce)
	}
	l.seen[used] = true
	return l.AEAD.Seal(dst, nonce, plain, additional)
}

// watch puts the ledger in front of the cipher that a session writes with.
func watch(t *testing.T, s *Session, seen map[string]bool) {
	if _, ok := s.out.aead.(ledger); !ok {
		s.out.aead = ledger{AEAD: s.out.aead, key: string(s.out.keys.Secret), seen: seen, t: t}
	}
}

// TestNoNonceTwice runs random interleavings of all that can happen to a
// session that writes: records, requests for updates, updates, and moves to
// another process by its state, near the key's limit as well as far from it. The
// rules are a caller's: an update goes out when it is due, and before the next
// record.
func TestNoNonceTwice(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 8446))
		for name, k := range suites() {
			k.Sequence = []uint64{0, recordsPerKey - 40, recordsPerKey - 1, recordsPerKey}[random.IntN(4)]
			a, b := two(t, k)
			seen := map[string]bool{}
			for step := range 200 {
				watch(t, a, seen)
				interleave(t, random, a, b)
				if random.IntN(10) == 0 {
					a, b = moved(t, a), moved(t, b)
				}
				if a.out.keys.Sequence > recordsPerKey {
					t.Fatalf("%s, seed %d, step %d: %d records under one key", name, seed, step, a.out.keys.Sequence)
				}
				if a.out.keys.Sequence != b.in.keys.Sequence || !bytes.Equal(a.out.keys.Secret, b.in.keys.Secret) {
					t.Fatalf("%s, seed %d, step %d: the ends are out of step", name, seed, step)
				}
			}
		}
	}
}

// interleave does one random thing between two ends; a writes.
func interleave(t *testing.T, random *rand.Rand, a, b *Session) {
	t.Helper()
	if a.UpdateDue() {
		update, err := a.AppendUpdate(nil)
		if err != nil || a.UpdateDue() {
			t.Fatalf("%v, or still due", err)
		}
		if _, err := b.Open(update); err != nil {
			t.Fatalf("update: %v", err)
		}
		return
	}
	switch random.IntN(12) {
	case 0: // nobody asked for it
		update, err := a.AppendUpdate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Open(update); err != nil {
			t.Fatal(err)
		}
	case 1: // the peer asks, with a change of its own key
		if _, err := a.Open(record(b, typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 1})); err != nil {
			t.Fatal(err)
		}
		if err := b.out.update(); err != nil {
			t.Fatal(err)
		}
		if !a.UpdateDue() {
			t.Fatal("asked for an update, and none is due")
		}
		if _, err := a.Open(record(b, typeApplication, []byte("x"))); err != nil { // and goes on under it
			t.Fatal(err)
		}
	default:
		data := make([]byte, 1+random.IntN(30))
		got, err := b.Open(record(a, typeApplication, data))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%x, %v", got, err)
		}
	}
}

// moved is the session in another process: what it left behind is used no more.
func moved(t *testing.T, s *Session) *Session {
	t.Helper()
	next, err := New(s.State(), s.out.gcm)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// TestStateIsACopy: what a state holds is not touched by what the session does
// later, and both go on from the same place.
func TestStateIsACopy(t *testing.T) {
	a, b := two(t, aes128())
	if _, err := b.Open(record(a, typeHandshake, []byte{messageTicket, 0, 0})); err != nil {
		t.Fatal(err)
	}
	before := b.State()
	if _, err := b.Open(record(a, typeHandshake, append([]byte{14}, append(make([]byte, 8), 0, 0, 1, 7, 0, 0)...))); err != nil {
		t.Fatal(err)
	}
	update, err := a.AppendUpdate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(update); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before.In.Secret, aes128().Secret) || before.In.Sequence != 1 || !bytes.Equal(before.Fragment, []byte{messageTicket, 0, 0}) || before.Useless != 1 {
		t.Errorf("the state changed with its session: %+v", before)
	}
}

// openAt opens, and seals, a record of the given number, which no honest sender
// reaches.
func openAt(t *testing.T, number uint64) error {
	t.Helper()
	k := aes128()
	k.Sequence = number
	_, b := two(t, k)
	sender, _ := two(t, aes128())
	sender.out.keys.Sequence = number
	plain := []byte{'x', typeApplication}
	head := []byte{typeApplication, 3, 3, 0, byte(len(plain) + tagBytes)}
	sealed := sender.out.aead.Seal(bytes.Clone(head), sender.out.next(), plain, head)
	got, err := b.Open(sealed)
	if err == nil && string(got) != "x" {
		t.Errorf("number %d: %q", number, got)
	}
	return err
}

// TestSequenceEdges: every number below 2^64-1 is opened, that one is not: the
// next would be 0 again (RFC 8446 section 5.3).
func TestSequenceEdges(t *testing.T) {
	const last = ^uint64(0)
	for _, n := range []uint64{0, 1, 255, 256, 1<<16 - 1, 1 << 16, recordsPerKey, 1<<32 - 1, 1 << 32, 1<<48 - 1, 1<<56 - 1, 1<<63 - 1, 1 << 63, last - 2, last - 1} {
		if err := openAt(t, n); err != nil {
			t.Errorf("number %d: %v", n, err)
		}
	}
	err := openAt(t, last)
	if e, ok := errors.AsType[*RecordError](err); !ok || e.Alert != InternalError {
		t.Errorf("number 2^64-1: %v", err)
	}
}

// TestLimitStops: whatever a caller forgets, record 2^24+2 is not sealed, of no
// type; the one before, which the update itself needs, is.
func TestLimitStops(t *testing.T) {
	for _, kind := range []byte{typeApplication, typeAlert, typeHandshake} {
		k := aes128()
		k.Sequence = recordsPerKey
		a, b := two(t, k)
		if !a.UpdateDue() {
			t.Fatal("not due at the limit")
		}
		if _, err := b.Open(record(a, kind, []byte{messageTicket, 0})); kind == typeApplication && err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("type %d: sealed beyond the limit", kind)
				}
			}()
			record(a, kind, []byte{1, 0})
		}()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("updated beyond the limit")
				}
			}()
			_, _ = a.AppendUpdate(nil) // panics
		}()
	}
}

// TestTooLong: a record longer than 2^14 bytes is not sealed.
func TestTooLong(t *testing.T) {
	a, _ := two(t, aes128())
	defer func() {
		if recover() == nil {
			t.Error("sealed 2^14+1 bytes")
		}
	}()
	a.Seal(make([]byte, MaxPlaintext+1+Overhead), MaxPlaintext+1)
}
