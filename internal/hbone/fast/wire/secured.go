package wire

import (
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Config is what an engine wants of its connections. All fields are required but Memory.
type Config struct {
	// Patience is how long the peer may take to begin HTTP/2.
	Patience time.Duration
	// IdleTimeout closes a connection that has carried no stream for so long.
	IdleTimeout time.Duration
	// PingInterval is how long a connection may be silent before it is asked
	// for a sign of life, PingTimeout how long the answer may take.
	PingInterval, PingTimeout time.Duration
	// WriteTimeout is how long a peer may leave the TCP connection stuck, or
	// something that it has begun without an end.
	WriteTimeout time.Duration
	// StreamWindow and ConnectionWindow are what flow-control windows may become,
	// in bytes.
	StreamWindow, ConnectionWindow int32
	// Memory is the pod's; nil bounds nothing.
	Memory *hbone.Memory
	// HeaderBytes bounds the header of a request or an answer.
	HeaderBytes int
	// Streams is how many a peer may have open; a client does not use it.
	Streams int
}

// Identity is who the two ends of a connection are.
type Identity struct {
	// Source is the local pod, Leaf the local certificate's Fingerprint.
	Source string
	Leaf   [32]byte
	// Peer is what the other end proved.
	Peer  spiffeid.ID
	Trust *hbone.Trust
	// NotAfter is when the connection must drain.
	NotAfter time.Time
}

// Secured is a connection past its handshake, not on a loop yet.
type Secured struct {
	FD      int
	Session *tlsrecord.Session
	// Server says that the peer opened it.
	Server bool
	Identity
}

// TakeOver gives the connection its socket, and closes tcp in every case. After an
// error the keys are wiped: there is no connection that they are for.
func (s *Secured) TakeOver(tcp *net.TCPConn) (err error) {
	if s.FD, err = eventloop.TakeOver(tcp); err != nil {
		s.Session.Wipe()
	}
	return err
}

// Abort ends a connection that found no place.
func (s *Secured) Abort() {
	s.Session.Wipe()
	eventloop.Abort(s.FD)
}
