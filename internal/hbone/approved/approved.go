// Package approved says which certificates may prove an identity in FIPS 140-3 mode.
// crypto/tls asks that of chains that it verifies itself; a mesh verifies its own, by
// SPIFFE's rules, and so has to ask. Its functions may be called from any goroutine.
package approved

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/x509"
	"errors"
)

// minRSA is in bits, as FIPS 186-5 wants it.
const minRSA = 2048

// ErrChains is returned by Chains.
var ErrChains = errors.New("FIPS 140-3 mode: a certificate of the chain has a key that is not approved, such as RSA of less than 2048 bits")

// Chains returns nil when one of verified chains, each from a leaf up to and with its
// root, has approved keys only, by the rule of crypto/tls (defaults_fips140.go); and
// always in a process that is not in FIPS 140-3 mode. Else it returns ErrChains.
func Chains(verified [][]*x509.Certificate) error {
	if !fips140.Enabled() {
		return nil
	}
	for _, chain := range verified {
		if all(chain) {
			return nil
		}
	}
	return ErrChains
}

func all(chain []*x509.Certificate) bool {
	for _, cert := range chain {
		if !key(cert.PublicKey) {
			return false
		}
	}
	return len(chain) > 0
}

func key(public any) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521()
	case ed25519.PublicKey:
		return true
	}
	return false
}
