// Package session has the tokens that sessions of routes go by. A token names a backend of a rule and one of its
// workloads by hashes that differ from rule to rule, and says when the session began; it has no secret and no
// signature, so that each replica reads what any other has written. docs/decisions/0112 has the reasons.
//
// It keeps nothing and decides nothing. Everything in it is a value, safe for concurrent use.
package session

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Token tells a session.
type Token struct {
	began             uint32 // in seconds since 1970
	backend, workload uint64
}

const (
	// version is the first octet of each token, so that others are not taken for it.
	version = 2
	octets  = 18
	// workloadBits is how much a token says of a workload's name: enough to tell the pods of a service apart (among a
	// thousand, two have the same with a probability of 5 in ten million), and less than there is to guess in the name of a
	// Deployment's pod.
	workloadBits = 40
	// maxSkew is how far the clocks of replicas may be apart.
	maxSkew = time.Minute
)

// At returns the token of a session that begins now at a backend, which has a name of its own in each rule, with a workload.
func At(backend uint64, workload keyed.Key, now time.Time) Token {
	return Token{began: uint32(now.Unix()), backend: backend, workload: Name(backend, workload)}
}

// Name returns what tokens of a backend call a workload.
func Name(backend uint64, workload keyed.Key) uint64 {
	var room [256]byte // most names fit
	text := append(binary.BigEndian.AppendUint64(room[:0], backend), workload.Namespace...)
	text = append(append(text, '/'), workload.Name...)
	sum := sha256.Sum256(text)
	return binary.BigEndian.Uint64(sum[:]) >> (64 - workloadBits)
}

// Backend returns the name of the backend.
func (t Token) Backend() uint64 { return t.backend }

// Workload returns the Name of the workload.
func (t Token) Workload() uint64 { return t.workload }

// Over reports whether a session that may last so long is at its end, or cannot have begun yet; 0 is no bound.
func (t Token) Over(limit time.Duration, now time.Time) bool {
	age := now.Sub(time.Unix(int64(t.began), 0))
	return limit > 0 && (age < -maxSkew || age >= limit)
}

// String returns the token in base64url, of always the same length.
func (t Token) String() string {
	b := make([]byte, 0, octets+3)
	b = binary.BigEndian.AppendUint32(append(b, version), t.began)
	b = binary.BigEndian.AppendUint64(b, t.backend)
	b = binary.BigEndian.AppendUint64(b, t.workload<<(64-workloadBits))
	return base64.RawURLEncoding.EncodeToString(b[:octets])
}

// Parse reads a token; false for anything else.
func Parse(text string) (t Token, ok bool) {
	if len(text) != base64.RawURLEncoding.EncodedLen(octets) {
		return t, false
	}
	var b [octets + 3]byte
	n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(text))
	if err != nil || n != octets || b[0] != version {
		return t, false
	}
	return Token{binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint64(b[5:]), binary.BigEndian.Uint64(b[13:]) >> (64 - workloadBits)}, true
}
