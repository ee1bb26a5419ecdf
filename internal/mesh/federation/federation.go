// Package federation has what a mesh is told of other trust domains. It is pure.
package federation

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Domain is another trust domain: its identities are proved by its own roots.
// Agents are told its name here, and its roots by who follows the authority.
type Domain struct {
	TrustDomain spiffeid.TrustDomain
	// Endpoint is the https URL of its SPIFFE bundle endpoint. It and what follows is for
	// the operator, and empty at an agent.
	Endpoint string
	// EndpointID is who the endpoint proves to be (profile https_spiffe); the zero ID
	// for one that web roots verify (https_web).
	EndpointID spiffeid.ID
	// WebRoots are those of https_web, in PEM; "" is the system's.
	WebRoots string
	// Bootstrap is the SPIFFE bundle that is believed until the endpoint has given one;
	// "" for none.
	Bootstrap string
}

// Profile returns the name of the endpoint's profile (SPIFFE Federation, section 5.2).
func (d *Domain) Profile() string {
	if d.EndpointID.IsZero() {
		return "https_web"
	}
	return "https_spiffe"
}

// Check says what is wrong with the domains that a mesh of trust domain own is given.
func Check(own spiffeid.TrustDomain, domains []Domain) (faults []error) {
	for i := range domains {
		switch td := domains[i].TrustDomain; {
		case td.IsZero():
			faults = append(faults, fmt.Errorf("settings: a federated trust domain is empty"))
		case td == own:
			faults = append(faults, fmt.Errorf("settings: trust domain %s is federated with itself", td))
		}
		for j := range i {
			if domains[j].TrustDomain == domains[i].TrustDomain {
				faults = append(faults, fmt.Errorf("settings: trust domain %s is federated twice", domains[i].TrustDomain))
			}
		}
	}
	return faults
}
