package federation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	gofederation "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var (
	ours   = spiffeid.RequireTrustDomainFromString("ours.test")
	theirs = spiffeid.RequireTrustDomainFromString("theirs.test")
)

func authority(t testing.TB, td spiffeid.TrustDomain) *identity.Authority {
	t.Helper()
	a, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// other is another trust domain whose bundle endpoint is go-spiffe's.
type other struct {
	td     spiffeid.TrustDomain
	server *httptest.Server
	asked  atomic.Int64

	mu     sync.Mutex
	ca     *identity.Authority
	bundle *spiffebundle.Bundle
	broken http.HandlerFunc
}

// newOther serves with an SVID (https_spiffe), or with a certificate of the web.
func newOther(t *testing.T, td spiffeid.TrustDomain, web bool) *other {
	t.Helper()
	o := &other{td: td, ca: authority(t, td)}
	o.publish(1, o.ca)
	judge, err := gofederation.NewHandler(td, o)
	if err != nil {
		t.Fatal(err)
	}
	o.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.asked.Add(1)
		o.mu.Lock()
		broken := o.broken
		o.mu.Unlock()
		if broken != nil {
			broken(w, r)
			return
		}
		judge.ServeHTTP(w, r)
	}))
	o.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	if !web {
		o.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, err := o.svid()
			if err != nil {
				return nil, err
			}
			return &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}, nil
		}}
	}
	o.server.StartTLS()
	t.Cleanup(o.server.Close)
	return o
}

func (o *other) svid() (*tls.Certificate, error) {
	o.mu.Lock()
	ca := o.ca
	o.mu.Unlock()
	return ca.Own(identity.OperatorID(o.td))()
}

func (o *other) GetBundleForTrustDomain(spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bundle == nil {
		return nil, errors.New("no bundle")
	}
	return o.bundle, nil
}

func (o *other) publish(sequence uint64, roots ...*identity.Authority) {
	b := spiffebundle.New(o.td)
	for _, a := range roots {
		b.AddX509Authority(a.Root())
	}
	b.SetSequenceNumber(sequence)
	b.SetRefreshHint(time.Second)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bundle = b
}

func (o *other) breakWith(h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken = h
}

func (o *other) document(t *testing.T) string {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	text, err := o.bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (o *other) webRoots() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.server.Certificate().Raw}))
}

func (o *other) byWeb() mesh.FederatedDomain {
	return mesh.FederatedDomain{TrustDomain: o.td, Endpoint: o.server.URL, WebRoots: o.webRoots()}
}

func (o *other) bySPIFFE(bootstrap string) mesh.FederatedDomain {
	return mesh.FederatedDomain{TrustDomain: o.td, Endpoint: o.server.URL, EndpointID: identity.OperatorID(o.td), Bootstrap: bootstrap}
}

// following is a Follower that runs.
type following struct {
	*Follower
	store *mesh.Store
	stop  func()
}

func follow(t *testing.T, dir string, domains ...mesh.FederatedDomain) *following {
	t.Helper()
	return followIn(t, Dir(dir), domains...)
}

func followIn(t *testing.T, store Store, domains ...mesh.FederatedDomain) *following {
	t.Helper()
	f := &following{store: mesh.NewStore()}
	f.want(t, domains...)
	var err error
	f.Follower, err = New(Config{Wanted: f.store.Snapshot, Own: authority(t, ours).Bundle(), Store: store, Often: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

func (f *following) want(t *testing.T, domains ...mesh.FederatedDomain) {
	t.Helper()
	v, err := mesh.NewView(fmt.Sprint(time.Now().UnixNano()), mesh.Settings{TrustDomain: ours, Federation: domains}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.store.Replace(v)
}

// believes waits until these roots, and no others, are believed and told.
func (f *following) believes(t *testing.T, what string, td spiffeid.TrustDomain, roots ...*identity.Authority) {
	t.Helper()
	want := x509bundle.New(td)
	for _, a := range roots {
		want.AddX509Authority(a.Root())
	}
	testenv.Eventually(t, 10*time.Second, what, func() bool {
		said, _ := f.Said()
		set, err := (*federated.Set)(nil).Take(ours, said)
		if err != nil {
			t.Fatal(err)
		}
		return set.Of(td) != nil && set.Of(td).X509().Equal(want)
	})
}

func (f *following) known(t *testing.T) *Known {
	t.Helper()
	all := f.Known()
	if len(all) != 1 {
		t.Fatalf("%d trust domains are known, want 1", len(all))
	}
	return &all[0]
}

// TestFollow takes bundles of go-spiffe's endpoint by both profiles, and goes with its roots
// from one to the next.
func TestFollow(t *testing.T) {
	for _, web := range []bool{true, false} {
		t.Run(map[bool]string{true: "https_web", false: "https_spiffe"}[web], func(t *testing.T) {
			o := newOther(t, theirs, web)
			first, next := o.ca, authority(t, theirs)
			d := o.byWeb()
			if !web {
				d = o.bySPIFFE(o.document(t))
			}
			f := follow(t, t.TempDir(), d)
			f.believes(t, "the first root", theirs, first)
			testenv.Eventually(t, 10*time.Second, "the endpoint has been asked", func() bool { k := f.known(t); return !k.Fetched.IsZero() && k.Err == nil })
			o.publish(2, first, next)
			f.believes(t, "both roots", theirs, first, next)
			o.mu.Lock()
			o.ca = next // and presents an SVID of the new root
			o.mu.Unlock()
			o.publish(3, next)
			f.believes(t, "the new root", theirs, next)
			if k := f.known(t); k.Sequence() != 3 || k.Next.IsZero() {
				t.Errorf("known are %+v", k)
			}
		})
	}
}

// TestLastGood: whatever an endpoint does, what it said before holds, after a restart too.
func TestLastGood(t *testing.T) {
	o := newOther(t, theirs, true)
	o.publish(5, o.ca)
	dir := t.TempDir()
	f := follow(t, dir, o.byWeb())
	f.believes(t, "the root", theirs, o.ca)
	huge := strings.Repeat(" ", federated.MaxDocument)
	foreign := &other{td: theirs}
	foreign.publish(6)
	many := spiffebundle.New(theirs)
	for range federated.MaxRoots + 1 {
		many.AddX509Authority(authority(t, theirs).Root())
	}
	tooMany, err := many.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	answer := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
	}
	for _, test := range []struct {
		name, says string
		broken     http.HandlerFunc
	}{
		{"an error", "503", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		{"no JSON", "theirs.test", answer("<html>")},
		{"no root", "no authorities", answer(foreign.document(t))},
		{"too much", "bytes", answer(o.document(t) + huge)},
		{"too many roots", "33 roots", answer(string(tooMany))},
		{"a redirect", "302", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.test/", http.StatusFound)
		}},
		{"it hangs up", "EOF", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		}},
	} {
		o.breakWith(test.broken)
		testenv.Eventually(t, 10*time.Second, test.name+" is said", func() bool {
			k := f.known(t)
			return k.Err != nil && strings.Contains(k.Err.Error(), test.says)
		})
		f.believes(t, "the last good one after "+test.name, theirs, o.ca)
	}
	o.breakWith(nil)
	testenv.Eventually(t, 10*time.Second, "it works again", func() bool { return f.known(t).Err == nil })

	// An older bundle is not taken, though it is well formed.
	o.publish(4, authority(t, theirs))
	testenv.Eventually(t, 10*time.Second, "an older bundle is refused", func() bool {
		k := f.known(t)
		return k.Err != nil && strings.Contains(k.Err.Error(), "spiffe_sequence 4")
	})
	// One of the same keys under a lower number is a replica's that began later.
	o.publish(3, o.ca)
	testenv.Eventually(t, 10*time.Second, "the same keys are no problem", func() bool { return f.known(t).Err == nil })
	if got := f.known(t).Sequence(); got != 5 {
		t.Errorf("sequence is %d after that, want 5", got)
	}
	f.stop()

	o.server.Close()
	again := follow(t, dir, o.byWeb())
	again.believes(t, "the last good one after a restart", theirs, o.ca)
	testenv.Eventually(t, 10*time.Second, "the endpoint that is gone is said", func() bool { return again.known(t).Err != nil })
	if again.known(t).Fetched.IsZero() {
		t.Error("when it was refreshed is not known after a restart")
	}
	again.stop()

	// A bundle in the Mesh that is another than before takes its place: who began anew is believed again.
	anew := authority(t, theirs)
	boot := &other{td: theirs}
	boot.publish(1, anew)
	d := o.byWeb()
	d.Bootstrap = boot.document(t)
	third := follow(t, dir, d)
	third.believes(t, "the Mesh's bundle", theirs, anew)
	third.stop()
	fourth := follow(t, dir) // without federation
	testenv.Eventually(t, 10*time.Second, "nothing is believed", func() bool { said, _ := fourth.Said(); return said != nil && len(said.GetDomains()) == 0 })
	fourth.stop()
	if kept, err := Dir(dir).Load(t.Context()); err != nil || len(kept) != 0 {
		t.Errorf("after the federation %d are kept: %v", len(kept), err)
	}
}

// kept is a Store whose writes wait as long as it hangs.
type kept struct {
	mu    sync.Mutex
	texts map[string]string
	hang  chan struct{} // nil for not
}

func (k *kept) Load(context.Context) (map[string]string, error) { return map[string]string{}, nil }

func (k *kept) Save(ctx context.Context, name, text string) error {
	k.mu.Lock()
	hang := k.hang
	k.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.texts[name] = text
	return nil
}

// TestNothingNewIsNotTold: Views of the same settings wake up nobody and change nothing that
// is known, why an endpoint was not refreshed and when it is asked again among it.
func TestNothingNewIsNotTold(t *testing.T) {
	o, third := newOther(t, theirs, true), newOther(t, spiffeid.RequireTrustDomainFromString("third.test"), true)
	f := follow(t, t.TempDir(), o.byWeb())
	f.believes(t, "the root", theirs, o.ca)
	o.breakWith(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	testenv.Eventually(t, 10*time.Second, "an error", func() bool { return f.known(t).Err != nil })
	_, changed := f.Said()
	for range 200 {
		f.want(t, o.byWeb())
		if k := f.known(t); k.Err == nil || k.Next.IsZero() {
			t.Fatalf("after a View of the same settings known are %+v", k)
		}
		time.Sleep(time.Millisecond)
	}
	// Another endpoint says nothing new either, and another domain says nothing of this one.
	moved := o.byWeb()
	moved.Endpoint += "elsewhere"
	f.want(t, moved)
	testenv.Eventually(t, 10*time.Second, "the other endpoint", func() bool { return f.known(t).Domain.Equal(moved) })
	select {
	case <-changed:
		t.Error("agents are told what they know")
	default:
	}
	testenv.Eventually(t, 10*time.Second, "an error of the other endpoint", func() bool { return f.known(t).Err != nil })
	f.want(t, moved, third.byWeb())
	testenv.Eventually(t, 10*time.Second, "two domains", func() bool { return len(f.Known()) == 2 })
	if k := f.Known()[0]; !k.Domain.Equal(moved) || k.Err == nil || k.Next.IsZero() {
		t.Errorf("beside another domain known are %+v", k)
	}
	select {
	case <-changed:
	default:
		t.Error("agents are not told of a new domain")
	}
}

// TestAStoreThatHangsHoldsNothingUp: whoever is taken out of the Mesh is not told to agents
// any more though the Store does not answer, and nothing old is written afterwards.
func TestAStoreThatHangsHoldsNothingUp(t *testing.T) {
	third := newOther(t, spiffeid.RequireTrustDomainFromString("third.test"), true)
	o, store := newOther(t, theirs, true), &kept{texts: map[string]string{}}
	f := followIn(t, store, o.byWeb(), third.byWeb())
	f.believes(t, "the root", theirs, o.ca)
	f.believes(t, "the third's root", third.td, third.ca)
	hang := make(chan struct{})
	store.mu.Lock()
	store.hang = hang
	store.mu.Unlock()
	next := authority(t, theirs)
	o.publish(2, o.ca, next)
	f.believes(t, "both roots", theirs, o.ca, next) // which is not kept yet
	f.want(t, o.byWeb())
	testenv.Eventually(t, 5*time.Second, "the third is told no more", func() bool { said, _ := f.Said(); return len(said.GetDomains()) == 1 })
	o.publish(3, next)
	close(hang)
	f.believes(t, "the newest", theirs, next)
	testenv.Eventually(t, 10*time.Second, "the newest is kept", func() bool {
		store.mu.Lock()
		defer store.mu.Unlock()
		d, _, err := readRecord(theirs, store.texts[theirs.Name()])
		return err == nil && len(d.X509().X509Authorities()) == 1 && store.texts[third.td.Name()] == ""
	})
}

// TestViewsWhileAsked is for the race detector: settings change while endpoints answer.
func TestViewsWhileAsked(t *testing.T) {
	o, third := newOther(t, theirs, true), newOther(t, spiffeid.RequireTrustDomainFromString("third.test"), true)
	f := followIn(t, &kept{texts: map[string]string{}}, o.byWeb())
	for i := range 200 {
		all := []mesh.FederatedDomain{o.byWeb(), third.byWeb()}
		f.want(t, all[:1+i%2]...)
		time.Sleep(2 * time.Millisecond)
	}
	f.believes(t, "the root", theirs, o.ca)
	f.believes(t, "the third's root", third.td, third.ca)
}

// TestUnusableFileIsDoneWithout: federation goes on, and the file is written anew.
func TestUnusableFileIsDoneWithout(t *testing.T) {
	o := newOther(t, theirs, true)
	for name, write := range map[string]func(path string) error{
		"broken": func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		"null":   func(path string) error { return os.WriteFile(path, []byte("null"), 0o600) },
		"mode": func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("{}"), 0o600), os.Chmod(path, 0o644))
		},
		"too large": func(path string) error { return os.WriteFile(path, make([]byte, maxKept+1), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := write(filepath.Join(dir, "federation.json")); err != nil {
				t.Fatal(err)
			}
			f := follow(t, dir, o.byWeb())
			f.believes(t, "the root", theirs, o.ca)
			testenv.Eventually(t, 10*time.Second, "it is kept", func() bool { all, err := Dir(dir).Load(t.Context()); return err == nil && len(all) == 1 })
			f.stop()
		})
	}
}

// TestAllThatMayBeKeptFits: as many as there may be, each as large as it may be, are read
// again; one that is larger is refused, and keeps no other from being kept.
func TestAllThatMayBeKeptFits(t *testing.T) {
	d := Dir(t.TempDir())
	r := record{Bundle: strings.Repeat(`"`, (maxRecord-200)/2)}
	text, err := r.text()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for i := range federated.MaxDomains {
		name := fmt.Sprintf("%0240d.test", i)
		if err := d.Save(t.Context(), name, text); err != nil {
			t.Fatal(err)
		}
		sum += len(name) + len(text)
	}
	if all, err := d.Load(t.Context()); err != nil || len(all) != federated.MaxDomains {
		t.Errorf("%d are read: %v", len(all), err)
	}
	if sum > 1<<20 {
		t.Errorf("they are %d bytes, more than a ConfigMap takes", sum)
	}
	r.Bundle = strings.Repeat("<", federated.MaxDocument)
	if _, err := r.text(); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("one of %d escaped bytes: %v", federated.MaxDocument, err)
	}
}

// TestImpostors: an endpoint that does not prove to be who the Mesh names is not believed.
func TestImpostors(t *testing.T) {
	o := newOther(t, theirs, false)
	stranger := newOther(t, theirs, false) // of the same name, with another root
	third := newOther(t, spiffeid.RequireTrustDomainFromString("third.test"), false)
	for _, test := range []struct {
		name, says string
		d          mesh.FederatedDomain
	}{
		{"another root", "unknown authority", mesh.FederatedDomain{TrustDomain: theirs, Endpoint: stranger.server.URL, EndpointID: identity.OperatorID(theirs), Bootstrap: o.document(t)}},
		{"another identity", "unexpected ID", mesh.FederatedDomain{TrustDomain: theirs, Endpoint: o.server.URL, EndpointID: spiffeid.RequireFromString("spiffe://theirs.test/spire/server"), Bootstrap: o.document(t)}},
		{"an SVID as a web certificate", "certificate", mesh.FederatedDomain{TrustDomain: theirs, Endpoint: o.server.URL}},
		{"nothing to verify it by", "first bundle", mesh.FederatedDomain{TrustDomain: theirs, Endpoint: o.server.URL, EndpointID: identity.OperatorID(third.td)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := follow(t, t.TempDir(), test.d)
			testenv.Eventually(t, 10*time.Second, "it is refused", func() bool {
				all := f.Known()
				return len(all) == 1 && all[0].Err != nil && strings.Contains(all[0].Err.Error(), test.says)
			})
			if k := f.known(t); !k.Fetched.IsZero() {
				t.Error("its bundle was taken")
			}
			f.stop()
		})
	}
	// An endpoint of our own trust domain may serve another's bundle, and ours stays ours.
	f := follow(t, t.TempDir())
	if _, err := f.GetX509BundleForTrustDomain(ours); err != nil {
		t.Errorf("our own bundle: %v", err)
	}
	if _, err := f.GetX509BundleForTrustDomain(theirs); err == nil {
		t.Error("there is a bundle of whoever is not federated")
	}
}

// TestAsksAsOftenAsItIsTold: four times in a refresh hint, and less often after failures.
func TestAsksAsOftenAsItIsTold(t *testing.T) {
	o := newOther(t, theirs, true)
	f, err := New(Config{Wanted: mesh.NewStore().Snapshot, Own: authority(t, ours).Bundle(), Store: Dir(t.TempDir()), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d, err := federated.Parse(theirs, []byte(o.document(t)))
	if err != nil {
		t.Fatal(err)
	}
	known := func(hint time.Duration) {
		d.Bundle.SetRefreshHint(hint)
		f.state.known = map[spiffeid.TrustDomain]*Known{theirs: {Bundle: d}}
	}
	for _, test := range []struct {
		hint     time.Duration
		failures int
		want     time.Duration
	}{
		{time.Second, 0, mostOften}, {4 * time.Minute, 0, time.Minute}, {100 * time.Hour, 0, leastOften},
		{100 * time.Hour, 1, mostOften}, {100 * time.Hour, 3, 4 * mostOften}, {100 * time.Hour, 1000, backoffMost}, {40 * time.Second, 1000, 10 * time.Second},
	} {
		known(test.hint)
		if got := f.wait(theirs, test.failures); got < test.want*9/10 || got > test.want*11/10+1 {
			t.Errorf("hint %v, %d failures: waits %v, want about %v", test.hint, test.failures, got, test.want)
		}
	}
}

// served is the Endpoint of an authority that changes.
func served(t *testing.T, certificate func() (*tls.Certificate, error), now *atomic.Pointer[[]*x509.Certificate]) string {
	t.Helper()
	e, err := NewEndpoint(EndpointConfig{TrustDomain: ours, Roots: func() []*x509.Certificate { return *now.Load() }, Certificate: certificate, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "https://" + listener.Addr().String() + "/"
}

// TestEndpoint has go-spiffe's client fetch what the Endpoint serves, by both profiles.
func TestEndpoint(t *testing.T) {
	ca, next := authority(t, ours), authority(t, ours)
	var now atomic.Pointer[[]*x509.Certificate]
	now.Store(&[]*x509.Certificate{ca.Root()})
	cert, key := webCertificate(t)
	web, err := Files(cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatalf("read certificate: %v", err)
	}
	for _, test := range []struct {
		name, url string
		with      func() gofederation.FetchOption
	}{
		{"https_spiffe", served(t, ca.Own(identity.OperatorID(ours)), &now), func() gofederation.FetchOption {
			return gofederation.WithSPIFFEAuth(ca.Bundle(), identity.OperatorID(ours))
		}},
		{"https_web", served(t, web, &now), func() gofederation.FetchOption { return gofederation.WithWebPKIRoots(pool) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			now.Store(&[]*x509.Certificate{ca.Root()})
			fetched := func() (*spiffebundle.Bundle, uint64) {
				t.Helper()
				b, err := gofederation.FetchBundle(t.Context(), ours, test.url, test.with())
				if err != nil {
					t.Fatal(err)
				}
				hint, _ := b.RefreshHint()
				n, ok := b.SequenceNumber()
				if hint != RefreshHint || !ok {
					t.Errorf("refresh hint %v, sequence %v", hint, ok)
				}
				return b, n
			}
			b, first := fetched()
			if !b.X509Bundle().Equal(ca.Bundle()) {
				t.Error("it is another bundle")
			}
			if _, same := fetched(); same != first {
				t.Errorf("sequence went from %d to %d, and nothing changed", first, same)
			}
			now.Store(&[]*x509.Certificate{ca.Root(), next.Root()})
			if b, grown := fetched(); grown <= first || len(b.X509Authorities()) != 2 {
				t.Errorf("sequence went from %d to %d with %d roots", first, grown, len(b.X509Authorities()))
			}
		})
	}
	t.Run("other methods", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
		response, err := client.Post(served(t, web, &now), "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST is answered %s", response.Status)
		}
	})
	if _, err := Files(cert, filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a certificate without its key is taken")
	}
}

// webCertificate writes one of 127.0.0.1, and its key, in PEM.
func webCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bundle"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(t.TempDir(), "tls.crt"), filepath.Join(t.TempDir(), "tls.key")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}
