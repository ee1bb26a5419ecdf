// Package secured says what secures a tunnel connection: the key exchange of its
// handshake, and the certificate that the peer proved itself by. It is a word that
// every stream of the connection, and every record of them, can have a copy of. It
// verifies nothing.
package secured

import (
	"crypto/tls"
	"crypto/x509"
	"time"
	"unique"
)

// maxSerial bounds a serial number, in hexadecimal digits: 20 octets (RFC 5280,
// section 4.1.2.2). Of a longer one the beginning is kept.
const maxSerial = 40

// By is what secures a connection. The zero By says that nothing does, or that it is
// not known. It is immutable and comparable; equal ones share their memory.
type By struct{ facts unique.Handle[Facts] }

// Facts is a By spelt out.
type Facts struct {
	// Group is the key exchange (RFC 8446, section 4.2.7), 0 when it is not known.
	Group tls.CurveID
	// Serial is the number of the peer's certificate, in hexadecimal as `heddle
	// certs` has it; "" when it is not known.
	Serial string
	// NotAfter is when that certificate expires, in seconds since 1970; 0 when it is
	// not known.
	NotAfter int64
}

// Of is what a handshake settled. Leaf is the peer's certificate; nil leaves it out.
func Of(group tls.CurveID, leaf *x509.Certificate) By {
	f := Facts{Group: group}
	if leaf != nil {
		f.Serial, f.NotAfter = leaf.SerialNumber.Text(16), leaf.NotAfter.Unix()
	}
	return f.By()
}

// By is the inverse of By.Facts. What cannot be is left out.
func (f Facts) By() By {
	f.Serial, f.NotAfter = f.Serial[:min(len(f.Serial), maxSerial)], max(f.NotAfter, 0)
	if f == (Facts{}) {
		return By{}
	}
	return By{unique.Make(f)}
}

// Facts spells it out.
func (b By) Facts() Facts {
	if b == (By{}) {
		return Facts{}
	}
	return b.facts.Value()
}

// KeyExchange is the name of the group, as crypto/tls has it; "" when it is not known.
func (f Facts) KeyExchange() string {
	if f.Group == 0 {
		return ""
	}
	return f.Group.String()
}

// Expires is NotAfter; the zero time when it is not known.
func (f Facts) Expires() time.Time {
	if f.NotAfter == 0 {
		return time.Time{}
	}
	return time.Unix(f.NotAfter, 0).UTC()
}

// PostQuantum says whether a key exchange of this name withstands a quantum computer:
// ML-KEM is in it (FIPS 203).
func PostQuantum(keyExchange string) bool {
	switch keyExchange {
	case tls.X25519MLKEM768.String(), tls.SecP256r1MLKEM768.String(), tls.SecP384r1MLKEM1024.String():
		return true
	}
	return false
}

// Equal says whether they are the same.
func (b By) Equal(other By) bool { return b == other }

// String is for people.
func (b By) String() string {
	f := b.Facts()
	return f.KeyExchange() + " " + f.Serial
}
