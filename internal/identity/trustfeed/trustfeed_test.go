package trustfeed

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func authority(t testing.TB) *identity.Authority {
	t.Helper()
	a, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// saying is an authority that changes, and signs.
type saying struct {
	sync.Mutex
	said    Said
	signs   *identity.Authority
	changed chan struct{}
}

func (s *saying) say(signs *identity.Authority, roots ...*x509.Certificate) {
	s.Lock()
	defer s.Unlock()
	s.said, s.signs = Said{Roots: roots, Issuer: signs.Signing(), JWT: s.said.JWT}, signs
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

// verify says what verifies JWT-SVIDs, besides.
func (s *saying) verify(said *meshpb.JWTKeys) {
	s.Lock()
	defer s.Unlock()
	s.said.JWT = said
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *saying) authority() (Said, <-chan struct{}) {
	s.Lock()
	defer s.Unlock()
	return s.said, s.changed
}

func (s *saying) Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	s.Lock()
	signs := s.signs
	s.Unlock()
	return signs.Sign(ctx, id, csr)
}

// gating is what an agent says of gates.
type gating struct {
	sync.Mutex
	said    *meshpb.GatedPods
	changed chan struct{}
}

func (g *gating) say(names ...string) {
	g.Lock()
	defer g.Unlock()
	g.said = &meshpb.GatedPods{Complete: true}
	for _, name := range names {
		g.said.Pods = append(g.said.Pods, &meshpb.GatedPod{Name: name})
	}
	if g.changed != nil {
		close(g.changed)
	}
	g.changed = make(chan struct{})
}

func (g *gating) gated() (*meshpb.GatedPods, <-chan struct{}) {
	g.Lock()
	defer g.Unlock()
	return g.said, g.changed
}

// TestGatesThatNobodySays: an agent that is not asked says nothing of gates, and a report of
// too much is refused.
func TestGatesThatNobodySays(t *testing.T) {
	var gates gating
	gates.say("web")
	f := &Follower{cfg: FollowerConfig{Gated: gates.gated}}
	if said, changed := f.gated(); said != nil || changed != nil {
		t.Errorf("unasked it says %v", said)
	}
	f.began = time.Now()
	f.tellsGated.Store(true)
	first, _ := f.gated()
	gates.say("web")
	same, _ := f.gated()
	gates.say("web", "db")
	other, _ := f.gated()
	if first.GetChange() != 1 || same.GetChange() != 1 || other.GetChange() != 2 || other.GetAgentBeganNs() != f.began.UnixNano() || len(other.GetPods()) != 2 || !other.GetComplete() || gates.said.GetChange() != 0 {
		t.Errorf("said: %v, then %v, then %v", first, same, other)
	}
	many := &meshpb.GatedPods{Pods: make([]*meshpb.GatedPod, maxReported+1)}
	long := &meshpb.GatedPods{Pods: []*meshpb.GatedPod{{Addresses: make([][]byte, maxGatedAddresses+1)}}}
	one := func(p *meshpb.GatedPod) *meshpb.GatedPods { return &meshpb.GatedPods{Pods: []*meshpb.GatedPod{p}} }
	most := func(n int) string { return strings.Repeat("x", n) }
	for what, said := range map[string]*meshpb.GatedPods{"many pods": many, "many addresses": long,
		"a long namespace":         one(&meshpb.GatedPod{Namespace: most(maxGatedName + 1)}),
		"a long name":              one(&meshpb.GatedPod{Name: most(maxGatedName + 1)}),
		"a long UID":               one(&meshpb.GatedPod{Uid: most(maxGatedUID + 1)}),
		"a long network namespace": one(&meshpb.GatedPod{NetworkNamespace: most(maxGatedPath + 1)}),
		"a long address":           one(&meshpb.GatedPod{Addresses: [][]byte{make([]byte, 17)}}),
	} {
		if checkGated(said) == nil {
			t.Errorf("%s are taken", what)
		}
	}
	longest := one(&meshpb.GatedPod{Namespace: most(maxGatedName), Name: most(maxGatedName), Uid: most(maxGatedUID), NetworkNamespace: most(maxGatedPath), Addresses: [][]byte{make([]byte, 4), make([]byte, 16)}})
	for _, said := range []*meshpb.GatedPods{gates.said, longest} {
		if err := checkGated(said); err != nil {
			t.Error(err)
		}
	}
}

// TestFollow takes an agent from one root to the next over a connection that is
// lost in between.
func TestFollow(t *testing.T) {
	before, after := authority(t), authority(t)
	say := &saying{}
	say.say(before, before.Root())
	server, err := NewServer(ServerConfig{Authority: say.authority, Logger: slog.New(slog.DiscardHandler), TellGated: true,
		Authenticate: func(context.Context) (string, error) { return "n1", nil }})
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	rpc := grpc.NewServer()
	meshpb.RegisterTrustServer(rpc, server)
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	td := before.TrustDomain()
	source := func(ids ...string) *identity.Source {
		s, err := identity.NewSource(identity.SourceConfig{TrustDomain: td, Signer: say, Bundle: before.Bundle()})
		if err != nil {
			t.Fatal(err)
		}
		var wanted []spiffeid.ID
		for _, id := range ids {
			wanted = append(wanted, spiffeid.RequireFromString("spiffe://mesh.test"+id))
		}
		if err := s.Want(wanted); err != nil {
			t.Fatal(err)
		}
		return s
	}
	node, workloads, given := source("/node/n1"), source("/ns/shop/sa/web", "/ns/shop/sa/db"), source("/ns/shop/sa/web")
	var amiss atomic.Int32
	var gates gating
	gates.say()
	var jwt jwtkeys.Store
	file := filepath.Join(t.TempDir(), "jwt-keys")
	follower, err := NewFollower(FollowerConfig{TrustDomain: td, Conn: conn, Node: node, Workloads: workloads, Given: given,
		JWT: &jwt, JWTFile: file, Amiss: func() int { return int(amiss.Load()) }, Look: 10 * time.Millisecond, Gated: gates.gated})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, run := range []func(context.Context) error{node.Run, workloads.Run, given.Run, follower.Run} {
		all.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	reported := func(what string, signs *identity.Authority, roots ...*identity.Authority) {
		t.Helper()
		var want [][]byte
		for _, r := range roots {
			sum := sha256.Sum256(r.Root().Raw)
			want = append(want, sum[:])
		}
		slices.SortFunc(want, bytes.Compare)
		issuer := sha256.Sum256(signs.Signing().Raw)
		testenv.Eventually(t, 10*time.Second, what, func() bool {
			reports := server.Reports()
			if len(reports) != 1 || !reports[0].Connected || len(reports[0].Report.GetCertificates()) != 4 {
				return false
			}
			return slices.EqualFunc(reports[0].Report.GetRoots(), want, bytes.Equal) &&
				!slices.ContainsFunc(reports[0].Report.GetCertificates(), func(c *meshpb.HeldCertificate) bool {
					return !bytes.Equal(c.GetIssuer(), issuer[:]) || c.GetKey() != "ECDSA P-256" || c.GetNotAfterNs() == 0
				})
		})
	}
	reported("the first", before, before)
	say.say(before, before.Root(), after.Root())
	reported("both roots", before, before, after)
	say.say(after, after.Root(), before.Root())
	reported("the new issuer", after, before, after)
	say.say(after, after.Root())
	reported("the old root's end", after, after)
	followJWT(t, say, &jwt, file)

	for _, n := range []int32{2, 1, 0} {
		amiss.Store(n)
		testenv.Eventually(t, 10*time.Second, fmt.Sprintf("%d pods amiss", n), func() bool { return server.Reports()[0].Report.GetPodsAmiss() == uint32(n) })
	}

	for _, names := range [][]string{{"web"}, {"db", "web"}, {}} {
		changed := server.Changed()
		gates.say(names...)
		testenv.Eventually(t, 10*time.Second, fmt.Sprintf("%v are behind their gates", names), func() bool {
			gated := server.Reports()[0].Report.GetGated()
			return gated.GetComplete() && slices.EqualFunc(gated.GetPods(), names, func(p *meshpb.GatedPod, name string) bool { return p.GetName() == name })
		})
		select {
		case <-changed:
		default:
			t.Error("a report came, and nobody is told")
		}
	}

	server.Drain()
	testenv.Eventually(t, 5*time.Second, "disconnected", func() bool { return !server.Reports()[0].Connected })
	cancel()
	all.Wait()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	rpc.Stop()
	<-served
}

// followJWT has the agent hear of keys of JWT-SVIDs, and keep what is good.
func followJWT(t *testing.T, say *saying, jwt *jwtkeys.Store, file string) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	if k, _ := jwt.Now(); k != nil {
		t.Error("an operator that says nothing of JWT-SVIDs has said so")
	}
	says := func(what string, said *meshpb.JWTKeys, want func(*jwtkeys.Keys) bool) {
		t.Helper()
		say.verify(said)
		testenv.Eventually(t, 10*time.Second, what, func() bool {
			var kept jwtkeys.Store
			if err := kept.Load(file, td); err != nil {
				return false
			}
			now, _ := jwt.Now()
			then, _ := kept.Now()
			return now != nil && want(now) && then != nil && want(then)
		})
	}
	document, err := jwtkeys.Document(map[string]crypto.PublicKey{"k": authority(t).Root().PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	one := func(k *jwtkeys.Keys) bool { return k.Bundle.HasJWTAuthority("k") }
	says("a key", &meshpb.JWTKeys{Jwks: document}, one)
	say.verify(&meshpb.JWTKeys{Jwks: []byte("nonsense")}) // which is refused
	say.verify(nil)                                       // an operator of a version before
	says("the key again", &meshpb.JWTKeys{Jwks: document}, one)
	says("none", &meshpb.JWTKeys{Withheld: "SPIRE's"}, func(k *jwtkeys.Keys) bool { return k.Withheld == "SPIRE's" && k.Bundle.Empty() })
}

// stream is an agent's that only listens.
type stream struct {
	grpc.ServerStream
	ctx  context.Context
	sent chan *meshpb.TrustUpdate
}

func (s *stream) Context() context.Context { return s.ctx }
func (s *stream) Send(u *meshpb.TrustUpdate) error {
	s.sent <- u
	return nil
}
func (s *stream) Recv() (*meshpb.TrustReport, error) {
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}

// TestNothingNewIsNotSent: every update has a complete report of every agent for an answer.
func TestNothingNewIsNotSent(t *testing.T) {
	before, after := authority(t), authority(t)
	say := &saying{}
	say.say(before, before.Root())
	var asked atomic.Int32
	server, err := NewServer(ServerConfig{Logger: slog.New(slog.DiscardHandler),
		Authority: func() (Said, <-chan struct{}) {
			defer asked.Add(1) // behind what it waits for
			return say.authority()
		},
		Federation: func() (*meshpb.Federation, <-chan struct{}) {
			return &meshpb.Federation{Domains: []*meshpb.DomainBundle{{TrustDomain: "theirs.test", Bundle: []byte("{}")}}}, nil
		},
		Authenticate: func(context.Context) (string, error) { return "n1", nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, done := &stream{ctx: ctx, sent: make(chan *meshpb.TrustUpdate, 100)}, make(chan error, 1)
	go func() { done <- server.Follow(s) }()
	for i := range int32(10) {
		testenv.Eventually(t, 10*time.Second, "it has looked", func() bool { return asked.Load() == i+1 })
		say.say(before, before.Root())
	}
	testenv.Eventually(t, 10*time.Second, "it has looked", func() bool { return asked.Load() == 11 })
	say.say(before, before.Root(), after.Root())
	first, second := <-s.sent, <-s.sent
	if len(first.GetRoots()) != 1 || len(second.GetRoots()) != 2 || len(second.GetFederation().GetDomains()) != 1 || len(s.sent) != 0 {
		t.Errorf("sent are %v, %v and %d more", first, second, len(s.sent))
	}
	cancel()
	<-done
	server.Drain()
}

// TestOlderOperator has nothing of the service.
func TestOlderOperator(t *testing.T) {
	listener := bufconn.Listen(1 << 16)
	rpc := grpc.NewServer()
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	a := authority(t)
	s, err := identity.NewSource(identity.SourceConfig{TrustDomain: a.TrustDomain(), Signer: a, Bundle: a.Bundle()})
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFollower(FollowerConfig{TrustDomain: a.TrustDomain(), Conn: conn, Node: s, Workloads: s})
	if err != nil {
		t.Fatal(err)
	}
	if worked, err := f.follow(t.Context()); worked || err == nil {
		t.Errorf("%v, %v", worked, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	rpc.Stop()
	<-served
}

// TestReportsAreBounded leaves out what is of the present issuer first.
func TestReportsAreBounded(t *testing.T) {
	f := &Follower{issuer: [32]byte{1}}
	report := &meshpb.TrustReport{}
	for i := range maxReported + 10 {
		c := &meshpb.HeldCertificate{Identity: fmt.Sprint(i), Issuer: f.issuer[:]}
		if i%1000 == 0 {
			c.Issuer = make([]byte, 32)
		}
		report.Certificates = append(report.Certificates, c)
	}
	f.bound(report)
	others := 0
	for _, c := range report.GetCertificates() {
		if !bytes.Equal(c.GetIssuer(), f.issuer[:]) {
			others++
		}
	}
	if len(report.GetCertificates()) != maxReported || report.GetLeftOut() != 10 || others != 5 {
		t.Errorf("%d, %d left out, %d of others", len(report.GetCertificates()), report.GetLeftOut(), others)
	}
}

func FuzzUpdate(f *testing.F) {
	a := authority(f)
	good, err := proto.Marshal(&meshpb.TrustUpdate{Roots: [][]byte{a.Root().Raw}, Issuer: a.Root().Raw, SpreadNs: 5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		update := &meshpb.TrustUpdate{}
		if proto.Unmarshal(data, update) != nil {
			return
		}
		trust, err := parseUpdate(a.TrustDomain(), update)
		if err != nil {
			return
		}
		if trust.Bundle.Empty() || !trust.Issuer.IsCA || trust.Spread < 0 || trust.Spread > maxSpread {
			t.Errorf("%+v", trust)
		}
		if s, err := identity.NewSource(identity.SourceConfig{TrustDomain: a.TrustDomain(), Signer: a, Bundle: x509bundle.New(a.TrustDomain())}); err != nil || s.Follow(trust) != nil {
			t.Errorf("what was parsed is not taken: %v", err)
		}
	})
}

// TestPassingFaults: what a single look finds of the pods is not reported.
func TestPassingFaults(t *testing.T) {
	now := 0
	f := &Follower{cfg: FollowerConfig{Amiss: func() int { return now }, Drifted: func() (int, <-chan struct{}) { return 0, nil }}}
	for i, look := range []struct {
		found   int
		changed bool
		amiss   uint32
	}{{0, false, 0}, {3, false, 0}, {0, false, 0}, {2, false, 0}, {3, true, 2}, {3, true, 3}, {1, true, 1}, {1, false, 1}, {0, true, 0}} {
		now = look.found
		if changed := f.lookAtPods(); changed != look.changed || f.amiss != look.amiss {
			t.Errorf("look %d: %d amiss, changed %v; want %d, %v", i, f.amiss, changed, look.amiss, look.changed)
		}
	}
}

// TestDriftIsReportedAtOnce, while the next look at the pods is far, and for as long as it is to be seen.
func TestDriftIsReportedAtOnce(t *testing.T) {
	amiss, drifted := 0, 0
	f := &Follower{cfg: FollowerConfig{Amiss: func() int { return amiss }, Drifted: func() (int, <-chan struct{}) { return drifted, nil }}}
	says := func(what string, want uint32, wantChanged, changed bool) {
		t.Helper()
		if changed != wantChanged || f.amiss != want {
			t.Errorf("%s: %d amiss, changed %v; want %d, %v", what, f.amiss, changed, want, wantChanged)
		}
	}
	says("all is well", 0, false, f.lookAtPods())
	amiss, drifted = 1, 1
	f.lookAtDrift()
	says("a repair, found between two looks", 1, true, true)
	says("the look after it", 1, false, f.lookAtPods())
	amiss = 3
	says("two more in one look", 1, false, f.lookAtPods())
	says("and in the next", 3, true, f.lookAtPods())
	amiss, drifted = 0, 0
	says("it has held", 0, true, f.lookAtPods())
}
