package tlsrecord

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// aStream is a connection in records of every kind that a peer may send, and
// the data in them.
func aStream(t *testing.T, a *Session) (wire, data []byte) {
	t.Helper()
	ticket := append([]byte{messageTicket, 0, 0, 14}, append(make([]byte, 8), 0, 0, 1, 7, 0, 0)...)
	for i, n := range []int{1, 40, 0, 300, 5} {
		part := bytes.Repeat([]byte{byte('a' + i)}, n)
		wire, data = a.appendRecord(wire, typeApplication, part), append(data, part...)
		wire = a.appendRecord(wire, typeHandshake, ticket[:4+i])
		wire = a.appendRecord(wire, typeHandshake, ticket[4+i:])
		update, err := a.AppendUpdate(wire)
		if err != nil {
			t.Fatal(err)
		}
		wire = update
	}
	return a.AppendAlert(wire, CloseNotify), data
}

// reader puts records together from what comes, as an engine does.
type reader struct {
	session   *Session
	have, all []byte
}

func (r *reader) feed(b []byte) error {
	r.have = append(r.have, b...)
	for {
		n, ok, err := Length(r.have)
		if err != nil {
			return err
		}
		if !ok || len(r.have) < n {
			return nil
		}
		data, err := r.session.Open(r.have[:n])
		r.all = append(r.all, data...)
		r.have = r.have[n:]
		if err != nil {
			return err
		}
	}
}

// TestSplitAtEveryByte: a stream of records cut in two at every byte, and byte
// by byte, is the same stream. The receiver moves to another process at the cut.
func TestSplitAtEveryByte(t *testing.T) {
	for name, k := range suites() {
		a, _ := two(t, k)
		wire, want := aStream(t, a)
		for cut := 0; cut <= len(wire); cut++ {
			_, b := two(t, k)
			r := &reader{session: b}
			if err := r.feed(bytes.Clone(wire[:cut])); err != nil && cut < len(wire) {
				t.Fatalf("%s, cut at %d: %v", name, cut, err)
			} else if err == nil {
				r.session = moved(t, b)
				if err := r.feed(bytes.Clone(wire[cut:])); !errors.Is(err, ErrClosed) {
					t.Fatalf("%s, cut at %d: %v", name, cut, err)
				}
			}
			if !bytes.Equal(r.all, want) {
				t.Fatalf("%s, cut at %d: %d bytes, want %d", name, cut, len(r.all), len(want))
			}
		}
		_, b := two(t, k)
		r := &reader{session: b}
		var err error
		for _, one := range wire {
			if err = r.feed([]byte{one}); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrClosed) || !bytes.Equal(r.all, want) {
			t.Errorf("%s, byte by byte: %v, %d bytes", name, err, len(r.all))
		}
	}
}

// TestMutations: no bit of a record can change: it would not authenticate, or
// is refused before.
func TestMutations(t *testing.T) {
	for name, k := range suites() {
		a, _ := two(t, k)
		sealed := record(a, typeApplication, []byte("what is sealed stays as it is"))
		for i := range len(sealed) * 8 {
			_, b := two(t, k)
			bad := bytes.Clone(sealed)
			bad[i/8] ^= 1 << (i % 8)
			n, _, err := Length(bad)
			if err == nil && n <= len(bad) {
				_, err = b.Open(bad[:n])
			} else if err == nil {
				_, err = b.Open(append(bad, make([]byte, n-len(bad))...)) // the peer sends so many more
			}
			e, ok := errors.AsType[*RecordError](err)
			if !ok {
				t.Fatalf("%s: bit %d changed: %v", name, i, err)
			}
			want := BadRecordMAC
			if i < 8 {
				want = UnexpectedMessage // of the type outside
			}
			if e.Alert != want && e.Alert != RecordOverflow {
				t.Errorf("%s: bit %d changed: alert %d", name, i, e.Alert)
			}
		}
		for n := range sealed[HeaderBytes:] { // cut short, with a length that says so
			_, b := two(t, k)
			short := bytes.Clone(sealed[:HeaderBytes+n])
			short[3], short[4] = byte(n>>8), byte(n)
			if _, err := b.Open(short); err == nil {
				t.Errorf("%s: %d bytes of a record were taken for one", name, n)
			}
		}
	}
}

// TestOrder: a record that is lost, repeated, late, or the other end's own sent
// back, does not authenticate.
func TestOrder(t *testing.T) {
	for name, tamper := range map[string]func(one, two, echo []byte) [][]byte{
		"lost":     func(_, two, _ []byte) [][]byte { return [][]byte{two} },
		"repeated": func(one, _, _ []byte) [][]byte { return [][]byte{one, bytes.Clone(one)} },
		"swapped":  func(one, two, _ []byte) [][]byte { return [][]byte{two, one} },
		"echoed":   func(_, _, echo []byte) [][]byte { return [][]byte{echo} },
	} {
		a, b := two(t, aes128())
		var err error
		for _, rec := range tamper(record(a, typeApplication, []byte("1")), record(a, typeApplication, []byte("2")), record(b, typeApplication, []byte("1"))) {
			if err == nil {
				_, err = b.Open(rec)
			}
		}
		if e, ok := errors.AsType[*RecordError](err); !ok || e.Alert != BadRecordMAC {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPadding: every amount of it that a record may have (RFC 8446 section 5.4),
// and none beyond.
func TestPadding(t *testing.T) {
	seal := func(s *Session, inner []byte) []byte {
		n := len(inner) + tagBytes
		head := []byte{typeApplication, 3, 3, byte(n >> 8), byte(n)}
		return s.out.aead.Seal(bytes.Clone(head), s.out.next(), inner, head)
	}
	random := rand.New(rand.NewPCG(1, 4))
	for _, pad := range []int{0, 1, 2, 255, 256, 1000, MaxPlaintext - 3} {
		a, b := two(t, aes128())
		data := []byte{'d', 0, byte(1 + random.IntN(255))} // a zero inside is no padding
		inner := append(append(bytes.Clone(data), typeApplication), make([]byte, pad)...)
		if got, err := b.Open(seal(a, inner)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes of padding: %x, %v", pad, got, err)
		}
	}
	a, b := two(t, aes128())
	_, err := b.Open(seal(a, append([]byte{'d', typeApplication}, make([]byte, MaxPlaintext)...)))
	if e, ok := errors.AsType[*RecordError](err); !ok || e.Alert != RecordOverflow {
		t.Errorf("2^14+2 bytes inside: %v", err)
	}
}

// FuzzState: a state that another process sent, whatever it holds, makes a
// session that neither panics nor takes what nobody sealed, or an error.
func FuzzState(f *testing.F) {
	f.Add(uint16(0x1301), bytes.Repeat([]byte{7}, 32), uint64(0), []byte(nil), 0, false, []byte{23, 3, 3, 0, 1, 0})
	f.Add(uint16(0x1302), bytes.Repeat([]byte{7}, 48), ^uint64(0), []byte{messageTicket, 0, 0}, 31, true, []byte{23, 3, 3, 0, 1, 0})
	f.Add(uint16(0x1303), bytes.Repeat([]byte{7}, 32), uint64(1<<24), []byte{messageKeyUpdate, 0, 0, 1}, -1, false, []byte{})
	f.Add(uint16(0), []byte{}, uint64(1<<24+1), []byte{24, 255, 255, 255}, 33, true, []byte{22, 3, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, suite uint16, secret []byte, sequence uint64, fragment []byte, useless int, due bool, wire []byte) {
		keys := func() Keys { return Keys{Suite: suite, Secret: bytes.Clone(secret), Sequence: sequence} }
		s, err := New(State{In: keys(), Out: keys(), Fragment: bytes.Clone(fragment), Useless: useless, UpdateDue: due}, nil)
		if err != nil {
			return
		}
		again := s.State()
		if !bytes.Equal(again.In.Secret, secret) || again.In.Sequence != sequence || again.Useless != useless || again.UpdateDue != due || !bytes.Equal(again.Fragment, fragment) {
			t.Errorf("%+v became %+v", fragment, again)
		}
		if n, ok, err := Length(wire); err == nil && ok && n <= len(wire) {
			if _, err := s.Open(bytes.Clone(wire[:n])); err == nil {
				t.Error("a record that nobody sealed was opened")
			}
		}
		if sequence > recordsPerKey {
			return // the next record would be stopped by a panic: TestLimitStops
		}
		sealed := record(s, typeApplication, []byte("x"))
		if len(sealed) != 1+Overhead {
			t.Errorf("%d bytes", len(sealed))
		}
	})
}
