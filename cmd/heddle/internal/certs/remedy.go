package certs

import (
	"fmt"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// The kinds of certificates, and of rotations.
const (
	root         = "root"
	intermediate = "intermediate"
)

// soon says whether a certificate of the authority has to be replaced.
func soon(a *meshpb.CertificatesResponse, c *meshpb.AuthorityCertificate, now time.Time, within time.Duration) bool {
	life, left := time.Duration(c.GetNotAfterNs()-c.GetNotBeforeNs()), time.Unix(0, c.GetNotAfterNs()).Sub(now)
	switch {
	case a.GetIssuer() != "": // which replaces them by itself, long before
		return c.GetSigns() && left < life/10
	case a.GetCertManager() != "" && c.GetKind() == intermediate: // it renews when a third is left
		return left < min(within, life/4)
	}
	return left < within
}

// remedy is what replaces a certificate that ends soon, or does without it. An intermediate
// ends with its root at the latest, so where that ends soon, another one is no remedy.
func remedy(a *meshpb.CertificatesResponse, c *meshpb.AuthorityCertificate, now time.Time, within time.Duration) string {
	ends := slices.ContainsFunc(a.GetAuthority(), func(c *meshpb.AuthorityCertificate) bool { return c.GetAnchors() && soon(a, c, now, within) })
	inChain := c.GetSigns() || c.GetAnchors() || c.GetKind() == intermediate
	rotating := a.GetRotation().GetKind()
	switch {
	case c.GetFurther() && !inChain:
		return "take it out of roots.crt, when no SVID is of it"
	case a.GetCertManager() != "" && ends && inChain:
		return fmt.Sprintf("put the new root of cert-manager's Certificate %s beside the old one into roots.crt, and have it issued anew when every node trusts both: docs/certificates.md has the steps", a.GetCertManager())
	case a.GetCertManager() != "":
		return fmt.Sprintf("have cert-manager issue its Certificate %s anew (`cmctl renew`); its status says why it does not", a.GetCertManager())
	case rotating == root || rotating != "" && inChain && !ends:
		return "complete the rotation (`heddle certs rotate --wait`)"
	case rotating != "" && inChain:
		return "complete the rotation (`heddle certs rotate --wait`), then `heddle certs rotate --root`"
	case c.GetSigns() && !ends:
		return "`heddle certs rotate --" + c.GetKind() + "`"
	case inChain:
		return "`heddle certs rotate --root`"
	}
	return "take it out of ca.crt, when no SVID is of it"
}
