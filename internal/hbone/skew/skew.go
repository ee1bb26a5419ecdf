// Package skew says how far clocks of a mesh may be apart without harm. Certificates
// begin in the past, and are renewed early enough for a peer whose clock is ahead; what
// is left are those that a fresh authority of somebody else bounds, which begin now.
// Nothing here lengthens a certificate's life.
package skew

import (
	"crypto/x509"
	"time"
)

// Max is how far a clock may be from the true time, and Apart how far two clocks may
// then be from each other.
const (
	Max   = 10 * time.Minute
	Apart = 2 * Max
)

// Moment is when a chain that begins with leaf is to be verified: now, or the leaf's
// beginning if that is no more than Apart ahead. A certificate exists when it is
// presented, so it has begun by the clock of whoever signed it. Of its end, now decides.
func Moment(leaf *x509.Certificate, now time.Time) time.Time {
	if leaf.NotBefore.After(now) && leaf.NotBefore.Sub(now) <= Apart {
		return leaf.NotBefore
	}
	return now
}

// Useful is what is left of a life that is to end at notAfter, at the clock of its
// holder, when peers may be ahead of it: Apart less, and half of a short one.
func Useful(now, notAfter time.Time) time.Duration {
	life := notAfter.Sub(now)
	return life - min(Apart, life/2)
}
