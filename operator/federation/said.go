package federation

import (
	"crypto/sha256"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
)

// Bundles is what is known of other trust domains, for who asks.
func Bundles(known []Known) []*meshpb.FederatedBundle {
	var all []*meshpb.FederatedBundle
	for _, k := range known {
		out := &meshpb.FederatedBundle{TrustDomain: k.Domain.TrustDomain.Name(), Endpoint: k.Domain.Endpoint, Profile: k.Domain.Profile(),
			RefreshedNs: meshpb.Nanos(k.Fetched), NextNs: meshpb.Nanos(k.Next), Sequence: k.Sequence()}
		if k.Err != nil {
			out.Error = k.Err.Error()
		}
		if k.Bundle != nil {
			out.JwtKeys = uint32(len(k.Bundle.JWT().JWTAuthorities()))
			for _, root := range k.Bundle.X509().X509Authorities() {
				sum := sha256.Sum256(root.Raw)
				kind := "intermediate"
				if identity.IsRoot(root) {
					kind = "root"
				}
				out.Roots = append(out.Roots, &meshpb.AuthorityCertificate{Sha256: sum[:], Kind: kind, Subject: root.Subject.String(), Serial: root.SerialNumber.Text(16),
					NotBeforeNs: root.NotBefore.UnixNano(), NotAfterNs: root.NotAfter.UnixNano(), Key: cakey.Type(root), Trusted: true})
			}
		}
		all = append(all, out)
	}
	return all
}

// Reachable are the trust domains with workloads that may be connected to, for who asks.
func Reachable(known []Known) []*meshpb.FederatedWorkloads {
	var all []*meshpb.FederatedWorkloads
	for _, k := range known {
		if len(k.Domain.Workloads) == 0 {
			continue
		}
		out := &meshpb.FederatedWorkloads{TrustDomain: k.Domain.TrustDomain.Name(), Workloads: uint32(len(k.Domain.Workloads))}
		for _, w := range k.Domain.Workloads {
			out.Addresses += uint32(len(w.Addresses))
		}
		if k.Bundle != nil {
			out.RootsNotAfterNs = k.Bundle.Expires().UnixNano()
		}
		if k.Err != nil {
			out.Error = k.Err.Error()
		}
		all = append(all, out)
	}
	return all
}

// Statuses is what the Mesh's status says of other trust domains, as this replica knows it.
func Statuses(known []Known) []v1alpha1.FederationStatus {
	var all []v1alpha1.FederationStatus
	for _, k := range known {
		out := v1alpha1.FederationStatus{TrustDomain: k.Domain.TrustDomain.Name()}
		if !k.Fetched.IsZero() {
			out.LastRefreshed = &metav1.Time{Time: k.Fetched.Truncate(time.Second)}
		}
		if k.Bundle != nil {
			out.RootsExpire = &metav1.Time{Time: k.Bundle.Expires()}
		}
		if k.Err != nil {
			out.Error = k.Err.Error()
			out.Error = out.Error[:min(len(out.Error), 1024)]
		}
		all = append(all, out)
	}
	return all
}
