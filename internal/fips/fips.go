// Package fips says whether this process is in FIPS 140-3 mode: whether the Go
// Cryptographic Module checks itself, and crypto/tls keeps to approved algorithms
// (https://go.dev/doc/security/fips140). A process is in it from its start on, by
// GODEBUG, or not at all: nothing here changes that. Its functions may be called from
// any goroutine.
package fips

import (
	"crypto/fips140"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrOff is returned by Require.
var ErrOff = errors.New("this process is not in FIPS 140-3 mode; remedy: set GODEBUG=fips140=on in its environment, or leave --fips140 out")

// Mode is "off", "on", or "only", in which what is not approved fails or panics.
func Mode() string {
	switch {
	case !fips140.Enabled():
		return "off"
	case fips140.Enforced():
		return "only"
	default:
		return "on"
	}
}

// Describe is the mode, and the module's version when it is on.
func Describe() string {
	if mode := Mode(); mode != "off" {
		return mode + ", Go Cryptographic Module " + fips140.Version()
	}
	return "off"
}

// Require returns ErrOff when it is wanted and off.
func Require(wanted bool) error {
	if wanted && !fips140.Enabled() {
		return ErrOff
	}
	return nil
}

// Collector is the metric of it.
func Collector() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "heddle_fips140", Help: "1 when the program is in FIPS 140-3 mode, 0 otherwise.",
		ConstLabels: prometheus.Labels{"module": fips140.Version()},
	}, func() float64 {
		if fips140.Enabled() {
			return 1
		}
		return 0
	})
}
