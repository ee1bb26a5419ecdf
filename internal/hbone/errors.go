package hbone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
)

// The ways in which a stream fails. Every Outcome.Err and Refusal.Err that is
// not nil matches one of these with errors.Is, or is a *StatusError.
var (
	// ErrUnreachable: the endpoint did not accept the TCP connection.
	ErrUnreachable = errors.New("tunnel endpoint unreachable")
	// ErrCertificateExpired: the peer's SVID is expired or not yet valid.
	ErrCertificateExpired = errors.New("peer certificate outside its validity")
	// ErrCertificateUntrusted: the peer's SVID does not chain to the bundle of
	// its trust domain.
	ErrCertificateUntrusted = errors.New("peer certificate not trusted")
	// ErrCertificateInvalid: the peer's certificate is no X.509-SVID (SPIFFE
	// X509-SVID section 2 to 4), such as one with two URI names, or it has none.
	ErrCertificateInvalid = errors.New("peer certificate is not an SVID")
	// ErrPeerMismatch: the peer proved an identity other than the expected one.
	ErrPeerMismatch = errors.New("peer has another identity")
	// ErrHandshake: TLS failed in any other way.
	ErrHandshake = errors.New("TLS handshake")
	// ErrBadRequest: not a CONNECT, malformed authority or header.
	ErrBadRequest = errors.New("bad request")
	// ErrLimit: a bound of Limits was reached.
	ErrLimit = errors.New("limit reached")
	// ErrProtocol: the peer broke HTTP/2 or the tunnel connection failed.
	ErrProtocol = errors.New("tunnel protocol error")
	// ErrTimeout: ConnectRequest.Timeout passed before the answer.
	ErrTimeout = errors.New("no answer in time")
	// ErrReset: an end reset the stream or its TCP connection.
	ErrReset = errors.New("reset")
	// ErrCancelled is ErrReset by the peer's agent, and not by an end of the stream: CANCEL.
	ErrCancelled = fmt.Errorf("%w: cancelled", ErrReset)
	// ErrRevoked: Drain with abort.
	ErrRevoked = errors.New("identity no longer allowed")
	// ErrDraining: the engine is closing.
	ErrDraining = errors.New("draining")
)

// DialError is the error of those who wait for a connection that ConnectRequest.Dial
// failed to open within its context.
func DialError(ctx context.Context, endpoint netip.AddrPort, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: dial %s", context.Cause(ctx), endpoint)
	case errors.Is(err, ErrLimit):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// StatusError is a CONNECT that was answered with something other than 2xx:
// 400 bad request, 401 denied, 503 upstream unreachable.
type StatusError struct {
	Code int
	// Reason is a word for logs; it is not sent.
	Reason string
}

// Error names the status and the reason.
func (e *StatusError) Error() string {
	return fmt.Sprintf("CONNECT answered %d (%s)", e.Code, e.Reason)
}

// Counters are a live stream's payload bytes, as Outcome counts them. All
// methods of the fields are safe for concurrent use.
type Counters struct{ Sent, Received atomic.Uint64 }

// Limits bounds what a peer may ask of a Server.
type Limits struct {
	// Connections and Handshakes (under way at once) per Serve call.
	Connections, Handshakes int
	// PeerConnections is how many of them may be of one identity: the others'
	// are for the others.
	PeerConnections int
	// Streams per connection.
	Streams int
	// HeaderBytes per request.
	HeaderBytes int
	// StreamWindow and ConnectionWindow are what flow-control windows may become,
	// in bytes, on paths that need it, for readers that keep up.
	StreamWindow, ConnectionWindow int32
}

// WithDefaults fills zero fields from DefaultLimits.
func (l Limits) WithDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		Connections: cmp.Or(l.Connections, d.Connections), Handshakes: cmp.Or(l.Handshakes, d.Handshakes),
		PeerConnections: cmp.Or(l.PeerConnections, d.PeerConnections),
		Streams:         cmp.Or(l.Streams, d.Streams), HeaderBytes: cmp.Or(l.HeaderBytes, d.HeaderBytes),
		StreamWindow: cmp.Or(l.StreamWindow, d.StreamWindow), ConnectionWindow: cmp.Or(l.ConnectionWindow, d.ConnectionWindow),
	}
}

// DefaultLimits are generous for honest peers.
func DefaultLimits() Limits {
	return Limits{
		Connections: 4096, PeerConnections: 2048, Handshakes: 256, Streams: 200, HeaderBytes: 8 << 10,
		StreamWindow: 16 << 20, ConnectionWindow: 64 << 20,
	}
}
