package check

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// federation reads spec.federation of a Mesh of trust domain own, sorted.
func federation(s Subject, own spiffeid.TrustDomain, all []v1alpha1.FederatedDomain) (out []mesh.FederatedDomain) {
	workloads := 0
	if len(all) > federated.MaxDomains {
		s.Problem("spec.federation", "federate with fewer", "has %d entries, %d are possible", len(all), federated.MaxDomains)
	}
	for i := range all {
		field := fmt.Sprintf("spec.federation[%d]", i)
		d, ok := federatedDomain(s, field, own, &all[i])
		if slices.ContainsFunc(out, func(other mesh.FederatedDomain) bool { return ok && other.TrustDomain == d.TrustDomain }) {
			s.Problem(field+".trustDomain", "keep one of them", "%q is given twice", d.TrustDomain.Name())
			continue
		}
		if ok {
			out = append(out, d)
		}
	}
	for i := range all {
		workloads += len(all[i].Workloads)
		id, err := spiffeid.FromString(all[i].EndpointSPIFFEID)
		known := func(d mesh.FederatedDomain) bool { return id.MemberOf(d.TrustDomain) }
		if err == nil && !id.MemberOf(own) && !slices.ContainsFunc(out, known) {
			s.Problem(fmt.Sprintf("spec.federation[%d].endpointSPIFFEID", i), "federate with that one too, or name an endpoint of another", "%q is of a trust domain that nothing verifies", all[i].EndpointSPIFFEID)
		}
	}
	if workloads > mesh.MaxFederatedWorkloads {
		s.Problem("spec.federation", "give several instances of a workload as addresses of one", "has %d workloads, %d are possible", workloads, mesh.MaxFederatedWorkloads)
	}
	slices.SortFunc(out, func(a, b mesh.FederatedDomain) int {
		return strings.Compare(a.TrustDomain.Name(), b.TrustDomain.Name())
	})
	return out
}

func federatedDomain(s Subject, field string, own spiffeid.TrustDomain, spec *v1alpha1.FederatedDomain) (d mesh.FederatedDomain, ok bool) {
	td, err := spiffeid.TrustDomainFromString(spec.TrustDomain)
	switch {
	case err != nil || td.Name() != spec.TrustDomain:
		s.Problem(field+".trustDomain", "write a name such as example.com: lower-case letters, digits, dots, dashes", "%q is not a trust domain", spec.TrustDomain)
		return d, false
	case td == own:
		s.Problem(field+".trustDomain", "take the entry out", "%q is this mesh's own trust domain", spec.TrustDomain)
		return d, false
	}
	d = mesh.FederatedDomain{TrustDomain: td, Endpoint: spec.Endpoint, WebRoots: spec.WebRoots, Bootstrap: spec.Bundle}
	if u, err := url.Parse(spec.Endpoint); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		s.Problem(field+".endpoint", "write one such as https://spire.example.com:8443/bundle", "%q is not the https URL of a bundle endpoint", spec.Endpoint)
	}
	id, err := spiffeid.FromString(spec.EndpointSPIFFEID)
	switch {
	case spec.Profile == v1alpha1.FederationWeb && spec.EndpointSPIFFEID != "":
		s.Problem(field+".endpointSPIFFEID", "take it out, or write profile: https_spiffe", "is given, and the profile is https_web")
	case spec.Profile == v1alpha1.FederationSPIFFE && (err != nil || id.Path() == ""):
		s.Problem(field+".endpointSPIFFEID", "write one such as spiffe://example.com/spire/server", "%q is not the SPIFFE ID of an endpoint", spec.EndpointSPIFFEID)
	case spec.Profile == v1alpha1.FederationSPIFFE:
		d.EndpointID = id
	case spec.Profile != v1alpha1.FederationWeb:
		s.Problem(field+".profile", "write https_web or https_spiffe", "%q is not a profile of bundle endpoints", string(spec.Profile))
	}
	if spec.WebRoots != "" && spec.Profile != v1alpha1.FederationWeb {
		s.Problem(field+".webRoots", "take them out", "are for the profile https_web")
	} else if spec.WebRoots != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(spec.WebRoots)) {
		s.Problem(field+".webRoots", "write certificates in PEM", "have no certificate in them")
	}
	if spec.Bundle != "" {
		if _, err := federated.Parse(td, []byte(spec.Bundle)); err != nil {
			s.Problem(field+".bundle", "write what `spire-server bundle show -format spiffe` prints there", "is not a SPIFFE bundle: %v", err)
		}
	} else if !d.EndpointID.IsZero() && d.EndpointID.MemberOf(td) {
		s.Problem(field+".bundle", "write what `spire-server bundle show -format spiffe` prints there", "is missing: an endpoint that proves itself by the bundle that it serves needs a first one")
	}
	s.NotEmpty(field+".workloads", spec.Workloads != nil && len(spec.Workloads) == 0)
	for i := range spec.Workloads {
		federatedWorkload(s, fmt.Sprintf("%s.workloads[%d]", field, i), &d, &spec.Workloads[i])
	}
	slices.SortFunc(d.Workloads, func(a, b mesh.FederatedWorkload) int {
		return strings.Compare(a.Identity.String(), b.Identity.String())
	})
	return d, true
}

// federatedWorkload adds a workload of another trust domain. Who claims its addresses says
// what is wrong with them.
func federatedWorkload(s Subject, field string, d *mesh.FederatedDomain, spec *v1alpha1.FederatedWorkload) {
	id, err := spiffeid.FromString(spec.Identity)
	if err != nil || !id.MemberOf(d.TrustDomain) || id.Path() == "" {
		s.Problem(field+".identity", "write one such as spiffe://"+d.TrustDomain.Name()+"/ns/shop/sa/web", "%q is not the SPIFFE ID of a workload of trust domain %s", spec.Identity, d.TrustDomain)
		return
	}
	if slices.ContainsFunc(d.Workloads, func(other mesh.FederatedWorkload) bool { return other.Identity == id }) {
		s.Problem(field+".identity", "give all of its addresses in one entry", "%q is given twice", spec.Identity)
		return
	}
	w := mesh.FederatedWorkload{Identity: id}
	for _, text := range spec.Addresses {
		if addr, err := netip.ParseAddr(text); err == nil {
			w.Addresses = append(w.Addresses, addr)
		}
	}
	if len(spec.Addresses) == 0 {
		s.Problem(field+".addresses", "write where it is, such as [10.244.200.3]", "is empty")
	}
	w.Addresses = mesh.PlainAddresses(w.Addresses)
	d.Workloads = append(d.Workloads, w)
}
