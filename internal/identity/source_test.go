package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// fakeSigner asks an Authority unless it is told to fail, and remembers what it
// was asked.
type fakeSigner struct {
	*Authority
	sync.Mutex
	fail    error
	asked   []spiffeid.ID
	atOnce  int
	most    int
	latency time.Duration
	answer  func(chain []*x509.Certificate) []*x509.Certificate
}

func (f *fakeSigner) Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	f.Lock()
	f.asked = append(f.asked, id)
	f.atOnce++
	f.most = max(f.most, f.atOnce)
	fail, answer := f.fail, f.answer
	f.Unlock()
	defer func() { f.Lock(); f.atOnce--; f.Unlock() }()
	select {
	case <-time.After(f.latency):
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if fail != nil {
		return nil, nil, fail
	}
	chain, bundle, err = f.Authority.Sign(ctx, id, csr)
	if answer != nil && err == nil {
		chain = answer(chain)
	}
	return chain, bundle, err
}

func (f *fakeSigner) set(change func()) { f.Lock(); change(); f.Unlock() }

func (f *fakeSigner) count() int { f.Lock(); defer f.Unlock(); return len(f.asked) }

// start runs a Source until the test ends. The test must be a synctest bubble.
func start(t *testing.T, cfg SourceConfig) *Source {
	t.Helper()
	cfg.TrustDomain = testTD
	s, err := NewSource(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return s
}

func run(t *testing.T, s *Source) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func want(t *testing.T, s *Source, ids ...spiffeid.ID) {
	t.Helper()
	if err := s.Want(ids); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func certificate(t *testing.T, s *Source, id spiffeid.ID) *tls.Certificate {
	t.Helper()
	c, err := s.Certificate(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRenewalAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t)}
		s := start(t, SourceConfig{Signer: signer})
		changed := s.Changed()
		want(t, s, shopWeb)
		select {
		case <-changed:
		default:
			t.Error("no notification of the first certificate")
		}
		first := certificate(t, s, shopWeb)
		time.Sleep(10*time.Hour + 47*time.Minute) // 0.45 of 24 h is 10:48
		synctest.Wait()
		if certificate(t, s, shopWeb) != first {
			t.Error("renewed before half life less jitter")
		}
		changed = s.Changed()
		time.Sleep(2*time.Hour + 26*time.Minute) // 0.55 of 24 h is 13:12
		synctest.Wait()
		if certificate(t, s, shopWeb) == first {
			t.Error("not renewed past half life plus jitter")
		}
		select {
		case <-changed:
		default:
			t.Error("no notification of the renewal")
		}
		if n := signer.count(); n != 2 {
			t.Errorf("signer was asked %d times", n)
		}
	})
}

// TestRenewalsAreSpread over a fifth of the time to them, in a short life, too, and come
// while the certificate is of use to peers whose clocks are ahead.
func TestRenewalsAreSpread(t *testing.T) {
	now := time.Now()
	for ttl, middle := range map[time.Duration]time.Duration{24 * time.Hour: 12 * time.Hour, time.Hour: 30 * time.Minute, 40 * time.Minute: 18 * time.Minute} {
		leaf, times := &x509.Certificate{NotAfter: now.Add(ttl)}, map[time.Duration]int{}
		for range 200 {
			in := renewAt(now, leaf).Sub(now)
			if in < middle/10*9 || in > middle/10*11 || in >= skew.Useful(now, leaf.NotAfter) {
				t.Errorf("of %v: renewed in %v", ttl, in)
			}
			times[in.Truncate(middle/100)]++
		}
		if len(times) < 10 {
			t.Errorf("of %v: 200 renewals fall into %d of 20 times", ttl, len(times))
		}
	}
}

func TestValidCertificateIsKeptWhenRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t)}
		s := start(t, SourceConfig{Signer: signer})
		want(t, s, shopWeb)
		first := certificate(t, s, shopWeb)
		signer.set(func() { signer.fail = errors.New("operator is down") })
		time.Sleep(23 * time.Hour)
		if certificate(t, s, shopWeb) != first {
			t.Error("certificate was not kept")
		}
		st := s.Statuses()[0]
		if st.Failures < 100 || st.Failures > 200 || st.LastErr == nil {
			t.Errorf("%d failures in 11 hours with a backoff of 5 minutes, last: %v", st.Failures, st.LastErr)
		}
		time.Sleep(2 * time.Hour)
		_, err := s.Certificate(shopWeb)
		if !errors.Is(err, ErrCertificateExpired) || !strings.Contains(err.Error(), "operator is down") {
			t.Errorf("after expiry: %v", err)
		}
		signer.set(func() { signer.fail = nil })
		time.Sleep(backoffFresh + time.Second) // expired: urgent again
		certificate(t, s, shopWeb)
	})
}

func TestFirstIssueIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t), fail: errors.New("no workload on this node")}
		s := start(t, SourceConfig{Signer: signer})
		want(t, s, shopWeb)
		if _, err := s.Certificate(shopWeb); !errors.Is(err, ErrNoCertificate) || !strings.Contains(err.Error(), "no workload") {
			t.Errorf("error does not say why: %v", err)
		}
		time.Sleep(10 * time.Minute)
		if n := signer.count(); n < 20 || n > 40 {
			t.Errorf("asked %d times in 10 minutes with a backoff of 30 s", n)
		}
		signer.set(func() { signer.fail = nil })
		time.Sleep(backoffFresh)
		synctest.Wait()
		certificate(t, s, shopWeb)
	})
}

func TestHangingSignerDoesNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t), latency: time.Hour}
		s := start(t, SourceConfig{Signer: signer, Timeout: time.Second, Parallel: 2})
		ids := []spiffeid.ID{shopWeb, shopDB}
		for _, sa := range []string{"a", "b", "c", "d"} {
			ids = append(ids, spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/"+sa))
		}
		want(t, s, ids...)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if signer.most != 2 {
			t.Errorf("%d requests at once, the bound is 2", signer.most)
		}
		if n := signer.count(); n < 6 || n > 22 {
			t.Errorf("asked %d times in 10 s", n)
		}
		signer.set(func() { signer.latency = time.Millisecond })
		time.Sleep(time.Minute)
		for _, id := range ids {
			certificate(t, s, id)
		}
	})
}

func TestUnwantedIdentitiesAreDropped(t *testing.T) {
	keys := openKeys(t)
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t)}
		s := start(t, SourceConfig{Signer: signer, Keys: keys})
		want(t, s, shopWeb, shopDB)
		if n := storedKeys(t, keys); n != 2 {
			t.Errorf("%d keys stored", n)
		}
		want(t, s, shopDB)
		if _, err := s.Certificate(shopWeb); !errors.Is(err, ErrNoCertificate) {
			t.Errorf("certificate of a dropped identity: %v", err)
		}
		if n := storedKeys(t, keys); n != 1 {
			t.Errorf("%d keys stored", n)
		}
		if err := s.Want([]spiffeid.ID{shopDB, foreigns}); err == nil || !strings.Contains(err.Error(), foreigns.String()) {
			t.Errorf("foreign identity: %v", err)
		}
		time.Sleep(24 * time.Hour)
		for _, st := range s.Statuses() {
			if st.ID != shopDB {
				t.Errorf("lists %s", st.ID)
			}
		}
	})
}

func TestDroppedWhileBeingIssued(t *testing.T) {
	keys := openKeys(t)
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t), latency: time.Second}
		s := start(t, SourceConfig{Signer: signer, Keys: keys})
		want(t, s, shopWeb)
		want(t, s)
		time.Sleep(time.Minute)
		if n := storedKeys(t, keys); n != 0 || len(s.Statuses()) != 0 {
			t.Errorf("%d keys stored, status %v", n, s.Statuses())
		}
	})
}

// TestRestartNeedsNoOperator: what an earlier process stored is there at once,
// is not dropped before the first Want, and is renewed when it is time.
func TestRestartNeedsNoOperator(t *testing.T) {
	keys := openKeys(t)
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t)}
		s, err := NewSource(SourceConfig{TrustDomain: testTD, Signer: signer, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		want(t, s, shopWeb, shopDB)
		first := certificate(t, s, shopWeb)
		stop()

		time.Sleep(6 * time.Hour)
		signer.set(func() { signer.fail = errors.New("operator is down") })
		s = start(t, SourceConfig{Signer: signer, Keys: keys})
		if again := certificate(t, s, shopWeb); string(again.Certificate[0]) != string(first.Certificate[0]) {
			t.Error("another certificate after the restart")
		}
		if _, err := s.GetX509BundleForTrustDomain(testTD); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour) // 7 h: no reason to ask, and nothing wanted yet
		certificate(t, s, shopDB)
		want(t, s, shopWeb)
		if n := signer.count(); n != 2 {
			t.Errorf("asked %d times", n)
		}
		signer.set(func() { signer.fail = nil })
		time.Sleep(6*time.Hour + 13*time.Minute) // 13:13 after the issue
		synctest.Wait()
		if again := certificate(t, s, shopWeb); string(again.Certificate[0]) == string(first.Certificate[0]) {
			t.Error("half life is not counted from the issue, but from the restart")
		}
	})
}

func TestDamagedKeysAreRefusedAndReplaced(t *testing.T) {
	keys := openKeys(t)
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t)}
		s, err := NewSource(SourceConfig{TrustDomain: testTD, Signer: signer, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		want(t, s, shopWeb, shopDB)
		stop()
		files, err := filepath.Glob(filepath.Join(keys.Dir(), "*.svid"))
		if err != nil || len(files) != 2 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			text[len(text)/3] ^= 0x55
			if err := os.WriteFile(f, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s = start(t, SourceConfig{Signer: signer, Keys: keys})
		if got := s.stats.refused.Load(); got != 2 {
			t.Errorf("%d refused", got)
		}
		if _, err := s.Certificate(shopWeb); err == nil {
			t.Error("took a damaged file")
		}
		want(t, s, shopWeb)
		certificate(t, s, shopWeb)
		entries, refused, err := keys.Load()
		if err != nil || len(entries) != 1 || len(refused) != 0 {
			t.Errorf("%d entries, %v, %v", len(entries), refused, err)
		}
	})
}

func TestStoredKeysOfAnotherMeshAreRefused(t *testing.T) {
	keys := openKeys(t)
	synctest.Test(t, func(t *testing.T) {
		old := &fakeSigner{Authority: newTestAuthority(t)}
		s, err := NewSource(SourceConfig{TrustDomain: testTD, Signer: old, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		want(t, s, shopWeb)
		stop()
		fresh := &fakeSigner{Authority: newTestAuthority(t)}
		s = start(t, SourceConfig{Signer: fresh, Keys: keys, Bundle: fresh.Bundle()})
		if _, err := s.Certificate(shopWeb); err == nil || !strings.Contains(err.Error(), "stored one refused") {
			t.Errorf("took a certificate of another authority: %v", err)
		}
		want(t, s, shopWeb)
		if _, _, err := x509svid.Verify([]*x509.Certificate{certificate(t, s, shopWeb).Leaf}, fresh.Bundle()); err != nil {
			t.Error(err)
		}
	})
}

// mint signs whatever a test asks for.
func mint(t testing.TB, a *Authority, key *ecdsa.PrivateKey, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, URIs: []*url.URL{shopWeb.URL()},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestBadCertificatesAreRefused(t *testing.T) {
	a, foreign, key := newTestAuthority(t), newTestAuthority(t), newKey(t)
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		want  string
	}{
		"none":         {nil, "0 certificates"},
		"expired":      {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, "expired"},
		"of tomorrow":  {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) })}, "clocks differ"},
		"foreign":      {[]*x509.Certificate{mint(t, foreign, key, func(*x509.Certificate) {})}, "unknown authority"},
		"two URIs":     {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.URIs = append(c.URIs, shopDB.URL()) })}, "more than one URI"},
		"no URI":       {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"x"} })}, "no URI"},
		"CA":           {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.IsCA = true })}, "CA flag"},
		"another name": {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.URIs = []*url.URL{shopDB.URL()} })}, "not of " + shopWeb.String()},
		"another key":  {[]*x509.Certificate{mint(t, a, newKey(t), func(*x509.Certificate) {})}, "another key"},
		"another domain": {[]*x509.Certificate{mint(t, a, key, func(c *x509.Certificate) { c.URIs = []*url.URL{foreigns.URL()} })},
			"could not get X509 bundle"},
	} {
		e := keystore.Entry{ID: shopWeb, Key: key, Chain: c.chain, Received: time.Now()}
		if err := CheckIssued(e, a.Bundle()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// TestSkewedOperator: rotation works with an operator whose clock is 10 minutes
// off, at a TTL of one hour too.
func TestSkewedOperator(t *testing.T) {
	for _, skew := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				signer := &fakeSigner{Authority: newTestAuthority(t, func(c *AuthorityConfig) {
					c.TTL = time.Hour
					c.Now = func() time.Time { return time.Now().Add(skew) }
				})}
				s := start(t, SourceConfig{Signer: signer})
				want(t, s, shopWeb)
				for range 600 {
					time.Sleep(time.Minute)
					cert := certificate(t, s, shopWeb)
					if time.Until(cert.Leaf.NotAfter) < 12*time.Minute {
						t.Fatalf("down to %v", time.Until(cert.Leaf.NotAfter))
					}
				}
				if n := signer.count(); n > 40 {
					t.Errorf("%d issues in 10 hours", n)
				}
			})
		})
	}
}

func TestRootAtItsEndMakesNoBusyLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := &fakeSigner{Authority: newTestAuthority(t, func(c *AuthorityConfig) { c.RootTTL = time.Hour })}
		s := start(t, SourceConfig{Signer: signer})
		want(t, s, shopWeb)
		time.Sleep(2 * time.Hour)
		if n := signer.count(); n > 250 {
			t.Errorf("%d requests in 2 hours", n)
		}
	})
}

func TestBundleFollowsTheOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		s := start(t, SourceConfig{Signer: &fakeSigner{Authority: a}})
		if _, err := s.GetX509BundleForTrustDomain(testTD); err == nil {
			t.Error("bundle out of nowhere")
		}
		want(t, s, shopWeb)
		b, err := s.GetX509BundleForTrustDomain(testTD)
		if err != nil || !b.HasX509Authority(a.Root()) {
			t.Error(err)
		}
		if _, err := s.GetX509BundleForTrustDomain(foreigns.TrustDomain()); err == nil {
			t.Error("has a bundle of a foreign trust domain")
		}
		changed, overlap := s.Changed(), a.Bundle()
		overlap.AddX509Authority(newTestAuthority(t).Root())
		if err := s.SetBundle(overlap); err != nil {
			t.Fatal(err)
		}
		<-changed
		if err := s.SetBundle(x509bundle.New(testTD)); err == nil {
			t.Error("took an empty bundle")
		}
		if err := s.SetBundle(x509bundle.FromX509Authorities(foreigns.TrustDomain(), a.Roots())); err == nil {
			t.Error("took a foreign bundle")
		}
	})
}

// TestRotationDropsNoConnection: a TLS connection made with the old certificate
// goes on; the next handshake presents the new one.
func TestRotationDropsNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, SourceConfig{Signer: &fakeSigner{Authority: newTestAuthority(t)}})
		want(t, s, shopWeb)
		connect := func() *tls.Conn {
			near, far := net.Pipe()
			server := tls.Server(far, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate(shopWeb) }})
			go func() {
				_, err := io.Copy(server, server)
				if err != nil && !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("echo: %v", err)
				}
				server.Close()
			}()
			client := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
			t.Cleanup(func() { near.Close(); far.Close() })
			return client
		}
		echo := func(c *tls.Conn) string {
			b := make([]byte, 4)
			if _, err := c.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, b); err != nil {
				t.Fatal(err)
			}
			return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
		}
		old := connect()
		serial := echo(old)
		time.Sleep(14 * time.Hour)
		synctest.Wait()
		fresh := connect()
		if echo(old) != serial || echo(fresh) == serial {
			t.Error("the old connection must keep its certificate, the new one must not")
		}
	})
}

func TestSourceMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, SourceConfig{Signer: &fakeSigner{Authority: newTestAuthority(t)}})
		want(t, s, shopWeb, shopDB)
		valid, missing, earliest := s.summary()
		if valid != 2 || missing != 0 || earliest == 0 {
			t.Errorf("%d valid, %d missing, earliest %v", valid, missing, earliest)
		}
		time.Sleep(time.Second)
		collectAll(t, s)
	})
}

// openKeys opens a key store on a tmpfs: /dev/shm is one on every Linux.
func openKeys(t *testing.T) *keystore.Store {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "heddle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	keys, err := keystore.Open(t.Context(), keystore.Config{Dir: filepath.Join(dir, "keys")})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func storedKeys(t *testing.T, keys *keystore.Store) int {
	t.Helper()
	entries, refused, err := keys.Load()
	if err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	return len(entries)
}
