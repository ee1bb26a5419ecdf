package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// Engine carries TCP connections over HBONE, outbound and inbound.
type Engine interface {
	// Connect opens a stream for req and carries local over it until both
	// directions have ended. It returns at once and takes local over in every
	// case. It calls req.Done exactly once, at the end or on failure, from a
	// goroutine or loop of the engine's own that Done must not block.
	Connect(local *net.TCPConn, req *ConnectRequest)

	// Serve accepts tunnel connections on l until l is closed or Close is
	// called, and asks srv about every stream. It owns l, and returns nil when
	// l is closed and every connection that it accepted has ended: they drain
	// from then on, and Drain with abort cuts them. Several calls may run at
	// once, one for each workload on the node.
	Serve(l net.Listener, srv *Server) error

	// Drain ends the pooled connections, both ways, that were made with
	// the local certificate of the given fingerprint, or to or from the given
	// peer, once their streams have ended; abort ends the streams too, with
	// ErrRevoked. Zero fields match everything.
	Drain(match Match, abort bool)

	// Close refuses new streams, lets the open ones finish until ctx is done,
	// then cuts them with ErrDraining. It returns when every goroutine of the
	// engine has ended.
	Close(ctx context.Context) error
}

// Acceptor is an Engine that also accepts what it is to carry: on its loops, where
// a connection costs no goroutine.
type Acceptor interface {
	// AcceptFrom accepts connections from l and gives each to take, which must not
	// block, until stop is closed; it then returns nil, and take is not called any
	// more. It fails, having taken nothing, when it cannot begin. While it gets no
	// descriptors or memory it waits, which starved is told at the beginning. L
	// stays the caller's; the engine's Close waits for stop.
	AcceptFrom(l *net.TCPListener, stop <-chan struct{}, take func(Incoming), starved func(error)) error
}

// Incoming is a connection that an Acceptor has accepted.
type Incoming struct {
	// FD is its socket, which does not block. It belongs to whoever was given it.
	FD     int
	Remote netip.AddrPort
	// Connect is Engine.Connect for the socket. It may be called before take
	// returns, and not later.
	Connect func(*ConnectRequest)
}

// Match selects pooled tunnel connections. A zero field matches everything.
type Match struct {
	// Source is the local pod, as in Key.Source (outbound) or Server.Local.
	Source string
	// Peer is the identity the other end proved.
	Peer spiffeid.ID
	// LeafFingerprint is the Fingerprint of the local certificate.
	LeafFingerprint [32]byte
}

// Matches says whether a connection with these properties is meant.
func (m Match) Matches(source string, leaf [32]byte, peer spiffeid.ID) bool {
	return (m.Source == "" || m.Source == source) &&
		(m.LeafFingerprint == [32]byte{} || m.LeafFingerprint == leaf) &&
		(m.Peer.IsZero() || m.Peer == peer)
}

// Key says which streams may share a tunnel connection. Identities are never
// mixed on one: two requests share it only when their keys are equal.
type Key struct {
	// Source names the pod that the connection belongs to.
	Source string
	// Leaf is the Fingerprint of the local certificate.
	Leaf [32]byte
	// Peer is the identity that the other end must prove.
	Peer spiffeid.ID
	// Endpoint is the tunnel endpoint, usually port 15008.
	Endpoint netip.AddrPort
}

// ConnectRequest is one outbound stream.
type ConnectRequest struct {
	Key
	// Certificate is the source pod's SVID; Key.Leaf is its fingerprint.
	Certificate *tls.Certificate
	// Bundles verify the peer.
	Bundles x509bundle.Source
	// Authority is the target: the destination workload's address and port.
	Authority netip.AddrPort
	// Forwarded is the client's own address and port, for the forwarded header.
	Forwarded netip.AddrPort
	// Baggage and TraceParent go out as the headers of those names; "" omits.
	Baggage, TraceParent string
	// Dial opens the TCP connection to Endpoint, in the source pod's network
	// namespace, when the pool has none to offer. It may also be called for those
	// who come next, beside the stream or after its end. An error of its own that
	// matches ErrLimit is that of all who wait for the connection, as it is; others
	// are ErrUnreachable.
	Dial func(ctx context.Context) (*net.TCPConn, error)
	// Timeout bounds everything until the peer's answer: dial, handshake and
	// CONNECT together.
	Timeout time.Duration
	// Established, when not nil, is called once when the peer has answered
	// 2xx, before Done, with what secures the tunnel connection; same rules as Done.
	Established func(Timing, secured.By)
	// Progress, when not nil, is kept up to date while bytes flow.
	Progress *Counters
	// Cutter, when not nil, ends the stream once the peer has answered 2xx.
	// Until then, closing local does.
	Cutter *Cutter
	// Owner, when not nil, lets the stream move to another process.
	Owner Owner
	// Memory bounds what is held for the source pod; nil does not.
	Memory *Memory
	// Unanswered, when not nil, is called in place of Done when the stream
	// failed before the peer answered 2xx and nothing was read from local: the
	// caller has local back, open and untouched, and may try another peer. Same
	// rules as Done. A stream that failed after the engine had sent what was in
	// local with the CONNECT, and of which nobody knows whether the peer passed
	// that on, is not given back: it must not reach an application twice.
	Unanswered func(Outcome)
	// Done receives the outcome.
	Done func(Outcome)
}

// Timing says how long the steps of opening a stream took. Handshake is 0 on a
// connection that was pooled.
type Timing struct {
	Dial, Handshake, Connect time.Duration
	Pooled                   bool
}

// Outcome is how a stream ended.
type Outcome struct {
	// Err is nil when both directions ended with FIN. Otherwise it matches one
	// of the package's errors, or is a *StatusError.
	Err error
	// Sent and Received count payload bytes, seen from the local side: Sent
	// went from local into the tunnel.
	Sent, Received uint64
	Timing         Timing
	// Path is what the kernel knew of the tunnel connection when the stream
	// ended; zero when the stream had none, or it was gone already.
	Path Path
}

// Path is the network's part of a tunnel connection (TCP_INFO, tcp(7)). Other
// streams of the connection are in it.
type Path struct {
	RTT         time.Duration
	Retransmits uint32
}

// Server answers the streams of one workload's tunnel port.
type Server struct {
	// Local names the pod, for Match.Source.
	Local string
	// Certificate returns the workload's current SVID; called per handshake.
	Certificate func() (*tls.Certificate, error)
	// Bundles verify peers.
	Bundles x509bundle.Source
	// Accept authorizes a stream and dials the application; 200 is sent only
	// after it returned a connection, which the engine then owns. An error
	// that is a *StatusError chooses the answer; any other is a 503. It runs on
	// a goroutine of its own, with a context that ends with the stream, or after it has returned.
	Accept func(ctx context.Context, req *StreamRequest) (*Accepted, error)
	// AcceptNow, when not nil, is Accept for an engine that has no goroutine for
	// each stream: it must not wait. When there is something to wait for it
	// returns rest, which is to be called once, as Accept is, for the answer.
	AcceptNow func(req *StreamRequest) (a *Accepted, rest func(context.Context) (*Accepted, error), err error)
	// Refused, when not nil, is told of everything refused before Accept was
	// asked: handshakes, malformed requests, limits. It must not block.
	Refused func(Refusal)
	// Limits bounds what peers may ask for; zero fields take DefaultLimits.
	Limits Limits
	// Memory bounds what is held for this pod; nil does not.
	Memory *Memory
}

// StreamRequest is one CONNECT that a peer asked for.
type StreamRequest struct {
	// Peer is the identity the client proved.
	Peer spiffeid.ID
	// Remote and Local are the tunnel connection's TCP addresses.
	Remote, Local netip.AddrPort
	// Authority is the requested target.
	Authority netip.AddrPort
	// Forwarded is the first for= of the forwarded header; zero when absent. It
	// is what the peer says, not proven.
	Forwarded            netip.AddrPort
	Baggage, TraceParent string
	Handshake            time.Duration
	// Secured is what secures the tunnel connection.
	Secured secured.By
}

// Accepted is Accept's answer.
type Accepted struct {
	// Conn is the connection to the application; the engine owns it from here.
	Conn *net.TCPConn
	// FD is that connection, without blocking, if Conn is nil. Only what
	// Server.AcceptNow has begun may give one.
	FD int
	// Cutter, when not nil, ends the stream.
	Cutter *Cutter
	// Owner, when not nil, lets the stream move to another process.
	Owner Owner
	// Progress, when not nil, is kept up to date while bytes flow.
	Progress *Counters
	// Done is called exactly once when the stream has ended; it must not block.
	// Sent counts bytes from the application into the tunnel.
	Done func(Outcome)
}

// Refusal is a stream or a tunnel connection refused by the engine itself.
type Refusal struct {
	Remote, Local netip.AddrPort
	// Peer is zero when the handshake did not prove one.
	Peer spiffeid.ID
	Err  error
}
