package nodeauth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

// fakeOperator signs for whoever asks: what it decides is tested in
// operator/issuing. Its fields are set before serving, or under the lock.
type fakeOperator struct {
	meshpb.UnimplementedIssuingServer
	*identity.Authority
	address string

	sync.Mutex
	joins    int
	fail     error
	keys     [][]byte
	bundle   []*x509.Certificate
	joinedBy []string // public keys
	lastNode string
}

func (o *fakeOperator) Join(_ context.Context, req *meshpb.JoinRequest) (*meshpb.JoinResponse, error) {
	o.Lock()
	defer o.Unlock()
	o.joins++
	key, err := identity.ParseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	o.joinedBy = append(o.joinedBy, string(point))
	if o.fail != nil && o.joins == 1 {
		return nil, o.fail
	}
	id, err := identity.NodeID(td, req.GetNode())
	if err != nil {
		return nil, err
	}
	chain, err := o.SignCSR(req.GetCsr(), id, 0)
	if err != nil {
		return nil, err
	}
	return &meshpb.JoinResponse{Chain: ders(chain), Bundle: ders(o.bundle), ConfigurationKeys: o.keys}, nil
}

func (o *fakeOperator) Sign(ctx context.Context, req *meshpb.SignRequest) (*meshpb.SignResponse, error) {
	node, err := PeerNode(ctx)
	if err != nil {
		return nil, err
	}
	o.Lock()
	defer o.Unlock()
	o.lastNode = node
	chain, err := o.SignCSR(req.GetCsr(), spiffeid.RequireFromString(req.GetIdentity()), 0)
	if err != nil {
		return nil, err
	}
	return &meshpb.SignResponse{Chain: ders(chain), Bundle: ders(o.bundle), ConfigurationKeys: o.keys}, nil
}

func ders(certs []*x509.Certificate) (list [][]byte) {
	for _, c := range certs {
		list = append(list, c.Raw)
	}
	return list
}

// startOperator serves; own is the identity that the server presents.
func startOperator(t *testing.T, own spiffeid.ID, cfg identity.AuthorityConfig) *fakeOperator {
	t.Helper()
	cfg.TrustDomain = td
	a, err := identity.NewAuthority(cfg)
	if err != nil {
		t.Fatal(err)
	}
	o := &fakeOperator{Authority: a, bundle: a.Roots(), keys: [][]byte{bytes.Repeat([]byte{1}, ed25519.PublicKeySize)}}
	g := grpc.NewServer(ServerOptions(NewServerCredentials(a.Own(own), a.Bundle()), td, meshpb.Issuing_Join_FullMethodName)...)
	meshpb.RegisterIssuingServer(g, o)
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
	return o
}

func (o *fakeOperator) token(t *testing.T, node string) string {
	t.Helper()
	tok, err := jointoken.New(td, node, o.address, o.Pin(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	text, err := tok.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func joinConfig(dir, token string) JoinConfig {
	return JoinConfig{NodeConfig: NodeConfig{Dir: dir}, Token: token}
}

func mustJoin(t *testing.T, cfg JoinConfig) *Node {
	t.Helper()
	n, err := Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, n) })
	return n
}

func closeNode(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Close(); err != nil && status.Code(err) != codes.Canceled {
		t.Error(err)
	}
}

func serial(t *testing.T, n *Node) string {
	t.Helper()
	c, err := n.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf.SerialNumber.String()
}

func TestJoinIsNotRepeated(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	dir := filepath.Join(t.TempDir(), "node")
	first := mustJoin(t, joinConfig(dir, o.token(t, "n1")))
	again := mustJoin(t, joinConfig(dir, o.token(t, "n1")))
	without := mustJoin(t, JoinConfig{NodeConfig: NodeConfig{Dir: dir}, Node: "n1"})
	if o.joins != 1 || serial(t, first) != serial(t, again) || serial(t, first) != serial(t, without) {
		t.Errorf("joined %d times", o.joins)
	}
	if _, err := Join(t.Context(), JoinConfig{NodeConfig: NodeConfig{Dir: dir}, Node: "n2"}); !errors.Is(err, ErrNotJoined) || !strings.Contains(err.Error(), "n1") {
		t.Errorf("another name: %v", err)
	}
	other := mustJoin(t, joinConfig(dir, o.token(t, "n2")))
	if other.Name() != "n2" || o.joins != 2 {
		t.Errorf("a token for another node: %s, joined %d times", other.Name(), o.joins)
	}
	fresh := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	moved := mustJoin(t, joinConfig(dir, fresh.token(t, "n2")))
	if fresh.joins != 1 || moved.Operator() != fresh.address {
		t.Errorf("a token of another authority: joined %d times", fresh.joins)
	}
	info, err := os.Stat(filepath.Join(dir, nodeFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestLostAnswerIsAskedForWithTheSameKey(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	o.fail = status.Error(codes.Unavailable, "gone")
	mustJoin(t, joinConfig(filepath.Join(t.TempDir(), "node"), o.token(t, "n1")))
	if len(o.joinedBy) != 2 || o.joinedBy[0] != o.joinedBy[1] {
		t.Errorf("asked with %d keys or more", len(o.joinedBy))
	}
}

func TestOperatorMustBeThePinnedOne(t *testing.T) {
	pinned := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	for name, c := range map[string]struct {
		server *fakeOperator
		want   string
	}{
		"another root":    {startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{}), "pins"},
		"a workload":      {startOperator(t, spiffeid.RequireFromPath(td, "/ns/a/sa/b"), identity.AuthorityConfig{}), "not spiffe://mesh.test/operator"},
		"another node's":  {startOperator(t, spiffeid.RequireFromPath(td, "/node/n2"), identity.AuthorityConfig{}), "not spiffe://mesh.test/operator"},
		"expired in 1970": {startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{Now: func() time.Time { return time.Unix(1e6, 0) }}), "expired"},
	} {
		text := pinned.token(t, "n1")
		if c.want != "pins" {
			text = c.server.token(t, "n1") // its own root, but not an operator
		}
		cfg := joinConfig(filepath.Join(t.TempDir(), "node"), text)
		cfg.Operator = c.server.address
		_, err := Join(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "cannot be trusted") {
			t.Errorf("%s: %v", name, err)
		}
		if c.server.joins != 0 {
			t.Errorf("%s: the secret was sent", name)
		}
	}
}

func TestBadAnswersAreRefused(t *testing.T) {
	foreign, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(o *fakeOperator)
		want   string
	}{
		"bundle without the pinned root": {func(o *fakeOperator) { o.bundle = foreign.Roots() }, "lacks the root"},
		"no bundle":                      {func(o *fakeOperator) { o.bundle = nil }, "no certificate"},
		"endless bundle": {func(o *fakeOperator) {
			for range identity.MaxBundle {
				o.bundle = append(o.bundle, o.Root())
			}
		}, "limit is 32"},
		"short key":     {func(o *fakeOperator) { o.keys = [][]byte{{1}} }, "Ed25519"},
		"too many keys": {func(o *fakeOperator) { o.keys = make([][]byte, 9) }, "limit is 8"},
	} {
		o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
		c.change(o)
		dir := filepath.Join(t.TempDir(), "node")
		if _, err := Join(t.Context(), joinConfig(dir, o.token(t, "n1"))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if _, err := OpenNode(t.Context(), NodeConfig{Dir: dir}); !errors.Is(err, ErrNotJoined) {
			t.Errorf("%s: it counts as joined: %v", name, err)
		}
	}
}

func TestDamagedCredentials(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	write := func(name, text string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	key := func(dir string) string {
		files, err := filepath.Glob(filepath.Join(dir, "*.svid"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		return files[0]
	}
	for name, damage := range map[string]func(dir string) error{
		"state":       write(nodeFile, "{"),
		"state empty": write(nodeFile, "{}"),
		"keys":        write(nodeFile, `{"trustDomain":"mesh.test","node":"n1","operator":"x:1","configurationKeys":["AA=="]}`),
		"bundle":      write("bundle.pem", "x"),
		"key":         func(dir string) error { return os.Truncate(key(dir), 100) },
		"key shared":  func(dir string) error { return os.Chmod(key(dir), 0o644) },
		"key gone":    func(dir string) error { return os.Remove(key(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "node")
			mustJoin(t, joinConfig(dir, o.token(t, "n1")))
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Join(t.Context(), joinConfig(dir, "")); !errors.Is(err, ErrNotJoined) {
				t.Errorf("without a token: %v", err)
			}
			mustJoin(t, joinConfig(dir, o.token(t, "n1")))
		})
	}
}

func TestExpiredNodeNeedsANewToken(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{NodeTTL: time.Second})
	dir := filepath.Join(t.TempDir(), "node")
	n := mustJoin(t, joinConfig(dir, o.token(t, "n1")))
	testenv.Eventually(t, 5*time.Second, "node's SVID expires", func() bool { _, err := n.Certificate(); return err != nil })
	_, err := OpenNode(t.Context(), NodeConfig{Dir: dir})
	if !errors.Is(err, ErrNotJoined) || !errors.Is(err, identity.ErrCertificateExpired) || !strings.Contains(err.Error(), "join token") {
		t.Errorf("open: %v", err)
	}
	if _, _, err := n.Sign(t.Context(), n.ID(), nil); !errors.Is(err, ErrNotJoined) {
		t.Errorf("sign: %v", err)
	}
}

// TestRunRenews has a node whose SVID is at half life: Run renews it over its
// own connection, and takes over new configuration keys.
func TestRunRenews(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{NodeTTL: 22 * time.Second})
	dir := filepath.Join(t.TempDir(), "node")
	n := mustJoin(t, joinConfig(dir, o.token(t, "n1")))
	before, changed := serial(t, n), n.Source().Changed()
	o.Lock()
	o.keys = append(o.keys, bytes.Repeat([]byte{2}, ed25519.PublicKeySize))
	o.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Error("not renewed within 20 s of 22")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if serial(t, n) == before || len(n.ConfigurationKeys()) != 2 || o.lastNode != "n1" {
		t.Errorf("serial as before: %v, keys %d, asked as %q", serial(t, n) == before, len(n.ConfigurationKeys()), o.lastNode)
	}
	again, err := OpenNode(t.Context(), NodeConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer closeNode(t, again)
	if serial(t, again) != serial(t, n) || len(again.ConfigurationKeys()) != 2 {
		t.Error("the renewal was not stored")
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	cfg := joinConfig(filepath.Join(t.TempDir(), "node"), o.token(t, "n1"))
	cfg.Operator = l.Addr().String()
	if err := l.Close(); err != nil { // nobody is there
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := Join(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	for _, bad := range []JoinConfig{joinConfig(cfg.Dir, ""), joinConfig(cfg.Dir, "heddle-join:v1:x"), joinConfig("relative", "")} {
		if _, err := Join(t.Context(), bad); err == nil {
			t.Errorf("joined with %+v", bad)
		}
	}
}

func TestPeerNodeNeedsProof(t *testing.T) {
	if _, err := PeerNode(t.Context()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("no connection: %v", err)
	}
	if _, err := PeerNode(peer.NewContext(t.Context(), &peer.Peer{})); status.Code(err) != codes.Unauthenticated {
		t.Errorf("no credentials: %v", err)
	}
	id := spiffeid.RequireFromPath(td, "/node/n1")
	for _, c := range []struct {
		info PeerInfo
		code codes.Code
	}{
		{PeerInfo{}, codes.Unauthenticated},
		{PeerInfo{peer: id, notAfter: time.Now().Add(-time.Second)}, codes.Unauthenticated},
		{PeerInfo{peer: identity.OperatorID(td), notAfter: time.Now().Add(time.Hour)}, codes.PermissionDenied},
		{PeerInfo{peer: id, notAfter: time.Now().Add(time.Hour)}, codes.OK},
	} {
		name, err := PeerNode(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: c.info}))
		if status.Code(err) != c.code || (name == "n1") != (err == nil) {
			t.Errorf("%v: %q, %v", c.info.peer, name, err)
		}
	}
}
