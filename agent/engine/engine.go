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
)

// The engines' names.
const (
	// Loop is package fast: its own record layer and HTTP/2 on event loops.
	Loop = "loop"
	// Reference is package reference: crypto/tls and the standard HTTP/2.
	Reference = "reference"
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

// New makes the engine of a name that Check has accepted. It starts nothing.
func New(name string, log *slog.Logger) Engine {
	if name == Reference {
		return reference.New(reference.Config{Logger: log})
	}
	return fast.New(fast.Config{Logger: log})
}
