package health

import (
	"fmt"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// Unverifiable says why connections to the declared workloads of another trust domain are
// refused: nothing verifies those; "" where something does, as far as a replica knows.
func Unverifiable(f *meshpb.FederatedWorkloads) (detail string) {
	switch expires := time.Unix(0, f.GetRootsNotAfterNs()); {
	case f.GetRootsNotAfterNs() == 0:
		detail = "there is no bundle of it"
	case !time.Now().Before(expires):
		detail = "all of its roots have expired, the last at " + expires.UTC().Format(time.RFC3339)
	default:
		return ""
	}
	if f.GetError() != "" {
		detail += "; " + f.GetError()
	}
	return fmt.Sprintf("connections to its %d declared workloads are refused: %s", f.GetWorkloads(), detail)
}

// federated looks at the workloads of other trust domains that may be connected to.
func (r *Report) federated(part string, all []*meshpb.FederatedWorkloads) {
	for _, f := range all {
		name := "trust domain " + f.GetTrustDomain()
		if detail := Unverifiable(f); detail != "" {
			r.Bad(part, name, detail, "`heddle certs` says how its bundle endpoint is asked, and with what success; see spec.federation of the Mesh")
			continue
		}
		r.Good(part, name, "%d workloads at %d addresses may be connected to, verified until %s", f.GetWorkloads(), f.GetAddresses(), time.Unix(0, f.GetRootsNotAfterNs()).UTC().Format(time.RFC3339))
	}
}
