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
	"time"

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

// nobody owns what was repeated elsewhere.
type nobody struct{}

func (nobody) Answered(*Stream)                      {}
func (nobody) Repeat(error) bool                     { return false }
func (nobody) Ended(*Stream, error)                  {}
func (nobody) Movable() bool                         { return false }
func (nobody) Freeze() ([]byte, hbone.Timing, error) { return nil, hbone.Timing{}, nil }
func (nobody) Left()                                 {}

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

// Identity is who the two ends of a connection are, Secured a connection past its
// handshake, not on a loop yet.
type (
	Identity = wire.Identity
	Secured  = wire.Secured
)
