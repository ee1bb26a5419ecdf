package feed

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
)

// The bounds of files, in bytes, and of what an operator says.
const (
	maxToken = 16 << 10
	maxKnown = 1 << 20
	maxKeys  = 8
)

// known is what the operator has said of itself, to whoever had proven that it is the
// operator: the keys that it signs configuration with, and its roots. It is kept on disk,
// or nothing that is kept there could be verified after a restart. It is safe for concurrent use.
type known struct {
	path string
	log  *slog.Logger

	said struct {
		sync.Mutex
		sayings
	}
}

type sayings struct {
	Keys []ed25519.PublicKey `json:"configurationKeys"`
	// Roots are in DER.
	Roots [][]byte `json:"roots,omitempty"`
}

// openKnown reads what was said before, if anything was.
func openKnown(path string, log *slog.Logger) (*known, error) {
	k := &known{path: path, log: log}
	text, err := keystore.ReadSecretFile(path, maxKnown)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &k.said.sayings)
	}
	if err == nil {
		err = k.said.check()
	}
	if err != nil {
		return nil, fmt.Errorf("read what is known of the operator from %s: %w; remedy: delete the file", path, err)
	}
	return k, nil
}

func (s *sayings) check() error {
	if len(s.Keys) == 0 || len(s.Keys) > maxKeys || slices.ContainsFunc(s.Keys, func(key ed25519.PublicKey) bool { return len(key) != ed25519.PublicKeySize }) {
		return errors.New("the operator's configuration keys are malformed")
	}
	if len(s.Roots) > identity.MaxBundle {
		return fmt.Errorf("the operator has %d roots, at most %d may be", len(s.Roots), identity.MaxBundle)
	}
	for _, root := range s.Roots {
		if _, err := keystore.ParseDER(root); err != nil {
			return fmt.Errorf("the operator's roots: %w", err)
		}
	}
	return nil
}

// learn notes what the operator says, which the connection has proven to be it.
func (k *known) learn(keys, roots []string) error {
	var now sayings
	for _, key := range keys {
		now.Keys = append(now.Keys, ed25519.PublicKey(key))
	}
	for _, root := range roots {
		now.Roots = append(now.Roots, []byte(root))
	}
	if err := now.check(); err != nil {
		return err
	}
	text, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("encode what is known of the operator: %w", err)
	}
	k.said.Lock()
	defer k.said.Unlock()
	if before, err := json.Marshal(k.said.sayings); err == nil && slices.Equal(before, text) {
		return nil
	}
	k.said.sayings = now
	if err := keystore.ReplaceFile(k.path, text, 0o600); err != nil {
		k.log.Error("the operator's keys are not saved: a restart without the operator would not take the last good configuration", "error", err)
	}
	return nil
}

func (k *known) configurationKeys() []ed25519.PublicKey {
	k.said.Lock()
	defer k.said.Unlock()
	return k.said.Keys
}

// GetX509BundleForTrustDomain implements x509bundle.Source: of the roots that were said.
func (k *known) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	k.said.Lock()
	defer k.said.Unlock()
	bundle := x509bundle.New(td)
	for _, der := range k.said.Roots {
		root, err := keystore.ParseDER(der)
		if err != nil {
			return nil, err
		}
		bundle.AddX509Authority(root)
	}
	return bundle, nil
}

func (k *known) hasRoots() bool {
	k.said.Lock()
	defer k.said.Unlock()
	return len(k.said.Roots) > 0
}

// operatorEnd is where the operator is, what it is believed by, and what it believes this
// waypoint by.
type operatorEnd struct {
	address     string
	credentials credentials.TransportCredentials
	proof       *proof
}

func operatorOf(cfg Config, k *known) (operatorEnd, error) {
	at := operatorEnd{address: cfg.Operator, proof: &proof{file: cfg.TokenFile, waypoint: cfg.Waypoint.String()}}
	var err error
	if cfg.RootsFile == "" {
		err = at.joined(cfg, k)
	} else {
		err = at.mounted(cfg)
	}
	if err == nil && at.address == "" {
		err = errors.New("the operator's address is not given")
	}
	if err != nil {
		return at, fmt.Errorf("new feed: %w", err)
	}
	return at, nil
}

// none is what a waypoint shows of itself in TLS.
func none() (*tls.Certificate, error) { return &tls.Certificate{}, nil }

// mounted goes by the files of a pod.
func (at *operatorEnd) mounted(cfg Config) error {
	bundle, err := nodeauth.ReadRoots(cfg.RootsFile)
	if err != nil {
		return fmt.Errorf("read roots: %w", err)
	}
	at.credentials = nodeauth.NewClientCredentials(none, rootsFile(cfg.RootsFile), identity.OperatorID(bundle.TrustDomain()))
	return nil
}

// joined goes by a join token.
func (at *operatorEnd) joined(cfg Config, k *known) error {
	text, err := keystore.ReadFile(cfg.TokenFile, maxToken)
	if err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	token, err := jointoken.Parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w; remedy: name the file of the roots too, if this is a pod's token", cfg.TokenFile, err)
	}
	if want := discovery.WaypointName(cfg.Waypoint); token.Node != want {
		return fmt.Errorf("%w: it is for %s, this is %s", jointoken.ErrWrongNode, token.Node, want)
	}
	if at.address == "" {
		at.address = token.Operator
	}
	if at.proof.session, err = session(filepath.Join(cfg.StateDir, "session")); err != nil {
		return err
	}
	operator := identity.OperatorID(token.TrustDomain)
	at.credentials = joinCredentials{TransportCredentials: nodeauth.NewPinnedCredentials(token.CASHA256, operator, func(error) {}),
		known: k, later: nodeauth.NewClientCredentials(none, k, operator)}
	return nil
}

// session returns the secret that this waypoint goes by once its token is used.
func session(path string) (string, error) {
	secret, err := keystore.ReadSecretFile(path, maxToken)
	if err == nil && len(secret) == jointoken.SecretBytes {
		return string(secret), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read session: %w", err)
	}
	secret = make([]byte, jointoken.SecretBytes)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("draw session: %w", err)
	}
	if err := keystore.ReplaceFile(path, secret, 0o600); err != nil {
		return "", fmt.Errorf("keep session: %w", err)
	}
	return string(secret), nil
}

// rootsFile is an x509bundle.Source that reads the file each time: roots rotate.
type rootsFile string

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (path rootsFile) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	bundle, err := nodeauth.ReadRoots(string(path))
	if err == nil && bundle.TrustDomain() != td {
		err = fmt.Errorf("%s has the roots of %s, not of %s", string(path), bundle.TrustDomain(), td)
	}
	return bundle, err
}

// joinCredentials believe the operator by the root that the token pins, until it has said
// which roots it has.
type joinCredentials struct {
	credentials.TransportCredentials
	known *known
	later credentials.TransportCredentials
}

// ClientHandshake implements credentials.TransportCredentials.
func (c joinCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c.known.hasRoots() {
		return c.later.ClientHandshake(ctx, authority, raw)
	}
	return c.TransportCredentials.ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (c joinCredentials) Clone() credentials.TransportCredentials {
	return joinCredentials{c.TransportCredentials.Clone(), c.known, c.later.Clone()}
}

// proof says with each call who this is.
type proof struct {
	file, waypoint string
	session        string // "" of a pod
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *proof) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := keystore.ReadFile(p.file, maxToken)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	md := map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token)), discovery.WaypointHeader: p.waypoint}
	if p.session != "" {
		md[discovery.SessionHeader] = p.session
	}
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p *proof) RequireTransportSecurity() bool { return true }
