package tlsrecord

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for linkname

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
)

// preferred are the suites of TLS 1.3 in crypto/tls's order, which no Config
// changes; it is open to linkname for those who must.
//
//go:linkname preferred crypto/tls.defaultCipherSuitesTLS13
var preferred []uint16

//go:linkname preferredWithoutAES crypto/tls.defaultCipherSuitesTLS13NoAES
var preferredWithoutAES []uint16

// onlySuite makes crypto/tls use one suite until the test ends.
func onlySuite(t *testing.T, suite uint16) {
	before, beforeNoAES := preferred, preferredWithoutAES
	preferred, preferredWithoutAES = []uint16{suite}, []uint16{suite}
	t.Cleanup(func() { preferred, preferredWithoutAES = before, beforeNoAES })
}

// duel is a Session and a tls.Conn at the two ends of a pipe.
type duel struct {
	t      *testing.T
	random *rand.Rand
	near   net.Conn
	oracle *tls.Conn

	mu   sync.Mutex // around the session: one goroutine reads, one writes
	ours *Session
}

func newDuel(t *testing.T, suite uint16, client bool, random *rand.Rand) *duel {
	t.Helper()
	ca := enginetest.NewCA(t, "mesh.test")
	cfg := hbone.ClientTLS(ca.SVID(t, "a"), ca.Bundle(), ca.ID("a"))
	cfg.ClientAuth = tls.RequireAnyClientCert
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	for _, c := range []net.Conn{near, far} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	d := &duel{t: t, random: random, near: near, oracle: tls.Client(far, cfg)}
	start := Server
	if client {
		start, d.oracle = Client, tls.Server(far, cfg)
	}
	shaken := make(chan error, 1)
	go func() { shaken <- d.oracle.Handshake() }()
	var state tls.ConnectionState
	var err error
	if d.ours, state, err = start(context.Background(), near, cfg, fastest()); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil || state.CipherSuite != suite {
		t.Fatalf("%v, suite %#x, want %#x", err, state.CipherSuite, suite)
	}
	return d
}

// size is how much one write carries: the edges of a record more often than chance has them.
func size(random *rand.Rand) int {
	edges := []int{0, 1, 2, 255, 256, MaxPlaintext - 1, MaxPlaintext}
	if n := random.IntN(2 * len(edges)); n < len(edges) {
		return edges[n]
	}
	return random.IntN(MaxPlaintext + 1)
}

// write sends data in records of random sizes, empty ones too, between updates
// of the key that ask for an answer or do not, and answers the oracle's.
func (d *duel) write(data []byte) error {
	for len(data) > 0 {
		d.mu.Lock()
		var wire []byte
		var err error
		if d.ours.UpdateDue() {
			wire, err = d.ours.AppendUpdate(wire)
		}
		n := min(size(d.random), len(data))
		wire = append(wire, record(d.ours, typeApplication, data[:n])...)
		data = data[n:]
		// Not at the end: crypto/tls keeps its key to read when it cannot answer
		// a request, as after its close_notify.
		if len(data) > 0 && d.random.IntN(4) == 0 {
			wire = append(wire, record(d.ours, typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, byte(d.random.IntN(2))})...)
			err = errors.Join(err, d.ours.out.update())
		}
		d.mu.Unlock()
		if err != nil {
			return err
		}
		for len(wire) > 0 {
			k := min(1+d.random.IntN(20000), len(wire))
			if _, err := d.near.Write(wire[:k]); err != nil {
				return err
			}
			wire = wire[k:]
		}
	}
	return nil
}

// read opens records until one is an error, which it returns.
func (d *duel) read() (all []byte, err error) {
	for {
		rec := make([]byte, HeaderBytes)
		if _, err := io.ReadFull(d.near, rec); err != nil {
			return all, err
		}
		n, _, err := Length(rec)
		if err != nil {
			return all, err
		}
		rec = append(rec, make([]byte, n-HeaderBytes)...)
		if _, err := io.ReadFull(d.near, rec[HeaderBytes:]); err != nil {
			return all, err
		}
		d.mu.Lock()
		data, err := d.ours.Open(rec)
		d.mu.Unlock()
		if all = append(all, data...); err != nil {
			return all, err
		}
	}
}

// writeOracle sends data through crypto/tls, in writes that are longer than a
// record too.
func (d *duel) writeOracle(data []byte, random *rand.Rand) error {
	for len(data) > 0 {
		n := min(random.IntN(4*MaxPlaintext), len(data))
		if _, err := d.oracle.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// ends are the ways in which the connection is over once both have said all:
// what is done, and what each end must see.
func ends() map[string]struct {
	do     func(*duel) error
	ours   func(error) bool
	theirs func(error) bool
} {
	sends := func(a Alert) func(*duel) error {
		return func(d *duel) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			_, err := d.near.Write(d.ours.AppendAlert(nil, a))
			return err
		}
	}
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	says := func(what string) func(error) bool {
		return func(err error) bool { return err != nil && strings.Contains(err.Error(), what) }
	}
	either := func(error) bool { return true }
	return map[string]struct {
		do     func(*duel) error
		ours   func(error) bool
		theirs func(error) bool
	}{
		"our close_notify":   {func(d *duel) error { return errors.Join(sends(CloseNotify)(d), <-d.closedByOracle()) }, is(ErrClosed), is(nil)},
		"their close_notify": {func(d *duel) error { return errors.Join(d.oracle.CloseWrite(), sends(CloseNotify)(d)) }, is(ErrClosed), is(nil)},
		"our alert":          {func(d *duel) error { return errors.Join(sends(InternalError)(d), d.near.Close()) }, either, says("internal error")},
		"a forged record": {func(d *duel) error {
			d.mu.Lock()
			bad := record(d.ours, typeApplication, []byte("x"))
			d.mu.Unlock()
			bad[len(bad)-1] ^= 1
			_, err := d.near.Write(bad)
			return err
		}, is(BadRecordMAC), says("bad record MAC")},
		"a cut": {func(d *duel) error { return d.near.Close() }, either, either},
	}
}

// closedByOracle says when the oracle has sent its own close_notify.
func (d *duel) closedByOracle() <-chan error {
	done := make(chan error, 1)
	go func() { done <- d.oracle.CloseWrite() }()
	return done
}

// TestDifferential runs random schedules both ways at once against crypto/tls,
// in both roles, under each suite, and ends them in every way.
func TestDifferential(t *testing.T) {
	for suiteName, k := range suites() {
		t.Run(suiteName, func(t *testing.T) {
			onlySuite(t, k.Suite)
			seed := uint64(0)
			for _, end := range slices.Sorted(maps.Keys(ends())) {
				how := ends()[end]
				for _, client := range []bool{true, false} {
					seed++
					name := fmt.Sprintf("%s, client %v, seed %d", end, client, seed)
					d := newDuel(t, k.Suite, client, rand.New(rand.NewPCG(seed, uint64(k.Suite))))
					up, down := noise(1<<17, seed), noise(1<<18, ^seed)
					oursErr, theirsErr := d.fight(up, down, how.do, name)
					if !how.ours(oursErr) || !how.theirs(theirsErr) {
						t.Errorf("%s: we saw %v, crypto/tls %v", name, oursErr, theirsErr)
					}
				}
			}
		})
	}
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

// fight sends up and down at once, then ends the connection, and returns what
// each end saw.
func (d *duel) fight(up, down []byte, end func(*duel) error, name string) (ours, theirs error) {
	d.t.Helper()
	var writers sync.WaitGroup
	theirRandom := rand.New(rand.NewPCG(uint64(len(up)), 7))
	said := make(chan struct{})
	var gotUp, gotDown []byte
	var readers sync.WaitGroup
	readers.Go(func() { gotDown, ours = d.read() })
	readers.Go(func() {
		gotUp = make([]byte, len(up))
		if _, theirs = io.ReadFull(d.oracle, gotUp); theirs == nil {
			<-said
			_, theirs = io.Copy(io.Discard, d.oracle)
		}
	})
	writers.Go(func() {
		if err := d.write(up); err != nil {
			d.t.Errorf("%s: write: %v", name, err)
		}
	})
	writers.Go(func() {
		if err := d.writeOracle(down, theirRandom); err != nil {
			d.t.Errorf("%s: crypto/tls writes: %v", name, err)
		}
	})
	writers.Wait()
	close(said)
	if err := end(d); err != nil {
		d.t.Errorf("%s: end: %v", name, err)
	}
	readers.Wait()
	if !bytes.Equal(gotUp, up) || !bytes.HasPrefix(down, gotDown) || len(gotDown) != len(down) && !errors.Is(ours, io.ErrClosedPipe) {
		d.t.Errorf("%s: bytes changed: up %v, down %d of %d", name, bytes.Equal(gotUp, up), len(gotDown), len(down))
	}
	return ours, theirs
}
