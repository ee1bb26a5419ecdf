// Package engine chooses what carries an agent's tunnels: the event loops, or
// the reference engine as kill switch and for FIPS 140-3. It keeps nothing.
package engine

import (
	"crypto/fips140"
	"fmt"
	"log/slog"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// The engines' names.
const (
	// Loop is package fast: its own record layer and HTTP/2 on event loops.
	Loop = "loop"
	// Reference is package reference: crypto/tls and the standard HTTP/2.
	Reference = "reference"
)

// Where AES-GCM comes from.
const (
	// CryptoAuto is our own where the processor has VAES, the standard library's
	// elsewhere.
	CryptoAuto = "auto"
	// CryptoStandard is the standard library's.
	CryptoStandard = "standard"
)

// Engine is what New returns.
type Engine = hbone.Engine

// Default is the engine of an agent that was not told: Reference while this
// process is in FIPS 140-3 mode, as the validated module must choose its nonces
// itself and only crypto/tls lets it; Loop otherwise.
func Default() string { return choose(fips140.Enabled()) }

func choose(fips bool) string {
	if fips {
		return Reference
	}
	return Loop
}

// Check says what is wrong with a name in this process, and what to do about
// it; wrong is "" when nothing is.
func Check(name string) (wrong, remedy string) { return check(name, fips140.Enabled()) }

func check(name string, fips bool) (wrong, remedy string) {
	switch {
	case name == Reference, name == Loop && !fips:
		return "", ""
	case name == Loop:
		return fmt.Sprintf("%q is not allowed in FIPS 140-3 mode", name), "leave --engine out or set it to reference, or run without GODEBUG=fips140"
	default:
		return fmt.Sprintf("%q is no engine", name), "set --engine to loop or reference"
	}
}

// CheckCrypto is Check for where AES-GCM comes from.
func CheckCrypto(name string) (wrong, remedy string) {
	if name == CryptoAuto || name == CryptoStandard {
		return "", ""
	}
	return fmt.Sprintf("%q is none of the choices", name), "set --crypto to auto or standard"
}

// New makes the engine of a name that Check has accepted, with AES-GCM from
// where CheckCrypto has accepted; the reference engine always has crypto/tls's. It
// starts nothing.
func New(name, crypto string, log *slog.Logger) Engine {
	if name == Reference {
		return reference.New(reference.Config{Logger: log})
	}
	return fast.New(fast.Config{GCM: gcm(crypto, log), Logger: log})
}

// Describe says whose AES-GCM the engine of New seals with, and why. It looks anew,
// which takes a fifth of a millisecond.
func Describe(name, crypto string) string {
	if name == Reference {
		return "AES-GCM is crypto/tls's"
	}
	_, whose, why := choice(crypto)
	return whose + ": " + why
}

// gcm says in the log what it has chosen, and why.
func gcm(crypto string, log *slog.Logger) tlsrecord.GCM {
	c, whose, why := choice(crypto)
	log.Info(whose, "reason", why)
	return c
}

func choice(crypto string) (c tlsrecord.GCM, whose, why string) {
	if crypto == CryptoStandard {
		return tlsrecord.StandardGCM, "AES-GCM is the standard library's", "--crypto standard"
	}
	if c, why = tlsrecord.FastestGCM(); why != "" {
		return c, "AES-GCM is the standard library's", why
	}
	return c, "AES-GCM is Heddle's own, with VAES", "its self-test has passed"
}
