package proxy

import (
	"context"
	"net"
	"net/netip"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// ErrRedirect is wire.ErrRedirect.
var ErrRedirect = wire.ErrRedirect

// deliver connects to the application of a permitted connection. Only Authorize
// makes permits, so nothing else can be delivered.
func (p *Proxy) deliver(ctx context.Context, permit mesh.Permit, to *pod, client wire.Client, addr netip.Addr) (*net.TCPConn, error) {
	app, err := wire.Deliverable(permit, to.key, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.Connect)
	defer cancel()
	return wire.DialApp(ctx, to.Sockets, permit, client, app)
}
