// Package tunnel is one tunnel connection on an event loop: its records, its
// frames, its flow control, its streams and their local sockets. It knows
// nothing of pools, listeners and requests: a connection asks its Role, and a
// stream tells its Owner. A connection can come to rest, and go on from a value in
// another process.
//
// Everything belongs to the Loop that carries it, and is used from nowhere else,
// so there are no locks; the exceptions are a Loop's Post, Run and Stop.
package tunnel

import (
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// Role is what a connection is to the engine: one of a pool's, or one that a
// peer has opened to a server. It is called on the loop.
type Role interface {
	// Ready says that the peer has sent its SETTINGS, and that streams can be
	// opened. Only a client's is told.
	Ready()
	// Request is a stream that the peer opens, and returns its owner, which
	// ends by calling the stream's Decided and then Accept or Refuse, but not
	// before Request has returned. Only a server's is asked.
	Request(s *Stream, h h2.Header) Owner
	// Refuse reports what the peer was refused without a Request.
	Refuse(err error)
	// Leave says, once, that the connection takes no new streams: it drains, or
	// has failed when there is a cause.
	Leave(cause error)
	// Ended is the connection's end, after that of all its streams.
	Ended()
	// Freeze adds what the role knows to a connection that has come to rest.
	Freeze(z *frozen.Conn)
	// Left says, in place of Ended, that another process has the connection.
	Left()
}

// Owner is whoever a stream belongs to. It is called on the loop.
type Owner interface {
	// Answered is the peer's 200 to Open. The owner calls Attach now.
	Answered(s *Stream)
	// Repeat says that the peer has not processed a CONNECT, and why. True means
	// that the owner takes it elsewhere and does not hear of the stream again.
	Repeat(err error) bool
	// Ended is the end, nil in good order: the last that the owner hears.
	Ended(s *Stream, err error)
	// Movable says whether the owner can go to another process.
	Movable() bool
	// Freeze returns the owner of a stream that has come to rest as a value.
	Freeze() (state []byte, t hbone.Timing, err error)
	// Left says, in place of Ended, that another process has the stream.
	Left()
}

// Identity is who the two ends of a connection are, Secured a connection past its
// handshake, not on a loop yet, Config what an engine wants of its connections.
type (
	Config   = wire.Config
	Identity = wire.Identity
	Secured  = wire.Secured
)
