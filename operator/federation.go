package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/federation"
)

// BundleEndpoint says where the mesh's own bundle is served; see package federation.
type BundleEndpoint struct {
	// Listen is its host:port. Listener, when set, is used in its place; serving closes it.
	Listen   string
	Listener net.Listener
	// Certificate and Key are PEM files of a certificate of the web (profile https_web). "" is
	// the operator's own SVID (https_spiffe), spiffe://TRUST_DOMAIN/operator.
	Certificate, Key string
}

func (b *BundleEndpoint) check() error {
	switch {
	case b.Listen == "" && b.Listener == nil:
		return errors.New("bundle endpoint: the address to listen on is not given")
	case (b.Certificate == "") != (b.Key == ""):
		return errors.New("bundle endpoint: certificate and key belong together; give both, or neither for the operator's own SVID")
	}
	return nil
}

// openFederation makes what asks for the bundles of other trust domains.
func (p *parts) openFederation(store federation.Store, wanted func() (*mesh.View, <-chan struct{})) (err error) {
	p.federation, err = federation.New(federation.Config{Wanted: wanted, Own: p.authority, Store: store, Often: p.cfg.FederationOften, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	return p.register(p.federation.Collector())
}

// serveBundle serves the mesh's own bundle until ctx ends, if that is wanted.
func (p *parts) serveBundle(ctx context.Context) error {
	cfg := p.cfg.BundleEndpoint
	if cfg == nil {
		return nil
	}
	certificate, profile := p.authority.Own, "https_spiffe"
	if cfg.Certificate != "" {
		var err error
		if certificate, err = federation.Files(cfg.Certificate, cfg.Key, p.cfg.Logger); err != nil {
			return err
		}
		profile = "https_web"
	}
	endpoint, err := federation.NewEndpoint(federation.EndpointConfig{TrustDomain: p.authority.TrustDomain(), Roots: p.authority.Roots, JWT: p.issuing.jwts.Bundle, Certificate: certificate, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	listener := cfg.Listener
	if listener == nil {
		if listener, err = net.Listen("tcp", cfg.Listen); err != nil {
			return fmt.Errorf("listen for who asks for the bundle: %w", err)
		}
	}
	p.cfg.Logger.Info("bundle endpoint opened", "address", listener.Addr().String(), "profile", profile)
	return endpoint.Serve(ctx, listener)
}

// overlap is how long a new root is in the bundle before it may sign, for those who ask for it.
func (p *parts) overlap() time.Duration {
	if p.cfg.BundleEndpoint == nil || p.cfg.SPIRE != nil {
		return 0
	}
	return federation.Overlap
}

// federationStatus is what the Mesh's status says of other trust domains, as this replica knows it.
func (p *parts) federationStatus() []v1alpha1.FederationStatus {
	return federation.Statuses(p.federation.Known())
}
