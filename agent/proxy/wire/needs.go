package wire

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Identities gives the SVIDs of this node's workloads and the bundles that
// verify everybody's. It is safe for concurrent use.
type Identities interface {
	// Certificate returns the current SVID of an identity, or an error that
	// says why there is none.
	Certificate(id spiffeid.ID) (*tls.Certificate, error)
	x509bundle.Source
	// Changed returns a channel that is closed when a certificate or a bundle
	// was replaced after the call.
	Changed() <-chan struct{}
}

// Listeners accept what the kernel redirected in one pod. They are in its
// network namespace and transparent: an accepted connection's local address is
// where its client wanted to go. Their connections are *net.TCPConn.
type Listeners struct {
	// Outbound is for the pod's own connections, Inbound for plaintext from
	// elsewhere, Tunnel for HBONE; one of each address family that the pod has.
	Outbound, Inbound, Tunnel []net.Listener
}

// Close closes all of them.
func (l Listeners) Close() {
	for _, group := range [][]net.Listener{l.Outbound, l.Inbound, l.Tunnel} {
		for _, one := range group {
			_ = one.Close() // a listener that cannot be closed is closed already
		}
	}
}

// Sockets opens the outgoing connections of one pod, in the pod's network
// namespace and let through by its gate. It is safe for concurrent use.
type Sockets interface {
	// DialTunnel connects to a peer's tunnel endpoint.
	DialTunnel(ctx context.Context, remote netip.AddrPort) (*net.TCPConn, error)
	// DialEgress connects in plaintext to where the application wanted to go.
	DialEgress(ctx context.Context, remote netip.AddrPort) (*net.TCPConn, error)
	// DialApp connects to the pod's application with the client's address, and
	// its port when that is free.
	DialApp(ctx context.Context, client, app netip.AddrPort) (*net.TCPConn, error)
}

// Starter is what Sockets are that can open a connection without waiting.
type Starter interface {
	// StartApp begins what DialApp does. The descriptor, which does not block, is
	// connected when wait is nil; else wait is to be called, once, and closes it
	// when it fails.
	StartApp(client, app netip.AddrPort) (fd int, wait func(context.Context) error, err error)
}
