package operator

import (
	"context"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/gated"
)

// openGates makes what knows who is behind a gate, where policies may name UDP. Kept is who
// was before the start; peers asks the other replicas, nil where there are none.
func (p *parts) openGates(kept gated.Prints, peers func(context.Context) []*meshpb.NodeGates) (err error) {
	if p.cfg.UDPByIdentity {
		reports := func() ([]*meshpb.NodeGates, <-chan struct{}) {
			changed := p.trust.Changed()
			return gated.Connected(p.trust.Reports()), changed
		}
		p.trust.gates, err = gated.New(gated.Config{Reports: reports, Peers: peers, Kept: kept})
	}
	return err
}

// Gates implements meshpb.OperatorAdminServer.
func (a *adminService) Gates(_ context.Context, req *meshpb.GatesRequest) (*meshpb.GatesResponse, error) {
	return gated.Reply(req, gated.Connected(a.parts.trust.Reports()))
}

// Gates implements meshpb.OperatorAdminServer.
func (s *peerService) Gates(ctx context.Context, req *meshpb.GatesRequest) (*meshpb.GatesResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	return s.admin.Gates(ctx, req)
}

// keptGates keeps who is behind a gate in the state of a folder, for the next start.
func (p *parts) keptGates() *gated.Store { return gated.NewFileStore(p.state.Gates(), p.cfg.Logger) }

// keepGates does so while the folder is followed.
func (p *parts) keepGates(ctx context.Context) error {
	return p.keptGates().Keep(ctx, p.trust.gates, func() (*mesh.View, <-chan struct{}) { return viewOf(p.publisher.Outcome().Snapshot), nil })
}

// keepGates keeps who is behind a gate, for the next start, while this replica leads.
func (p *clusterParts) keepGates(ctx context.Context) error {
	return gated.NewStore(p.core, p.cfg.Kubernetes.Namespace, p.cfg.Logger).Keep(ctx, p.trust.gates, func() (*mesh.View, <-chan struct{}) {
		now, changed := p.publisher.Outcome()
		return viewOf(now.Snapshot), changed
	})
}

// viewOf is what a Snapshot serves, nil for nothing.
func viewOf(s *discovery.Snapshot) *mesh.View {
	if s == nil {
		return nil
	}
	return s.View()
}
