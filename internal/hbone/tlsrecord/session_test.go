package tlsrecord

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func suites() map[string]Keys {
	secret := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	return map[string]Keys{
		"AES-128": {Suite: tls.TLS_AES_128_GCM_SHA256, Secret: secret(32)}, "AES-256": {Suite: tls.TLS_AES_256_GCM_SHA384, Secret: secret(48)},
		"ChaCha20": {Suite: tls.TLS_CHACHA20_POLY1305_SHA256, Secret: secret(32)},
	}
}

// fastest is what this processor has: our own AES-GCM where it can be.
var fastest = sync.OnceValue(func() GCM { return GCM(nil).OrFastest() })

// two are the two ends of one connection, with the given keys from a to b: one
// with our own AES-GCM, the other with the standard library's.
func two(t testing.TB, k Keys) (a, b *Session) {
	t.Helper()
	clone := func() Keys { c := k; c.Secret = bytes.Clone(k.Secret); return c }
	back := func() Keys { c := clone(); c.Secret[0] ^= 1; return c }
	a, err := New(State{In: back(), Out: clone()}, fastest())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = New(State{In: clone(), Out: back()}, StandardGCM); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func aes128() Keys { return suites()["AES-128"] }

func record(s *Session, kind byte, data []byte) []byte { return s.appendRecord(nil, kind, data) }

func TestSealAndOpen(t *testing.T) {
	for name, k := range suites() {
		a, b := two(t, k)
		for _, n := range []int{1, 2, 100, MaxPlaintext} {
			data := bytes.Repeat([]byte{byte(n)}, n)
			got, err := b.Open(record(a, typeApplication, data))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes: %d back, %v", name, n, len(got), err)
			}
		}
		update, err := a.AppendUpdate(nil)
		if err != nil || len(update) != UpdateBytes {
			t.Fatal(len(update), err)
		}
		if data, err := b.Open(update); err != nil || data != nil {
			t.Fatalf("%s: update: %v, %v", name, data, err)
		}
		if a.out.keys.Sequence != 0 || b.in.keys.Sequence != 0 {
			t.Errorf("%s: the sequence number did not start again", name)
		}
		if got, err := b.Open(record(a, typeApplication, []byte("new key"))); err != nil || string(got) != "new key" {
			t.Errorf("%s: after the update: %q, %v", name, got, err)
		}
	}
}

// TestNoncesDiffer: every record has a nonce of its own, across the edges of
// the sequence number's bytes.
func TestNoncesDiffer(t *testing.T) {
	a, _ := two(t, aes128())
	seen := map[[nonceBytes]byte]bool{}
	for _, start := range []uint64{0, 255, 65535, 1<<24 - 1, 1<<32 - 1, 1<<56 - 1} {
		a.out.keys.Sequence = start
		for range 2 {
			n := [nonceBytes]byte(a.out.next())
			if seen[n] {
				t.Errorf("nonce of %d seen before", start)
			}
			seen[n] = true
			if !bytes.Equal(n[:4], a.out.iv[:4]) {
				t.Error("the number goes into the last 8 bytes only")
			}
		}
	}
}

func TestKeyLimit(t *testing.T) {
	k := aes128()
	k.Sequence = recordsPerKey - 1
	a, b := two(t, k)
	if a.UpdateDue() {
		t.Fatal("due one record too early")
	}
	if _, err := b.Open(record(a, typeApplication, []byte("last"))); err != nil {
		t.Fatal(err)
	}
	if !a.UpdateDue() {
		t.Fatal("not due at the limit")
	}
	update, err := a.AppendUpdate(nil)
	if err != nil || a.UpdateDue() {
		t.Fatal(err, "or still due")
	}
	if _, err := b.Open(update); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Open(record(a, typeApplication, []byte("x"))); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
	a.out.keys.Sequence = recordsPerKey + 1
	defer func() {
		if recover() == nil {
			t.Error("sealed beyond the limit")
		}
	}()
	record(a, typeApplication, []byte("x"))
}

func TestIncomingSequenceEnds(t *testing.T) {
	a, b := two(t, aes128())
	b.in.keys.Sequence = ^uint64(0)
	if _, err := b.Open(record(a, typeApplication, []byte("x"))); err == nil {
		t.Error("the number wrapped")
	}
}

func TestRefusals(t *testing.T) {
	ticket := append([]byte{messageTicket, 0, 0, 14}, append(make([]byte, 8), 1, 9, 0, 1, 7, 0)...)
	for name, c := range map[string]struct {
		kind byte
		data []byte
		want Alert
	}{
		"unknown type": {99, []byte("x"), UnexpectedMessage}, "all padding": {0, nil, UnexpectedMessage},
		"change cipher spec": {20, []byte{1}, UnexpectedMessage}, "short alert": {typeAlert, []byte{1}, DecodeError},
		"empty handshake": {typeHandshake, nil, UnexpectedMessage}, "hello": {typeHandshake, []byte{1, 0, 0, 0}, UnexpectedMessage},
		"certificate request": {typeHandshake, []byte{13, 0, 0, 0}, UnexpectedMessage},
		"update of 2":         {typeHandshake, []byte{24, 0, 0, 1, 2}, IllegalParameter},
		"update too long":     {typeHandshake, []byte{24, 0, 0, 2, 0, 0}, DecodeError},
		"spans keys":          {typeHandshake, []byte{24, 0, 0, 1, 0, 4}, UnexpectedMessage},
		"giant message":       {typeHandshake, []byte{4, 1, 0, 0}, DecodeError}, "malformed ticket": {typeHandshake, ticket, DecodeError},
	} {
		a, b := two(t, aes128())
		_, err := b.Open(record(a, c.kind, c.data))
		if e, ok := errors.AsType[*RecordError](err); !ok || e.Alert != c.want {
			t.Errorf("%s: %v, want alert %d", name, err, c.want)
		}
	}
	a, b := two(t, aes128())
	bad := record(a, typeApplication, []byte("x"))
	bad[len(bad)-1] ^= 1
	if _, err := b.Open(bad); err == nil {
		t.Error("a forged record was opened")
	}
	if _, err := b.Open([]byte{typeHandshake, 3, 3, 0, 1, 0}); err == nil {
		t.Error("a plain record was opened")
	}
	if _, _, err := Length([]byte{23, 3, 3, 0x41, 1}); err == nil {
		t.Error("2^14+257 bytes were not refused")
	}
}

func TestAlerts(t *testing.T) {
	a, b := two(t, aes128())
	if _, err := b.Open(record(a, typeAlert, []byte{1, 90})); err != nil {
		t.Errorf("user_canceled: %v", err)
	}
	if _, err := b.Open(a.AppendAlert(nil, CloseNotify)); !errors.Is(err, ErrClosed) {
		t.Errorf("close_notify: %v", err)
	}
	if _, err := b.Open(a.AppendAlert(nil, BadRecordMAC)); !errors.Is(err, BadRecordMAC) {
		t.Errorf("bad_record_mac: %v", err)
	}
}

// TestFragments: a ticket and a KeyUpdate in pieces of every size.
func TestFragments(t *testing.T) {
	ticket := append([]byte{messageTicket, 0, 0, 14}, append(make([]byte, 8), 0, 0, 1, 7, 0, 0)...)
	messages := append(ticket, messageKeyUpdate, 0, 0, 1, 1)
	for size := 1; size <= len(messages); size++ {
		a, b := two(t, aes128())
		for rest := messages; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if _, err := b.Open(record(a, typeHandshake, rest[:min(size, len(rest))])); err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
		}
		if !b.UpdateDue() || b.in.keys.Sequence != 0 {
			t.Errorf("pieces of %d: the update was not taken", size)
		}
	}
	a, b := two(t, aes128())
	if _, err := b.Open(record(a, typeHandshake, messages[:3])); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(record(a, typeApplication, []byte("x"))); err == nil {
		t.Error("data inside a handshake message")
	}
}

// TestTicketsInTinyRecords: a server may cut its records as small as it likes, tickets
// with a client's certificates too, and send some more; but not without end.
func TestTicketsInTinyRecords(t *testing.T) {
	const large, pieces = 2000, 27
	body := append(make([]byte, 8), 0, large>>8, large&255)
	body = append(append(body, make([]byte, large)...), 0, 0)
	ticket := append([]byte{messageTicket, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	a, b := two(t, aes128())
	tickets := 0
	for ; tickets < 1000; tickets++ {
		var err error
		for rest := ticket; len(rest) > 0 && err == nil; rest = rest[min(pieces, len(rest)):] {
			_, err = b.Open(record(a, typeHandshake, rest[:min(pieces, len(rest))]))
		}
		if err != nil {
			break
		}
	}
	if tickets != maxUseless/2 {
		t.Errorf("%d tickets in a row were taken, want %d", tickets, maxUseless/2)
	}
}

func TestUselessRecords(t *testing.T) {
	for name, r := range map[string]struct {
		kind byte
		data []byte
	}{
		"empty": {typeApplication, nil}, "KeyUpdate": {typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 0}},
		"user_canceled": {typeAlert, []byte{alertLevelWarning, byte(UserCanceled)}},
	} {
		a, b := two(t, aes128())
		var err error
		n := 0
		for ; err == nil && n < 1000; n++ {
			_, err = b.Open(record(a, r.kind, r.data))
			if r.kind == typeHandshake {
				if err := a.out.update(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n != maxUseless+1 {
			t.Errorf("%s: %d records without data were taken, want %d", name, n-1, maxUseless)
		}
	}
}

// TestState: a session that goes on from its state elsewhere is the same one.
func TestState(t *testing.T) {
	a, b := two(t, aes128())
	for n := range 20 {
		if _, err := b.Open(record(a, typeHandshake, []byte{messageTicket})); n == 0 && err != nil {
			t.Fatal(err)
		} else if n == 0 {
			if _, err := b.Open(record(a, typeHandshake, append([]byte{0, 0, 14}, append(make([]byte, 8), 0, 0, 1, 7, 0, 0)...))); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if a, err = New(a.State(), StandardGCM); err != nil {
			t.Fatal(err)
		}
		if b, err = New(b.State(), fastest()); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	if got, err := b.Open(record(a, typeApplication, []byte("goes on"))); err != nil || string(got) != "goes on" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(byte(typeHandshake), []byte{messageKeyUpdate, 0, 0, 1, 1}, 0)
	f.Add(byte(typeAlert), []byte{1, 0}, 3)
	f.Add(byte(typeHandshake), []byte{messageTicket, 0, 0, 2, 1, 2}, 1)
	f.Fuzz(func(t *testing.T, kind byte, data []byte, cut int) {
		a, b := two(t, aes128())
		data = data[:min(len(data), MaxPlaintext)]
		cut = min(max(cut, 0), len(data))
		for _, part := range [][]byte{data[:cut], data[cut:]} {
			got, err := b.Open(record(a, kind, part))
			if err == nil && kind == typeApplication && !bytes.Equal(got, part) {
				t.Errorf("%q became %q", part, got)
			}
			if err == nil && kind != 0 && kind != typeApplication && kind != typeHandshake && kind != typeAlert {
				t.Errorf("type %d was taken", kind)
			}
			if len(b.fragment) > maxHandshake+4+MaxPlaintext {
				t.Errorf("%d bytes of handshake kept", len(b.fragment))
			}
			if err != nil {
				return
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok, err := Length(b)
		if err != nil || !ok || n > len(b) {
			return
		}
		_, s := two(t, aes128())
		if _, err := s.Open(b[:n]); err == nil {
			t.Error("a record that nobody sealed was opened")
		}
	})
}

// TestAgainstCryptoTLS runs random schedules of writes, key updates and splits
// between a Session and a tls.Conn, in both roles, and ends them in order.
func TestAgainstCryptoTLS(t *testing.T) {
	for _, client := range []bool{true, false} {
		for seed := range uint64(8) {
			against(t, client, rand.New(rand.NewPCG(seed, 1)))
		}
	}
}

func against(t *testing.T, client bool, random *rand.Rand) {
	t.Helper()
	ca := enginetest.NewCA(t, "mesh.test")
	cfg := hbone.ClientTLS(ca.SVID(t, "a"), ca.Bundle(), ca.ID("a"))
	cfg.ClientAuth = tls.RequireAnyClientCert
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	for _, c := range []net.Conn{near, far} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	var oracle *tls.Conn
	if client {
		oracle = tls.Server(far, cfg)
	} else {
		oracle = tls.Client(far, cfg)
	}
	go func() { done <- echo(oracle) }()
	start := Server
	if client {
		start = Client
	}
	s, state, err := start(context.Background(), near, cfg, fastest())
	if err != nil || state.NegotiatedProtocol != "h2" {
		t.Fatal(err, state.NegotiatedProtocol)
	}
	sent := make([]byte, 300_000)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	go func() { writeRandomly(s, near, sent, random) }()
	got := readAll(t, s, near, len(sent))
	if !bytes.Equal(got, sent) {
		t.Errorf("client %v: bytes changed on the way there and back", client)
	}
	if err := <-done; err != nil {
		t.Errorf("client %v: crypto/tls: %v", client, err)
	}
}

// echo sends back what comes, then says goodbye.
func echo(c *tls.Conn) error {
	var all bytes.Buffer
	if _, err := io.Copy(&all, c); err != nil {
		return err
	}
	if _, err := c.Write(all.Bytes()); err != nil {
		return err
	}
	return c.CloseWrite()
}

func writeRandomly(s *Session, c net.Conn, data []byte, random *rand.Rand) {
	buf := make([]byte, MaxPlaintext+Overhead)
	for len(data) > 0 {
		n := min(1+int(random.Uint32()%MaxPlaintext), len(data))
		copy(buf[HeaderBytes:], data[:n])
		wire := bytes.Clone(buf[:s.Seal(buf, n)])
		data = data[n:]
		if random.Uint32()%4 == 0 {
			// One that asks for an answer; the oracle gives it (section 4.6.3).
			wire = append(wire, record(s, typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, byte(random.Uint32() % 2)})...)
			if s.out.update() != nil {
				return
			}
		}
		for len(wire) > 0 {
			k := min(1+int(random.Uint32()%20000), len(wire))
			if _, err := c.Write(wire[:k]); err != nil {
				return // the reader reports it
			}
			wire = wire[k:]
		}
	}
	_, _ = c.Write(s.AppendAlert(nil, CloseNotify)) // the reader reports it
}

// readAll opens records until close_notify. The peer answers key updates while
// we write, so reading runs beside writing: it uses the in half only.
func readAll(t *testing.T, s *Session, c net.Conn, want int) (all []byte) {
	t.Helper()
	for {
		head := make([]byte, HeaderBytes)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatalf("after %d of %d bytes: %v", len(all), want, err)
		}
		n, _, err := Length(head)
		if err != nil {
			t.Fatal(err)
		}
		rec := append(head, make([]byte, n-HeaderBytes)...)
		if _, err := io.ReadFull(c, rec[HeaderBytes:]); err != nil {
			t.Fatal(err)
		}
		data, err := s.Open(rec)
		all = append(all, data...)
		if errors.Is(err, ErrClosed) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSealAllocates(t *testing.T) {
	a, b := two(t, aes128())
	buf := make([]byte, MaxPlaintext+Overhead)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := b.Open(buf[:a.Seal(buf, 1000)]); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a record sealed and opened", n)
	}
}

func BenchmarkSealAndOpen(bench *testing.B) {
	for name, k := range suites() {
		bench.Run(name, func(bench *testing.B) {
			a, b := two(bench, k)
			buf := make([]byte, MaxPlaintext+Overhead)
			bench.SetBytes(MaxPlaintext)
			for bench.Loop() {
				if a.UpdateDue() {
					a, b = two(bench, k)
				}
				if _, err := b.Open(buf[:a.Seal(buf, MaxPlaintext)]); err != nil {
					bench.Fatal(err)
				}
			}
		})
	}
}

// TestKeyUpdateFlood: data between them does not make KeyUpdates free, and neither
// does a move to another process.
func TestKeyUpdateFlood(t *testing.T) {
	a, err := New(State{In: aes128(), Out: aes128()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(State{In: aes128(), Out: aes128()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		record, err := a.AppendUpdate(nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Open(record)
		if broken, ok := errors.AsType[*RecordError](err); ok && broken.Alert == UnexpectedMessage {
			if n <= 40 {
				t.Errorf("refused after %d", n)
			}
			return
		}
		if err != nil || n > 200 {
			t.Fatalf("%d KeyUpdates: %v", n, err)
		}
		data := make([]byte, 1+Overhead)
		if _, err := b.Open(data[:a.Seal(data, 1)]); err != nil {
			t.Fatal(err)
		}
		if n%30 == 0 {
			if b, err = New(b.State(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestKeyUpdatesWithData: a peer may change its key as often as it likes, if it sends
// something with it.
func TestKeyUpdatesWithData(t *testing.T) {
	a, b := two(t, aes128())
	for n := range 1000 {
		update, err := a.AppendUpdate(nil)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 1<<10+Overhead)
		for _, record := range [][]byte{update, data[:a.Seal(data, 1<<10)]} {
			if _, err := b.Open(record); err != nil {
				t.Fatalf("KeyUpdate %d: %v", n, err)
			}
		}
	}
}

// TestTicketOfClient: only servers send NewSessionTicket.
func TestTicketOfClient(t *testing.T) {
	for _, server := range []bool{false, true} {
		a, err := New(State{In: aes128(), Out: aes128()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(State{In: aes128(), Out: aes128(), Server: server}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ticket := append([]byte{messageTicket, 0, 0, 14}, make([]byte, 14)...)
		ticket[4+9+1] = 1 // one byte of ticket, and no extensions
		_, err = b.Open(a.appendRecord(nil, typeHandshake, ticket))
		broken, refused := errors.AsType[*RecordError](err)
		if refused != server || refused && broken.Alert != UnexpectedMessage || !refused && err != nil {
			t.Errorf("to a server %v: %v", server, err)
		}
	}
}

// TestUnfinishedMessages: a client keeps what it may need of a handshake message, and
// says how much that is; a server keeps nothing that is no KeyUpdate.
func TestUnfinishedMessages(t *testing.T) {
	const half = 10_000
	ticket := append([]byte{messageTicket, 0, maxHandshake >> 8, 0}, make([]byte, half)...)
	a, b := two(t, aes128())
	if _, err := b.Open(record(a, typeHandshake, ticket)); err != nil || b.Held() < len(ticket) || b.Held() > 2*len(ticket) {
		t.Errorf("%d bytes kept of %d, %v", b.Held(), len(ticket), err)
	}
	for name, beginning := range map[string][]byte{
		"a ticket": {messageTicket}, "a long KeyUpdate": {messageKeyUpdate, 0, 1, 0}, "a certificate request": {13},
	} {
		a, b := two(t, aes128())
		b.server = true
		if _, err := b.Open(record(a, typeHandshake, beginning)); err == nil {
			t.Errorf("the beginning of %s is kept", name)
		}
	}
	a, b = two(t, aes128())
	b.server = true
	for _, piece := range [][]byte{{messageKeyUpdate}, {0, 0, 1}} {
		if _, err := b.Open(record(a, typeHandshake, piece)); err != nil || b.Held() == 0 || b.Held() > 16 {
			t.Errorf("%d bytes kept of a KeyUpdate, %v", b.Held(), err)
		}
	}
	if _, err := b.Open(record(a, typeHandshake, []byte{0})); err != nil || b.Held() != 0 {
		t.Errorf("%d bytes kept after it, %v", b.Held(), err)
	}
}
