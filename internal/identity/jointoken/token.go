package jointoken

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// MaxText bounds a token's text in bytes.
	MaxText = 2048
	// SecretBytes is the length of a token's secret.
	SecretBytes = 32

	prefix       = "heddle-join:"
	version      = "v1:"
	sumBytes     = 4
	maxOperator  = 261 // a DNS name of 253, a colon and a port
	maxNodeBytes = 253
)

// ErrMalformed is matched when a text is not a join token.
var ErrMalformed = errors.New("not a join token")

// Token is what a join token's text says.
type Token struct {
	TrustDomain spiffeid.TrustDomain
	// Node is the one node that may use it, or waypoint, as WaypointOf reads it.
	Node string
	// Operator is where to join, host:port; "" when the node knows by itself.
	Operator string
	// CASHA256 is the SHA-256 of the root certificate (DER), as
	// `openssl x509 -fingerprint -sha256` shows it.
	CASHA256 [sha256.Size]byte
	// Secret proves the token to the operator.
	Secret [SecretBytes]byte
	// Expires is in whole seconds, UTC.
	Expires time.Time
}

// wire is the JSON inside a token's text. Field order is fixed, so that every
// token has exactly one text.
type wire struct {
	TrustDomain string `json:"td"`
	Node        string `json:"node"`
	Operator    string `json:"op,omitempty"`
	CASHA256    []byte `json:"ca"`
	Secret      []byte `json:"key"`
	Expires     int64  `json:"exp"`
}

// New returns a token with a fresh secret.
func New(td spiffeid.TrustDomain, node, operator string, ca [sha256.Size]byte, expires time.Time) (Token, error) {
	t := Token{TrustDomain: td, Node: node, Operator: operator, CASHA256: ca, Expires: expires.UTC().Truncate(time.Second)}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("draw secret: %w", err)
	}
	return t, t.validate()
}

func (t Token) validate() error {
	if t.TrustDomain.IsZero() {
		return errors.New("token without trust domain")
	}
	if len(t.Node) > maxNodeBytes {
		return fmt.Errorf("node name of %d bytes: the limit is %d", len(t.Node), maxNodeBytes)
	}
	// A node's name becomes a segment of its SPIFFE ID. A waypoint has none.
	if _, _, ok := WaypointOf(t.Node); !ok {
		if err := spiffeid.ValidatePathSegment(t.Node); err != nil {
			return fmt.Errorf("node name %q: %w", t.Node, err)
		}
	}
	if t.Expires.Unix() <= 0 {
		return errors.New("token without expiry")
	}
	return validateOperator(t.Operator)
}

// WaypointOf reads "waypoint/NAMESPACE/NAME", which is no name of a node.
func WaypointOf(name string) (namespace, service string, ok bool) {
	rest, ok := strings.CutPrefix(name, "waypoint/")
	namespace, service, slash := strings.Cut(rest, "/")
	ok = ok && slash && spiffeid.ValidatePathSegment(namespace) == nil && spiffeid.ValidatePathSegment(service) == nil
	return namespace, service, ok
}

func validateOperator(address string) error {
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || len(address) > maxOperator {
		return fmt.Errorf("operator address %q: host:port is needed", address)
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\@?#"<>`, r) }) {
		return fmt.Errorf("operator address %q: host has characters that no host has", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("operator address %q: port is not 1 to 65535", address)
	}
	return nil
}

// ID names the token in lists and logs without giving it away: the beginning of
// the secret's SHA-256.
func (t Token) ID() string { return recordName(t.Secret[:])[:idLength] }

// String returns the token's name, not its text: texts are secrets, and values
// end up in logs.
func (t Token) String() string { return "join token " + t.ID() + " of node " + t.Node }

// Text returns the token as people carry it: heddle-join:v1: and base64. It is
// a secret.
func (t Token) Text() (string, error) {
	if err := t.validate(); err != nil {
		return "", err
	}
	body, err := json.Marshal(wire{
		TrustDomain: t.TrustDomain.Name(), Node: t.Node, Operator: t.Operator,
		CASHA256: t.CASHA256[:], Secret: t.Secret[:], Expires: t.Expires.Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	sum := sha256.Sum256(body)
	text := prefix + version + base64.RawURLEncoding.EncodeToString(append(body, sum[:sumBytes]...))
	if len(text) > MaxText {
		return "", fmt.Errorf("token of %d bytes: the limit is %d", len(text), MaxText)
	}
	return text, nil
}

// Parse is the inverse of Text; space around the token is ignored. Errors match
// ErrMalformed and never repeat the text. It does not look at the clock.
func Parse(text string) (Token, error) {
	t, err := parse(strings.TrimSpace(text))
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return t, nil
}

func parse(text string) (Token, error) {
	if len(text) > MaxText {
		return Token{}, fmt.Errorf("%d bytes, the limit is %d", len(text), MaxText)
	}
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return Token{}, fmt.Errorf("does not begin with %q", prefix)
	}
	encoded, ok := strings.CutPrefix(rest, version)
	if !ok {
		return Token{}, errors.New("of a version that this program does not know; remedy: use an operator and an agent of one release")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) <= sumBytes {
		return Token{}, errors.New("damaged or cut short; remedy: copy it whole")
	}
	body := raw[:len(raw)-sumBytes]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:sumBytes], raw[len(body):]) {
		return Token{}, errors.New("checksum differs: damaged or cut short; remedy: copy it whole")
	}
	t, err := decode(body)
	if err != nil {
		return Token{}, err
	}
	// JSON has many spellings of one value; exactly one of them is a token.
	if canonical, err := t.Text(); err != nil {
		return Token{}, err
	} else if canonical != text {
		return Token{}, errors.New("not in canonical form")
	}
	return t, nil
}

func decode(body []byte) (Token, error) {
	var w wire
	if err := json.Unmarshal(body, &w); err != nil {
		// The JSON error could quote the secret.
		return Token{}, errors.New("content does not decode")
	}
	td, err := spiffeid.TrustDomainFromString(w.TrustDomain)
	if err != nil {
		return Token{}, err
	}
	t := Token{TrustDomain: td, Node: w.Node, Operator: w.Operator, Expires: time.Unix(w.Expires, 0).UTC()}
	if len(w.CASHA256) != len(t.CASHA256) || len(w.Secret) != len(t.Secret) {
		return Token{}, errors.New("hash or secret of another length")
	}
	copy(t.CASHA256[:], w.CASHA256)
	copy(t.Secret[:], w.Secret)
	return t, nil
}

const idLength = 12

// recordName is the name of a secret's record: all that is stored of it.
func recordName(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}
