package workloadapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// first is the UID of each pod that was enrolled.
const first = "uid-1"

// world is a Server with pods whose listeners are on ports of this machine.
type world struct {
	t         *testing.T
	td        spiffeid.TrustDomain
	authority *identity.Authority
	source    *identity.Source
	store     *mesh.Store
	server    *Server

	mu       sync.Mutex
	revision int
	labels   map[string]string // of Label, by workload
	revoked  []spiffeid.ID
	named    map[string]string // other UIDs than first, by workload; of other service accounts, too
	at       map[string]string // the pods' newest listeners
	opened   map[string]int
	refuse   error // of Listen
	signer         // of JWT-SVIDs
}

func newWorld(t *testing.T, limits Limits) *world {
	t.Helper()
	w := &world{t: t, td: spiffeid.RequireTrustDomainFromString("mesh.test"), store: mesh.NewStore(), labels: map[string]string{}, named: map[string]string{}, at: map[string]string{}, opened: map[string]int{}}
	w.authority = w.newAuthority()
	var err error
	w.source, err = identity.NewSource(identity.SourceConfig{TrustDomain: w.td, Signer: w, Bundle: w.authority.Bundle()})
	if err != nil {
		t.Fatal(err)
	}
	w.server = New(Config{Node: "n1", Store: w.store, Identities: w.source, JWT: &w.told, SignJWT: w.signJWT, Limits: limits, Registry: prometheus.NewRegistry()})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.source.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() { w.server.Run(ctx) })
	for _, name := range []string{"web", "api"} {
		running.Go(func() {
			w.server.Serve(ctx, Pod{Key: mesh.Key{Namespace: "shop", Name: name}, UID: first, Listen: func(ctx context.Context) (net.Listener, error) { return w.listen(ctx, name) }})
		})
	}
	t.Cleanup(func() { stop(); running.Wait() })
	return w
}

func (w *world) newAuthority() *identity.Authority {
	w.t.Helper()
	a, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: w.td})
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// Sign implements identity.Signer, by the authority of the moment.
func (w *world) Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	w.mu.Lock()
	a := w.authority
	w.mu.Unlock()
	if a == nil {
		return nil, nil, errors.New("nobody signs")
	}
	return a.Sign(ctx, id, csr)
}

func (w *world) listen(ctx context.Context, name string) (net.Listener, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return nil, w.refuse
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err == nil {
		w.at[name] = l.Addr().String()
		w.opened[name]++
	}
	return l, err
}

func (w *world) id(name string) spiffeid.ID {
	return spiffeid.RequireFromPath(w.td, "/ns/shop/sa/"+name)
}

// label sets the pods' labels, and publishes.
func (w *world) label(pairs ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 0; i < len(pairs); i += 2 {
		w.labels[pairs[i]] = pairs[i+1]
	}
	w.publish()
}

// succeed gives a pod's name to another one, and publishes.
func (w *world) succeed(name, uid string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.named[name] = uid
	w.publish()
}

func (w *world) revoke(ids ...spiffeid.ID) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked = ids
	w.publish()
}

// publish needs the lock.
func (w *world) publish() {
	w.t.Helper()
	var all []mesh.Workload
	for i, name := range []string{"web", "api", "far"} {
		one := mesh.Workload{
			Key: mesh.Key{Namespace: "shop", Name: name}, Node: "n1", ServiceAccount: name, Identity: w.id(name), Enrolled: true, UID: first,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})}, Labels: map[string]string{},
		}
		if name == "far" {
			one.Node = "n2"
		}
		if uid := w.named[name]; uid != "" {
			one.UID, one.ServiceAccount, one.Identity = uid, "successor", w.id("successor")
		}
		if value := w.labels[name]; value != "" {
			one.Labels[Label] = value
		}
		all = append(all, one)
	}
	w.revision++
	view, err := mesh.NewView(fmt.Sprint(w.revision), mesh.Settings{TrustDomain: w.td, RevokedIdentities: w.revoked}, all, nil, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store.Replace(view)
}

// address is where a pod's listener is, once there is one.
func (w *world) address(name string) string {
	w.t.Helper()
	at := ""
	testenv.Eventually(w.t, 10*time.Second, name+" has a listener", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		at = w.at[name]
		return at != ""
	})
	return at
}

func (w *world) client(name string) *client.Client {
	w.t.Helper()
	c, err := client.New(w.t.Context(), client.WithAddr("tcp://"+w.address(name)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// raw is a client that sends what it is told to.
func (w *world) raw(name string) workload.SpiffeWorkloadAPIClient {
	w.t.Helper()
	return workload.NewSpiffeWorkloadAPIClient(w.conn(name))
}

func (w *world) conn(name string) *grpc.ClientConn {
	w.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+w.address(name), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func withHeader(ctx context.Context, pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestProfiles: go-spiffe's client gets the pod's own SVID, which the bundle verifies
// and whose key is its; what is not served says so.
func TestProfiles(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled, "api", Enabled, "far", Enabled)
	for _, name := range []string{"web", "api"} {
		c := w.client(name)
		all, err := c.FetchX509Context(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(all.SVIDs) != 1 || all.DefaultSVID().ID != w.id(name) {
			t.Fatalf("%s is given %v", name, all.SVIDs)
		}
		if _, _, err := x509svid.Verify(all.DefaultSVID().Certificates, all.Bundles); err != nil {
			t.Error(err)
		}
		bundles, err := c.FetchX509Bundles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if bundle, err := bundles.GetX509BundleForTrustDomain(w.td); err != nil || !bundle.Equal(w.authority.Bundle()) || bundles.Len() != 1 {
			t.Errorf("bundles %v, %v", bundles, err)
		}
	}
	// Those of federated trust domains are told as they come and go.
	other, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("other.test")})
	if err != nil {
		t.Fatal(err)
	}
	document, err := spiffebundle.FromX509Bundle(other.Bundle()).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := federated.Parse(other.TrustDomain(), document)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []*federated.Set{federated.NewSet(foreign), federated.NewSet()} {
		w.source.SetFederated(set)
		all, err := w.client("web").FetchX509Context(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bundles, err := w.client("api").FetchX509Bundles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, given := range []*x509bundle.Set{all.Bundles, bundles} {
			if b, ok := given.Get(other.TrustDomain()); given.Len() != 1+len(set.Domains()) || ok != (len(set.Domains()) == 1) || ok && !b.Equal(other.Bundle()) {
				t.Errorf("with %d federated trust domains %d bundles are given", len(set.Domains()), given.Len())
			}
		}
	}
	if n := len(w.source.Statuses()); n != 2 {
		t.Errorf("%d SVIDs are held, of 2 pods of this node", n)
	}
	_, err = w.client("web").FetchWITBundles(t.Context())
	wantCode(t, "FetchWITBundles", err, codes.Unimplemented)
}

// TestHeader: every method refuses a request without the header, or with another value.
func TestHeader(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled)
	conn := w.conn("web")
	c := workload.NewSpiffeWorkloadAPIClient(conn)
	unknown := func(ctx context.Context) error {
		return conn.Invoke(ctx, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &workload.X509SVIDRequest{}, &workload.X509SVIDResponse{})
	}
	for what, pairs := range map[string][]string{"no header": nil, "case": {header, "True"}, "twice": {header, headerValue, header, headerValue}, "empty": {header, ""}} {
		ctx := withHeader(t.Context(), pairs...)
		_, err := receive(c.FetchX509SVID(ctx, &workload.X509SVIDRequest{}))
		wantCode(t, what, err, codes.InvalidArgument)
		_, err = receive(c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{}))
		wantCode(t, what, err, codes.InvalidArgument)
		_, err = c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
		wantCode(t, what, err, codes.InvalidArgument)
		_, err = receive(c.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{}))
		wantCode(t, what, err, codes.InvalidArgument)
		_, err = c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{})
		wantCode(t, what, err, codes.InvalidArgument)
		wantCode(t, what+", of something else", unknown(ctx), codes.InvalidArgument)
	}
	wantCode(t, "something else", unknown(withHeader(t.Context(), header, headerValue)), codes.Unimplemented)
	if n := testutil.ToFloat64(w.server.metrics.keys); n != 0 {
		t.Errorf("%v keys were given", n)
	}
	if _, err := receive(c.FetchX509SVID(withHeader(t.Context(), header, headerValue), &workload.X509SVIDRequest{})); err != nil {
		t.Error(err)
	}
}

// receive is a stream's first message. Its context, which is the test's, ends it.
func receive[M any](stream grpc.ServerStreamingClient[M], err error) (*M, error) {
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

// TestRotation: two pods' processes talk by mutual TLS with what they are given; the
// authority is replaced under them, and they go on without asking.
func TestRotation(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled, "api", Enabled)
	source := func(name string) *client.X509Source {
		s, err := client.NewX509Source(t.Context(), client.WithClient(w.client(name)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	web, api := source("web"), source("api")
	greet := func() {
		t.Helper()
		mutual(t, tlsconfig.MTLSClientConfig(web, web, tlsconfig.AuthorizeID(w.id("api"))), tlsconfig.MTLSServerConfig(api, api, tlsconfig.AuthorizeID(w.id("web"))))
	}
	greet()
	before, after := w.authority, w.newAuthority()
	both := x509bundle.FromX509Authorities(w.td, append(before.Roots(), after.Roots()...))
	w.follow(both, before)
	rooted := func(bundle *x509bundle.Bundle) func() bool {
		return func() bool {
			for _, s := range []*client.X509Source{web, api} {
				if b, err := s.GetX509BundleForTrustDomain(w.td); err != nil || !b.Equal(bundle) {
					return false
				}
			}
			return true
		}
	}
	testenv.Eventually(t, 10*time.Second, "both roots are trusted", rooted(both))
	greet()
	w.mu.Lock()
	w.authority = after
	w.mu.Unlock()
	w.follow(both, after)
	testenv.Eventually(t, 10*time.Second, "the new root's SVIDs", func() bool {
		for _, s := range []*client.X509Source{web, api} {
			svid, err := s.GetX509SVID()
			if err != nil || svid.Certificates[0].CheckSignatureFrom(after.Root()) != nil {
				return false
			}
		}
		return true
	})
	greet()
	w.follow(after.Bundle(), after)
	testenv.Eventually(t, 10*time.Second, "the old root is gone", rooted(after.Bundle()))
	greet()
}

func (w *world) follow(bundle *x509bundle.Bundle, issuer *identity.Authority) {
	w.t.Helper()
	if err := w.source.Follow(identity.Trust{Bundle: bundle, Issuer: issuer.Signing()}); err != nil {
		w.t.Fatal(err)
	}
}

// mutual is one handshake and one byte each way.
func mutual(t *testing.T, of, by *tls.Config) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	served := make(chan error, 1)
	go func() {
		c := tls.Server(b, by)
		_, err := io.CopyN(c, c, 1)
		served <- err
	}()
	c := tls.Client(a, of)
	_, err := c.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err := errors.Join(err, <-served); err != nil {
		t.Error(err)
	}
}

// TestWhoIsServed: a pod without the label has no listener; one that loses it, or whose
// identity is revoked, is told so on its open stream.
func TestWhoIsServed(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", "disabled", "api", Enabled)
	c := w.raw("api")
	ctx := withHeader(t.Context(), header, headerValue)
	stream, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if _, err := receive(stream, err); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	if n := w.opened["web"]; n != 0 {
		t.Errorf("%d listeners of a pod that has not asked", n)
	}
	w.mu.Unlock()
	w.revoke(w.id("api"))
	_, err = stream.Recv()
	wantCode(t, "revoked", err, codes.PermissionDenied)
	_, err = receive(c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{}))
	wantCode(t, "bundles of one that is revoked", err, codes.PermissionDenied)
	w.revoke()
	stream, err = c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if _, err := receive(stream, err); err != nil {
		t.Fatal(err)
	}
	w.label("api", "disabled", "web", Enabled)
	_, err = stream.Recv()
	wantCode(t, "no longer asked for", err, codes.PermissionDenied)
	if _, err := w.client("web").FetchX509SVID(t.Context()); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, 10*time.Second, "nobody listens for the other", func() bool {
		conn, err := net.Dial("tcp4", w.address("api"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	testenv.Eventually(t, 10*time.Second, "its key is forgotten", func() bool {
		_, err := w.source.Certificate(w.id("api"))
		return errors.Is(err, identity.ErrNoCertificate)
	})
}

// TestSuccessor: what a pod's successor of the same name asks for, and is, the pod whose
// processes still run is not given.
func TestSuccessor(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled)
	ctx := withHeader(t.Context(), header, headerValue)
	at := w.address("web")
	stream, err := w.raw("web").FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if m, err := receive(stream, err); err != nil || m.GetSvids()[0].GetSpiffeId() != w.id("web").String() {
		t.Fatal(m, err)
	}
	w.succeed("web", "uid-2")
	if m, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("its successor is in the mesh: %v, %v", m, err)
	}
	testenv.Eventually(t, 10*time.Second, "nobody listens any more", func() bool {
		conn, err := net.Dial("tcp4", at)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	w.succeed("api", "uid-2")
	w.label("api", Enabled) // the successor's
	w.succeed("web", "")    // as it was: what is published before it is seen by now
	testenv.Eventually(t, 10*time.Second, "web has a listener again", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.at["web"] != at
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened["api"] != 0 {
		t.Error("a pod that did not ask has a listener, since its successor asks")
	}
}

// TestWhatWasEnrolled: a workload is a pod's unless it is surely another's.
func TestWhatWasEnrolled(t *testing.T) {
	for _, one := range []struct {
		pod  Pod
		uid  string
		at   string
		want bool
	}{
		{Pod{UID: "1", NetNS: "/run/netns/a"}, "1", "", true},
		{Pod{UID: "1", NetNS: "/run/netns/a"}, "", "", true},
		{Pod{NetNS: "/run/netns/a"}, "1", "", true},
		{Pod{UID: "1", NetNS: "/run/netns/a"}, "2", "", false},
		{Pod{NetNS: "/run/netns/a"}, "", "/run/netns/a", true},
		{Pod{NetNS: "/run/netns/a"}, "", "/run/netns/b", false},
		{Pod{}, "", "/run/netns/b", false},
	} {
		if got := one.pod.is(&mesh.Workload{UID: one.uid, NetNS: one.at}); got != one.want {
			t.Errorf("%+v: %v, want %v", one, got, one.want)
		}
	}
}

// gone is a stream whose client has gone.
type gone struct {
	grpc.ServerStreamingServer[workload.X509SVIDResponse]
	ctx   context.Context
	tried *int
}

func (g gone) Context() context.Context { return g.ctx }

func (g gone) Send(*workload.X509SVIDResponse) error {
	*g.tried++
	return io.ErrClosedPipe
}

// TestKeyThatIsNotSent: what could not be sent was not given.
func TestKeyThatIsNotSent(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled)
	e := &endpoint{Server: w.server, pod: Pod{Key: mesh.Key{Namespace: "shop", Name: "web"}}, ended: t.Context()}
	tried := 0
	if err := e.FetchX509SVID(nil, gone{ctx: t.Context(), tried: &tried}); !errors.Is(err, io.ErrClosedPipe) || tried != 1 {
		t.Errorf("sent %d times: %v", tried, err)
	}
	if n := testutil.ToFloat64(w.server.metrics.keys); n != 0 {
		t.Errorf("%v keys were given", n)
	}
	if _, err := w.client("web").FetchX509SVID(t.Context()); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, 5*time.Second, "one is counted", func() bool { return testutil.ToFloat64(w.server.metrics.keys) == 1 })
}

// TestNoCertificateYet: a client is not left without a word, and gets what comes.
func TestNoCertificateYet(t *testing.T) {
	w := newWorld(t, Limits{Patience: 50 * time.Millisecond})
	w.mu.Lock()
	signs := w.authority
	w.authority = nil
	w.mu.Unlock()
	w.label("web", Enabled)
	c := w.client("web")
	_, err := c.FetchX509SVID(t.Context())
	wantCode(t, "nobody signs", err, codes.Unavailable)
	if _, err := c.FetchX509Bundles(t.Context()); err != nil {
		t.Errorf("bundles, which are there: %v", err)
	}
	testenv.Eventually(t, 5*time.Second, "the check says why", func() bool {
		checks := w.server.Checks()
		return len(checks) == 1 && !checks[0].GetOk() && strings.Contains(checks[0].GetDetail(), "nobody signs")
	})
	w.mu.Lock()
	w.authority = signs
	w.mu.Unlock()
	testenv.Eventually(t, 20*time.Second, "it is signed at last", func() bool {
		_, err := c.FetchX509SVID(t.Context())
		return err == nil
	})
}

// TestBounds: what is over is refused, and what ends makes room.
func TestBounds(t *testing.T) {
	w := newWorld(t, Limits{Streams: 3, Connections: 2, Rate: 1000})
	w.label("web", Enabled)
	first, second := w.raw("web"), w.raw("web")
	ctx := withHeader(t.Context(), header, headerValue)
	ended, end := context.WithCancel(ctx)
	for _, c := range []workload.SpiffeWorkloadAPIClient{first, first, second} {
		if _, err := receive(c.FetchX509SVID(ended, &workload.X509SVIDRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	_, err := receive(second.FetchX509SVID(ctx, &workload.X509SVIDRequest{}))
	wantCode(t, "a fourth stream", err, codes.ResourceExhausted)
	third, err := net.Dial("tcp4", w.address("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := io.ReadFull(third, make([]byte, 1)); err == nil {
		t.Error("a third connection is answered")
	}
	end()
	testenv.Eventually(t, 5*time.Second, "there is room again", func() bool {
		_, err := receive(second.FetchX509SVID(ctx, &workload.X509SVIDRequest{}))
		return err == nil
	})
}

// TestLargeRequest: what no request has is not read.
func TestLargeRequest(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled)
	stream, err := w.conn("web").NewStream(withHeader(t.Context(), header, headerValue), &grpc.StreamDesc{ServerStreams: true}, workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&workload.ValidateJWTSVIDRequest{Svid: strings.Repeat("a", maxRequestBytes)}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a large request", stream.RecvMsg(&workload.X509SVIDResponse{}), codes.ResourceExhausted)
}

// TestNoMessage: a method that is not served answers though its message is not sent, and
// so does one whose request is not admitted: nothing of a pod's waits that is not counted.
func TestNoMessage(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled)
	conn := w.conn("web")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	silent := func(ctx context.Context, method string) error {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			return err
		}
		return stream.RecvMsg(&workload.JWTSVIDResponse{})
	}
	for method, served := range map[string]bool{
		workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName: true, workload.SpiffeWorkloadAPI_FetchJWTSVID_FullMethodName: true,
		workload.SpiffeWorkloadAPI_ValidateJWTSVID_FullMethodName: true, workload.SpiffeWorkloadAPI_FetchJWTBundles_FullMethodName: true,
		workload.SpiffeWorkloadAPI_FetchWITSVID_FullMethodName: false, workload.SpiffeWorkloadAPI_FetchWITBundles_FullMethodName: false,
	} {
		if !served {
			wantCode(t, method, silent(withHeader(ctx, header, headerValue), method), codes.Unimplemented)
		}
		wantCode(t, method+" without the header", silent(ctx, method), codes.InvalidArgument)
	}
}

// TestWindows: what a connection may send before it is taken stays as it is, however fast
// its client is, and how many requests it has at once is said.
func TestWindows(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label("web", Enabled)
	conn, err := net.Dial("tcp4", w.address("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var fields bytes.Buffer
	e := hpack.NewEncoder(&fields)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "x"},
		{Name: ":path", Value: workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}, {Name: header, Value: headerValue},
	} {
		if err := e.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	f := http2.NewFramer(conn, conn)
	_, err = io.WriteString(conn, http2.ClientPreface)
	if err := errors.Join(err, f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true}),
		f.WriteData(1, true, make([]byte, 5))); err != nil { // an empty message
		t.Fatal(err)
	}
	said := map[http2.SettingID]uint32{}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if err := frame.ForeachSetting(func(s http2.Setting) error { said[s.ID] = s.Val; return nil }); err != nil {
				t.Fatal(err)
			}
			continue
		case *http2.PingFrame: // by which it would find out how fast that is, to send a larger window
			t.Error("the server measures its client")
		case *http2.DataFrame:
		default:
			continue
		}
		break
	}
	if said[http2.SettingInitialWindowSize] != windowBytes || said[http2.SettingMaxConcurrentStreams] != streamsPerConnection {
		t.Errorf("the server's settings are %v", said)
	}
}

// TestRate: a pod that asks without a pause is refused, and those refusals are bounded,
// too, though it does not wait for them.
func TestRate(t *testing.T) {
	const asked = 40
	w := newWorld(t, Limits{Rate: 5})
	w.label("web", Enabled)
	c := w.raw("web")
	ctx := withHeader(t.Context(), header, headerValue)
	begun := time.Now()
	for range asked {
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		_, _ = c.FetchJWTSVID(short, &workload.JWTSVIDRequest{Audience: []string{"a"}}) // that it ends is enough
		cancel()
	}
	refused := func() float64 {
		return testutil.ToFloat64(w.server.metrics.outcomes.WithLabelValues(string(overBudget)))
	}
	testenv.Eventually(t, 10*time.Second, "too many in a second", func() bool { return refused() > 0 })
	n, took := refused(), time.Since(begun)
	if most := streamsPerConnection * took.Seconds() / penalty.Seconds(); n > most {
		t.Errorf("%v were refused in %v, at most %v can be", n, took, most)
	}
}

// TestRefusedConnections: a pod that connects in a loop has no more refusals than it may
// have connections, and the endpoint's end waits for none.
func TestRefusedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond, tried = 10, 30
		ctx, end := context.WithCancel(t.Context())
		s := New(Config{Limits: Limits{Rate: perSecond}})
		l := &bounded{limits: &endpoint{Server: s, ended: ctx, begin: rate.NewLimiter(perSecond, perSecond)}, open: make(chan struct{}, 1)}
		l.open <- struct{}{} // as many as it may have
		accept := func() time.Duration {
			conns := make(chan net.Conn, tried)
			for range tried {
				a, b := net.Pipe()
				defer b.Close()
				conns <- foreigner{a, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: Port}}
			}
			close(conns)
			l.Listener = once{conns: conns}
			begun := time.Now()
			if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accepted %v, %v", c, err)
			}
			return time.Since(begun)
		}
		if took := accept(); took != tried*time.Second/perSecond {
			t.Errorf("%d were refused in %v", tried, took)
		}
		end()
		if took := accept(); took != 0 {
			t.Errorf("the end waited %v for what is refused", took)
		}
	})
}

// foreigner is a connection that came from, and to, where it says.
type foreigner struct {
	net.Conn
	remote, local net.Addr
}

func (f foreigner) RemoteAddr() net.Addr { return f.remote }
func (f foreigner) LocalAddr() net.Addr  { return f.local }

type once struct {
	net.Listener
	conns chan net.Conn
}

func (o once) Accept() (net.Conn, error) {
	if c, ok := <-o.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

// TestOnlyLoopback: what the gate might let in one day is closed without an answer.
func TestOnlyLoopback(t *testing.T) {
	w := newWorld(t, Limits{})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conns := make(chan net.Conn, 3)
	for _, remote := range []net.Addr{&net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 1}, &net.UnixAddr{Name: "@x"}, &net.TCPAddr{IP: net.IPv6zero}} {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns <- foreigner{c, remote, c.LocalAddr()}
	}
	close(conns)
	err = w.server.answer(t.Context(), Pod{Key: mesh.Key{Namespace: "shop", Name: "web"}}, once{l, conns})
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener's end: %v", err)
	}
	if n := testutil.ToFloat64(w.server.metrics.outcomes.WithLabelValues(string(foreign))); n != 3 {
		t.Errorf("%v foreign connections were closed, of 3", n)
	}
}

// TestChecks: what is not served is said, with a remedy.
func TestChecks(t *testing.T) {
	w := newWorld(t, Limits{})
	w.label()
	if checks := w.server.Checks(); len(checks) != 0 {
		t.Errorf("nobody asks: %v", checks)
	}
	w.mu.Lock()
	w.refuse = errors.New("port 15054 is in use")
	w.mu.Unlock()
	w.label("web", Enabled, "api", "yes")
	testenv.Eventually(t, 10*time.Second, "both are said", func() bool {
		var bad []string
		for _, c := range w.server.Checks() {
			if !c.GetOk() && c.GetRemedy() != "" {
				bad = append(bad, c.GetName()+": "+c.GetDetail())
			}
		}
		all := strings.Join(bad, "\n")
		return len(bad) == 2 && strings.Contains(all, "shop/web: port 15054 is in use") && strings.Contains(all, `shop/api: the label heddle.dev/workload-api is "yes"`)
	})
	w.mu.Lock()
	w.refuse = nil
	w.mu.Unlock()
	w.label("api", "disabled")
	testenv.Eventually(t, 10*time.Second, "it is served", func() bool {
		checks := w.server.Checks()
		return len(checks) == 1 && checks[0].GetOk() && strings.HasPrefix(checks[0].GetDetail(), "1 pods")
	})
}

// TestChecksOfWhatIsNotGiven: an identity that is revoked, and a pod that nobody serves, are
// not among those that can have their SVIDs.
func TestChecksOfWhatIsNotGiven(t *testing.T) {
	w := newWorld(t, Limits{})
	says := func(what, remedy string) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, what, func() bool {
			checks := w.server.Checks()
			return len(checks) == 1 && !checks[0].GetOk() && strings.Contains(checks[0].GetDetail(), what) && strings.Contains(checks[0].GetRemedy(), remedy)
		})
	}
	w.label("web", Enabled)
	testenv.Eventually(t, 10*time.Second, "it is served", func() bool {
		checks := w.server.Checks()
		return len(checks) == 1 && checks[0].GetOk()
	})
	w.revoke(w.id("web"))
	says("is revoked", "spec.revokedIdentities of the Mesh")
	w.revoke()
	w.succeed("web", "uid-2")
	says("nothing listens in the pod", "the agent's log")
}

// TestDocumentedMetrics compares docs/metrics.md with what is registered.
func TestDocumentedMetrics(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(heddle_workload_api_[a-z_]+)` \\| ([a-z]+) \\| ([a-z, ]*) *\\|").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2] + " " + strings.TrimSpace(row[3])
	}
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]string{}
	for _, f := range families {
		label := ""
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				label = l.GetName()
				if !strings.Contains(string(page), "`"+l.GetValue()+"`") {
					t.Errorf("docs/metrics.md lacks the value %s of %s", l.GetValue(), label)
				}
			}
		}
		registered[f.GetName()] = strings.ToLower(f.GetType().String()) + " " + label
	}
	if d := cmp.Diff(documented, registered); d != "" {
		t.Errorf("docs/metrics.md (-) and what is registered (+):\n%s", d)
	}
}
