package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/operator/spire"
)

// SPIRE says where the SPIRE is that the operator is a CA below; see package spire.
type SPIRE struct {
	// Server is the host:port of the SPIRE server, WorkloadAPI the address of the SPIRE
	// agent beside the operator: unix:///PATH.
	Server, WorkloadAPI string
}

func (c *Config) spire(td spiffeid.TrustDomain) spire.Config {
	return spire.Config{TrustDomain: td, Server: c.SPIRE.Server, WorkloadAPI: c.SPIRE.WorkloadAPI}
}

// firstOfSPIRE returns what asks SPIRE for a CA where there is none, or one that has ended, once; nil without SPIRE.
func (p *parts) firstOfSPIRE(td spiffeid.TrustDomain) func(context.Context) (map[string][]byte, error) {
	if p.cfg.SPIRE == nil {
		return nil
	}
	return func(ctx context.Context) (map[string][]byte, error) {
		texts, err := spire.First(ctx, p.cfg.spire(td))
		if err != nil {
			return nil, fmt.Errorf("there is no CA yet that has not ended, and SPIRE does not give one: %w", err)
		}
		return texts, nil
	}
}

// awaitSPIRE is firstOfSPIRE until there is one: it logs what it waits for.
func (p *parts) awaitSPIRE(td spiffeid.TrustDomain) func(context.Context) (map[string][]byte, error) {
	first := p.firstOfSPIRE(td)
	if first == nil {
		return nil
	}
	return func(ctx context.Context) (map[string][]byte, error) {
		for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
			texts, err := first(ctx)
			if err == nil {
				return texts, nil
			}
			p.cfg.Logger.Error("waiting for SPIRE", "error", err, "retry", delay)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(delay):
			}
		}
	}
}

// openSPIRE makes what follows SPIRE, if that is wanted.
func (p *parts) openSPIRE() (err error) {
	if p.cfg.SPIRE == nil {
		return nil
	}
	p.spire, err = spire.NewFollower(spire.FollowerConfig{SPIRE: p.cfg.spire(p.authority.TrustDomain()), Live: p.authority,
		Fleet: p.fleet, Settle: p.cfg.Settle, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	return p.register(p.spire.Collector())
}

// followSPIRE runs until ctx ends, if that is wanted.
func (p *parts) followSPIRE(ctx context.Context) error {
	if p.spire == nil {
		return nil
	}
	return p.spire.Run(ctx)
}

// issuer is who makes the authority's certificates in the operator's place; "" for nobody.
func (p *parts) issuer() string {
	if p.cfg.SPIRE == nil {
		return ""
	}
	return "SPIRE"
}

// problem is why the authority is not what it should be, as far as this replica knows.
func (p *parts) problem() error {
	if problem := p.authority.Problem(); problem != nil || p.spire == nil {
		return problem
	}
	return p.spire.Problem()
}
