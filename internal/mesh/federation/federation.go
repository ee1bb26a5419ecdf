// Package federation has what a mesh is told of other trust domains. It is pure.
package federation

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/workload"
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
	// Workloads are those of it that may be connected to, sorted by identity.
	Workloads []Workload
}

// Workload is one of another trust domain, or several that have the same identity: who is
// connected to at one of the addresses has to prove it.
type Workload struct {
	Identity spiffeid.ID
	// Addresses are nobody else's, unmapped and sorted.
	Addresses []netip.Addr
}

// MaxWorkloads bounds those of all trust domains of a mesh.
const MaxWorkloads = 256

// Equal reports whether the same is said of both.
func (d Domain) Equal(other Domain) bool {
	return d.TrustDomain == other.TrustDomain && d.Endpoint == other.Endpoint && d.EndpointID == other.EndpointID && d.WebRoots == other.WebRoots && d.Bootstrap == other.Bootstrap &&
		slices.EqualFunc(d.Workloads, other.Workloads, func(a, b Workload) bool {
			return a.Identity == b.Identity && slices.Equal(a.Addresses, b.Addresses)
		})
}

// Profile returns the name of the endpoint's profile (SPIFFE Federation, section 5.2).
func (d *Domain) Profile() string {
	if d.EndpointID.IsZero() {
		return "https_web"
	}
	return "https_spiffe"
}

// ByAddress returns the workloads of domains by their addresses, each as a list of one. To be
// connected to is all that is known of them, so they are enrolled and ready, and on no node.
func ByAddress(domains []Domain) map[netip.Addr][]*workload.Workload {
	all := map[netip.Addr][]*workload.Workload{}
	for i := range domains {
		for _, w := range domains[i].Workloads {
			list := []*workload.Workload{{Identity: w.Identity, Addresses: w.Addresses, Enrolled: true, Ready: true}}
			for _, addr := range w.Addresses {
				all[addr] = list
			}
		}
	}
	return all
}

// Check says what is wrong with the domains that a mesh of trust domain own is given. Its
// own addresses are those in ranges.
func Check(own spiffeid.TrustDomain, ranges []netip.Prefix, domains []Domain) (faults []error) {
	owners, count := map[netip.Addr]spiffeid.ID{}, 0
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
		count += len(domains[i].Workloads)
		for j := range domains[i].Workloads {
			faults = append(faults, domains[i].check(j, ranges, owners)...)
		}
	}
	if count > MaxWorkloads {
		faults = append(faults, fmt.Errorf("settings: %d workloads of federated trust domains, %d are possible", count, MaxWorkloads))
	}
	return faults
}

// check says what is wrong with a workload, and notes whose its addresses are. They are in
// ranges: beyond them, who does not know of the workload lets connections leave in plaintext.
func (d *Domain) check(i int, ranges []netip.Prefix, owners map[netip.Addr]spiffeid.ID) (faults []error) {
	w := &d.Workloads[i]
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("settings: workload %s of trust domain %s: %w", w.Identity, d.TrustDomain, fmt.Errorf(format, args...)))
	}
	if !w.Identity.MemberOf(d.TrustDomain) || w.Identity.Path() == "" {
		fault("its identity is none of a workload of that trust domain")
	}
	if slices.ContainsFunc(d.Workloads[:i], func(other Workload) bool { return other.Identity == w.Identity }) {
		fault("it is given twice")
	}
	if len(w.Addresses) == 0 {
		fault("it has no address")
	}
	for _, addr := range w.Addresses {
		first, taken := owners[addr]
		owners[addr] = w.Identity
		switch {
		case taken:
			fault("address %s is also that of %s", addr, first)
		case !addr.IsGlobalUnicast() || addr.Is4In6() || addr.Zone() != "":
			fault("address %s is not one that others can reach", addr)
		case !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) }):
			fault("address %s is outside the cluster ranges", addr)
		}
	}
	return faults
}
