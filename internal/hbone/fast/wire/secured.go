package wire

import (
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

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
