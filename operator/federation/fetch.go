package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// fetchTimeout bounds one question, its connection included.
const fetchTimeout = 10 * time.Second

// fetch asks a bundle endpoint (SPIFFE Federation, section 5). An endpoint of profile
// https_spiffe proves itself by what roots has of its trust domain. What it answers is read up
// to federated.MaxDocument. Redirects are not followed: the URL is what an administrator wrote.
func fetch(ctx context.Context, d *mesh.FederatedDomain, roots x509bundle.Source) (*federated.Domain, error) {
	cfg, err := endpointTLS(d, roots)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	transport := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 16 << 10}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.Endpoint, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", d.Endpoint, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err // names method and URL
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s: answer is %q", d.Endpoint, response.Status)
	}
	document, err := io.ReadAll(io.LimitReader(response.Body, federated.MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", d.Endpoint, err)
	}
	return federated.Parse(d.TrustDomain, document)
}

// endpointTLS verifies an endpoint as its profile says (section 5.2).
func endpointTLS(d *mesh.FederatedDomain, roots x509bundle.Source) (*tls.Config, error) {
	if d.EndpointID.IsZero() {
		cfg := &tls.Config{MinVersion: tls.VersionTLS12}
		if d.WebRoots != "" {
			cfg.RootCAs = x509.NewCertPool()
			if !cfg.RootCAs.AppendCertsFromPEM([]byte(d.WebRoots)) {
				return nil, errors.New("webRoots have no certificate in them")
			}
		}
		return cfg, nil
	}
	if _, err := roots.GetX509BundleForTrustDomain(d.EndpointID.TrustDomain()); err != nil {
		return nil, fmt.Errorf("%s cannot be verified: %w; remedy: give a first bundle in spec.federation of the Mesh", d.EndpointID, err)
	}
	return tlsconfig.TLSClientConfig(roots, tlsconfig.AuthorizeID(d.EndpointID)), nil
}
