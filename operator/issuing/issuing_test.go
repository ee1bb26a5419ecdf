package issuing

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

var _ Snapshot = (*mesh.View)(nil)

var (
	td  = spiffeid.RequireTrustDomainFromString("mesh.test")
	web = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")
	db  = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/db")
)

// fakeView has one identity per node.
type fakeView struct {
	onNode   map[string]spiffeid.ID
	revoked  map[spiffeid.ID]bool
	unsynced bool
}

func (v *fakeView) Synced() bool               { return !v.unsynced }
func (v *fakeView) Barred(id spiffeid.ID) bool { return v.revoked[id] }
func (v *fakeView) OnNode(node string) []*mesh.Workload {
	if id, ok := v.onNode[node]; ok {
		return []*mesh.Workload{{Node: node, Identity: id}}
	}
	return nil
}

// operator is an operator's issuing service on a loopback port.
type operator struct {
	authority *identity.Authority
	caDir     string
	tokens    *jointoken.Store
	view      atomic.Pointer[fakeView]
	address   string
	registry  *prometheus.Registry
	configKey ed25519.PublicKey
	log       testenv.Log
}

func startOperator(t testing.TB, change ...func(*identity.AuthorityConfig, *Config)) *operator {
	t.Helper()
	o := &operator{registry: prometheus.NewRegistry(), caDir: filepath.Join(t.TempDir(), "ca")}
	o.view.Store(&fakeView{onNode: map[string]spiffeid.ID{"n1": web, "n2": db}})
	acfg := identity.AuthorityConfig{TrustDomain: td}
	cfg := Config{
		View:   func() Snapshot { return o.view.Load() },
		Logger: slog.New(slog.NewTextHandler(&o.log, nil)), Registerer: o.registry,
	}
	for _, c := range change {
		c(&acfg, &cfg)
	}
	var err error
	if o.authority, err = identity.OpenAuthority(o.caDir, acfg); err != nil {
		t.Fatal(err)
	}
	if o.tokens, err = jointoken.OpenStore(filepath.Join(t.TempDir(), "tokens"), acfg.Now); err != nil {
		t.Fatal(err)
	}
	key, err := identity.OpenConfigurationKey(o.caDir)
	if err != nil {
		t.Fatal(err)
	}
	o.configKey = key.Public().(ed25519.PublicKey)
	cfg.Issuer, cfg.Tokens, cfg.ConfigurationKeys = o.authority, o.tokens, []ed25519.PublicKey{o.configKey}
	o.serve(t, cfg)
	return o
}

func (o *operator) serve(t testing.TB, cfg Config) {
	t.Helper()
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	creds := nodeauth.NewServerCredentials(o.authority.Own(identity.OperatorID(td)), o.authority.Bundle())
	g := grpc.NewServer(nodeauth.ServerOptions(creds, td, meshpb.Issuing_Join_FullMethodName)...)
	meshpb.RegisterIssuingServer(g, srv)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.address = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func (o *operator) token(t testing.TB, node string, life time.Duration) string {
	t.Helper()
	tok, err := jointoken.New(td, node, o.address, o.authority.Pin(), time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.tokens.Add(tok); err != nil {
		t.Fatal(err)
	}
	text, err := tok.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (o *operator) requests(method, why string) float64 {
	families, err := o.registry.Gather()
	if err != nil {
		return -1
	}
	for _, f := range families {
		if f.GetName() != "heddle_issuing_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == method && m.GetLabel()[1].GetValue() == why {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func nodeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "node") }

// join joins a node and closes it with the test.
func (o *operator) join(t testing.TB, name string) *nodeauth.Node {
	t.Helper()
	n, err := nodeauth.Join(t.Context(), nodeauth.JoinConfig{NodeConfig: nodeauth.NodeConfig{Dir: nodeDir(t)}, Token: o.token(t, name, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func newCSR(t testing.TB, id spiffeid.ID) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key, id)
	if err != nil {
		t.Fatal(err)
	}
	return csr, key
}

func TestJoinThenSign(t *testing.T) {
	o := startOperator(t)
	n := o.join(t, "n1")
	if n.ID().String() != "spiffe://mesh.test/node/n1" || n.Name() != "n1" || n.Operator() != o.address {
		t.Errorf("joined as %s at %s", n.ID(), n.Operator())
	}
	if keys := n.ConfigurationKeys(); len(keys) != 1 || !keys[0].Equal(o.configKey) {
		t.Errorf("configuration keys %v", keys)
	}
	leaf, err := n.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(leaf.Leaf.NotAfter); life < identity.DefaultNodeTTL-time.Minute {
		t.Errorf("node's SVID lasts %v", life)
	}
	csr, _ := newCSR(t, web)
	chain, roots, err := n.Sign(t.Context(), web, csr)
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(chain, o.authority.Bundle()); err != nil || id != web || len(roots) != 1 {
		t.Errorf("%v, %v, %d roots", id, err, len(roots))
	}
	if o.requests("join", "Issued") != 1 || o.requests("sign", "Issued") != 1 {
		t.Error("issues are not counted")
	}
	for _, word := range []string{"issue SVID", "node=n1", "identity=" + web.String(), "serial=" + chain[0].SerialNumber.Text(16), "remote=127.0.0.1"} {
		if !strings.Contains(o.log.String(), word) {
			t.Errorf("audit log lacks %q:\n%s", word, o.log.String())
		}
	}
	if problems, err := testutil.GatherAndLint(o.registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
}

func TestSignRefusals(t *testing.T) {
	o := startOperator(t)
	n := o.join(t, "n1")
	sign := func(id string, csr []byte) error {
		_, err := meshpb.NewIssuingClient(n.Conn()).Sign(t.Context(), &meshpb.SignRequest{Identity: id, Csr: csr})
		return err
	}
	csr, _ := newCSR(t, web)
	for name, c := range map[string]struct {
		id     string
		csr    []byte
		view   *fakeView
		code   codes.Code
		want   string
		reason string
	}{
		"on another node":   {db.String(), csr, nil, codes.PermissionDenied, "no workload on node n1 has identity " + db.String(), "NotOnNode"},
		"another node's":    {"spiffe://mesh.test/node/n2", csr, nil, codes.PermissionDenied, "may not have it", "NotOnNode"},
		"the operator's":    {"spiffe://mesh.test/operator", csr, nil, codes.PermissionDenied, "may not have it", "NotOnNode"},
		"foreign":           {"spiffe://other.test/ns/shop/sa/web", csr, nil, codes.PermissionDenied, "may not have it", "NotOnNode"},
		"the trust domain":  {"spiffe://mesh.test", csr, nil, codes.PermissionDenied, "may not have it", "NotOnNode"},
		"no identity":       {"", csr, nil, codes.InvalidArgument, "identity", "BadRequest"},
		"no SPIFFE ID":      {"https://mesh.test/ns/shop/sa/web", csr, nil, codes.InvalidArgument, "identity", "BadRequest"},
		"too long":          {"spiffe://mesh.test/" + strings.Repeat("a", 3000), csr, nil, codes.InvalidArgument, "limit is 2048", "BadRequest"},
		"no CSR":            {web.String(), nil, nil, codes.InvalidArgument, "signing request", "BadCSR"},
		"too large":         {web.String(), make([]byte, identity.MaxCSRBytes+1), nil, codes.InvalidArgument, "limit", "BadCSR"},
		"unsynced":          {web.String(), csr, &fakeView{unsynced: true}, codes.Unavailable, "no configuration", "NotSynced"},
		"unsynced, own":     {n.ID().String(), csr, &fakeView{unsynced: true}, codes.Unavailable, "no configuration", "NotSynced"},
		"moved away":        {web.String(), csr, &fakeView{}, codes.PermissionDenied, "no workload on node n1", "NotOnNode"},
		"revoked":           {web.String(), csr, &fakeView{onNode: map[string]spiffeid.ID{"n1": web}, revoked: map[spiffeid.ID]bool{web: true}}, codes.PermissionDenied, "revoked", "IdentityRevoked"},
		"revoked node":      {web.String(), csr, &fakeView{onNode: map[string]spiffeid.ID{"n1": web}, revoked: map[spiffeid.ID]bool{n.ID(): true}}, codes.PermissionDenied, "revoked", "IdentityRevoked"},
		"revoked node, own": {n.ID().String(), csr, &fakeView{revoked: map[spiffeid.ID]bool{n.ID(): true}}, codes.PermissionDenied, "revoked", "IdentityRevoked"},
		"poisoned view":     {"spiffe://mesh.test/operator", csr, &fakeView{onNode: map[string]spiffeid.ID{"n1": identity.OperatorID(td)}}, codes.PermissionDenied, "may not have it", "NotOnNode"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.view != nil {
				defer o.view.Store(o.view.Swap(c.view))
			}
			before := o.requests("sign", c.reason)
			err := sign(c.id, c.csr)
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %v with %q", err, c.code, c.want)
			}
			if got := o.requests("sign", c.reason); got != before+1 {
				t.Errorf("%s counted %v times", c.reason, got-before)
			}
		})
	}
}

// TestNobodyJoinsBeforeThereIsAConfiguration: an operator that has just started does not know
// whether the node is revoked, and the token is good afterwards.
func TestNobodyJoinsBeforeThereIsAConfiguration(t *testing.T) {
	o := startOperator(t)
	tok, err := jointoken.Parse(o.token(t, "n1", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	client := meshpb.NewIssuingClient(dial(t, o, nil))
	csr, _ := newCSR(t, web)
	join := func() error {
		_, err := client.Join(t.Context(), &meshpb.JoinRequest{Secret: tok.Secret[:], Node: "n1", Csr: csr})
		return err
	}
	before := o.view.Swap(&fakeView{unsynced: true})
	if err := join(); status.Code(err) != codes.Unavailable || o.requests("join", "NotSynced") != 1 {
		t.Errorf("without a configuration: %v", err)
	}
	o.view.Store(before)
	if err := join(); err != nil {
		t.Errorf("with one: %v", err)
	}
}

func TestNodeRenewsItself(t *testing.T) {
	o := startOperator(t)
	n := o.join(t, "n1")
	csr, _ := newCSR(t, n.ID())
	chain, _, err := n.Sign(t.Context(), n.ID(), csr)
	if err != nil || chain[0].URIs[0].String() != n.ID().String() {
		t.Errorf("%v, %v", chain, err)
	}
}

func TestTokenRefusals(t *testing.T) {
	o := startOperator(t)
	join := func(text, node string) error {
		n, err := nodeauth.Join(t.Context(), nodeauth.JoinConfig{NodeConfig: nodeauth.NodeConfig{Dir: nodeDir(t)}, Token: text, Node: node})
		if err == nil {
			err = n.Close()
		}
		return err
	}
	expect := func(name string, err error, want, reason string) {
		t.Helper()
		if !errors.Is(err, nodeauth.ErrJoinRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if o.requests("join", reason) != 1 {
			t.Errorf("%s: %s counted %v times", name, reason, o.requests("join", reason))
		}
	}
	used := o.token(t, "n1", time.Hour)
	if err := join(used, "n1"); err != nil {
		t.Fatal(err)
	}
	expect("used twice", join(used, ""), "used already", "TokenUsed")
	expect("expired", join(o.token(t, "n1", -time.Second), ""), "expired", "TokenExpired")

	revoked := o.token(t, "n1", time.Hour)
	tok, err := jointoken.Parse(revoked)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.tokens.Revoke(tok.ID()); err != nil {
		t.Fatal(err)
	}
	expect("revoked", join(revoked, ""), "revoked", "TokenRevoked")

	unknown, err := jointoken.New(td, "n1", o.address, o.authority.Pin(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	text, err := unknown.Text()
	if err != nil {
		t.Fatal(err)
	}
	expect("unknown", join(text, ""), "unknown", "TokenUnknown")

	if err := join(o.token(t, "n1", time.Hour), "n2"); !errors.Is(err, jointoken.ErrWrongNode) {
		t.Errorf("wrong node, seen by the agent: %v", err)
	}
	// Seen by the operator: the secret of n1's token in a token text for n2.
	stolen, err := jointoken.Parse(o.token(t, "n1", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	stolen.Node = "n2"
	if text, err = stolen.Text(); err != nil {
		t.Fatal(err)
	}
	expect("wrong node", join(text, ""), "another node", "TokenWrongNode")
	if strings.Contains(o.log.String(), text[20:]) {
		t.Error("the log has a token's text")
	}
}

func TestBadJoinRequestCostsNoToken(t *testing.T) {
	o := startOperator(t)
	tok, err := jointoken.Parse(o.token(t, "n1", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	client := meshpb.NewIssuingClient(dial(t, o, nil))
	csr, _ := newCSR(t, web)
	for _, req := range []*meshpb.JoinRequest{
		{Secret: tok.Secret[:], Node: "n1", Csr: []byte("x")},
		{Secret: tok.Secret[:], Node: "../n1", Csr: csr},
		{Secret: tok.Secret[:], Node: strings.Repeat("n", 1000), Csr: csr},
	} {
		if _, err := client.Join(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v", err)
		}
	}
	good := &meshpb.JoinRequest{Secret: tok.Secret[:], Node: "n1", Csr: csr}
	for range 2 { // the second as after a lost answer
		if _, err := client.Join(t.Context(), good); err != nil {
			t.Errorf("the token is spent: %v", err)
		}
	}
}

// TestJoinRace has 100 joiners with one token and keys of their own.
func TestJoinRace(t *testing.T) {
	o := startOperator(t, func(_ *identity.AuthorityConfig, c *Config) { c.JoinBurst = 200 })
	tok, err := jointoken.Parse(o.token(t, "n1", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	client := meshpb.NewIssuingClient(dial(t, o, nil))
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 100 {
		csr, _ := newCSR(t, web)
		wg.Go(func() {
			_, err := client.Join(t.Context(), &meshpb.JoinRequest{Secret: tok.Secret[:], Node: "n1", Csr: csr})
			switch {
			case err == nil:
				won.Add(1)
			case status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "used already"):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d won", won.Load())
	}
}

func TestSkewedOperatorAdmits(t *testing.T) {
	for _, skew := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		o := startOperator(t, func(a *identity.AuthorityConfig, _ *Config) { a.Now = func() time.Time { return time.Now().Add(skew) } })
		n := o.join(t, "n1")
		csr, _ := newCSR(t, web)
		if _, _, err := n.Sign(t.Context(), web, csr); err != nil {
			t.Errorf("skew %v: %v", skew, err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	o := startOperator(b, func(_ *identity.AuthorityConfig, c *Config) { c.SignRate, c.SignBurst = 1e9, 1e9 })
	n := o.join(b, "n1")
	csr, _ := newCSR(b, web)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := n.Sign(b.Context(), web, csr); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
}

// TestSourceOverTheWire has an agent's Source ask as the node it runs on: it
// gets a certificate as soon as the workload is on that node.
func TestSourceOverTheWire(t *testing.T) {
	o := startOperator(t)
	n := o.join(t, "n1")
	bundle, err := n.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSource(identity.SourceConfig{TrustDomain: td, Signer: n, Bundle: bundle})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if err := s.Want([]spiffeid.ID{web, db}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "certificate of web", func() bool { _, err := s.Certificate(web); return err == nil })
	testenv.Eventually(t, time.Minute, "refusal of db that names node and identity", func() bool {
		_, err := s.Certificate(db)
		return errors.Is(err, identity.ErrNoCertificate) && strings.Contains(err.Error(), "no workload on node n1 has identity "+db.String())
	})
	o.view.Store(&fakeView{onNode: map[string]spiffeid.ID{"n1": db}})
	testenv.Eventually(t, 10*time.Second, "certificate of db once it is on the node", func() bool { _, err := s.Certificate(db); return err == nil })
	if _, err := s.Certificate(web); err != nil {
		t.Errorf("a valid certificate is taken away: %v", err)
	}
}
