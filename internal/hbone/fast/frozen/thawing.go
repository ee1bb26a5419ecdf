package frozen

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Thawing is a connection whose parts live again, and which nobody carries yet.
// It may be made on any goroutine.
type Thawing struct {
	Value   *Conn
	Peer    spiffeid.ID
	Trust   *hbone.Trust
	Session *tlsrecord.Session
	Parser  h2.Parser
	// Memory is the pod's, for whoever carries it.
	Memory *hbone.Memory
}

// Thaw makes the parts of a value that Decode has found possible. Bundles may be
// nil: the peer is then verified when it is asked for next, as it is when the
// bundle is not the one that vouched for it. gcm is tlsrecord.New's.
func (c *Conn) Thaw(bundles x509bundle.Source, gcm tlsrecord.GCM) (*Thawing, error) {
	t := &Thawing{Value: c}
	var err error
	if t.Peer, err = spiffeid.FromString(c.Peer); err != nil {
		return nil, fmt.Errorf("thaw connection: peer: %w", err)
	}
	if t.Trust, err = hbone.TrustFrom(c.Chain, c.Roots, c.Group, bundles, t.Peer); err != nil {
		return nil, fmt.Errorf("thaw connection: %w", err)
	}
	c.Session.Server = c.Server
	if t.Session, err = tlsrecord.New(c.Session, gcm); err != nil {
		return nil, fmt.Errorf("thaw connection: %w", err)
	}
	if t.Parser, err = h2.NewParser(c.Parser); err != nil {
		t.Session.Wipe()
		return nil, fmt.Errorf("thaw connection: %w", err)
	}
	return t, nil
}
