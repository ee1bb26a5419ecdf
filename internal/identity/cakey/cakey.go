// Package cakey reads the private keys of certificate authorities, as whoever made
// them wrote them down, and says which keys may sign for a mesh. It keeps nothing.
package cakey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// MaxText bounds what Parse takes, in bytes.
const MaxText = 16 << 10

// Bounds of RSA keys, in bits: FIPS 186-5 wants the least; more than the most costs
// every handshake too much.
const minRSA, maxRSA = 2048, 8192

// Parse reads one private key in PEM: PKCS #8 (PRIVATE KEY, RFC 5958), PKCS #1 (RSA
// PRIVATE KEY, RFC 8017 appendix A.1.2) or SEC 1 (EC PRIVATE KEY, RFC 5915), before
// which EC PARAMETERS may stand. Its error begins with the name, and has no part of
// the key.
func Parse(name string, text []byte) (any, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", name, len(text), MaxText)
	}
	block, rest := pem.Decode(text)
	if block != nil && block.Type == "EC PARAMETERS" {
		block, rest = pem.Decode(rest)
	}
	switch {
	case block == nil || len(bytes.TrimSpace(rest)) > 0:
		return nil, fmt.Errorf("%s: not one private key in PEM", name)
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, fmt.Errorf("%s: is encrypted; remedy: decrypt it with `openssl pkey`, the Secret protects it", name)
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("a PEM block %.32q is not a private key (PKCS #8, PKCS #1 or SEC 1)", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// remedy is that of keys that are not taken.
const remedy = "have the CA made with an ECDSA key, or RSA of 2048 bits or more (cert-manager: spec.privateKey)"

// Signer returns the key if it may sign for a mesh: if Public takes its public key. The
// error has a remedy.
func Signer(name string, key any) (crypto.Signer, error) {
	var signer crypto.Signer
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		signer = k
	case *rsa.PrivateKey:
		signer = k
	default:
		return nil, fmt.Errorf("%s: a key of %T is not taken; remedy: %s", name, key, remedy)
	}
	if err := Public(signer.Public()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return signer, nil
}

// Public says whether a public key may be one that signs for a mesh: ECDSA with P-256,
// P-384 or P-521, or RSA of 2048 to 8192 bits, which all peers verify. The error has a
// remedy.
func Public(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if c := k.Curve; c == elliptic.P256() || c == elliptic.P384() || c == elliptic.P521() {
			return nil
		}
		return fmt.Errorf("ECDSA with %s is not taken; remedy: %s", k.Curve.Params().Name, remedy)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("RSA of %d bits is not taken, %d to %d are; remedy: %s", n, minRSA, maxRSA, remedy)
		}
		return nil
	}
	return fmt.Errorf("a key of %T is not taken; remedy: %s", key, remedy)
}

// Belongs says whether a key is that of a public key.
func Belongs(key crypto.Signer, public any) bool {
	own, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(public)
}

// Type says which kind of key a certificate has, as "ECDSA P-256" or "RSA 2048".
func Type(cert *x509.Certificate) string {
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); ok {
		return "ECDSA " + key.Curve.Params().Name
	}
	if key, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	}
	return cert.PublicKeyAlgorithm.String()
}
