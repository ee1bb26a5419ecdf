package check

import (
	"crypto/x509"
	"fmt"
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
		id, err := spiffeid.FromString(all[i].EndpointSPIFFEID)
		known := func(d mesh.FederatedDomain) bool { return id.MemberOf(d.TrustDomain) }
		if err == nil && !id.MemberOf(own) && !slices.ContainsFunc(out, known) {
			s.Problem(fmt.Sprintf("spec.federation[%d].endpointSPIFFEID", i), "federate with that one too, or name an endpoint of another", "%q is of a trust domain that nothing verifies", all[i].EndpointSPIFFEID)
		}
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
	return d, true
}
