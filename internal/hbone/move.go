package hbone

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// ErrMoving is what a listener's Accept returns when its connections are about
// to move: Serve then accepts no more, drains nothing, and returns when all of
// its connections have ended or moved.
var ErrMoving = errors.New("listener is moving to another process")

// ErrStays is matched by the error of a move that cannot be, now or later, for
// something in what was to be moved: it goes on where it is, and others move.
var ErrStays = errors.New("it cannot move")

// Mover is an Engine whose live connections can go on in another process.
type Mover interface {
	Engine

	// Freeze takes the engine's tunnel connections out of it, and gives each
	// with its streams to move, until none is left or ctx is done. The caller has
	// ended every Serve's accepting by ErrMoving, and calls Connect no more:
	// streams that are being opened are waited for, as they are not moved, and
	// while a peer's are, what it sends waits for at most 60 ms at a time. A peer
	// that opens more all the time is told after a second to do so on another
	// connection, and what is not accepted in three is refused as not processed.
	// A connection that has a stream without an Owner stays. Connections go on
	// until the moment that they are moved, and are at rest for as long as move
	// runs; it gets a few at a time.
	//
	// When move returns nil, the other process has them: their streams' owners
	// are told by Left, nothing else of them is called here, and this process
	// does not touch the sockets again. A Cut or Drain that came for them while
	// move ran is lost: the other process judges streams as it adopts them. When
	// move returns an error, the other process has not begun to use them: they
	// go on here as if nothing had been, and Freeze returns that error; it may
	// be called again. It returns ctx's error when connections were left.
	Freeze(ctx context.Context, move func([]*Frozen) error) error

	// Thaw goes on with a connection that Freeze gave away in another process,
	// which owns its files from then on; it returns when the connection lives.
	// For one that a peer had opened, a Serve for the same Server.Local must be
	// running, which it is from its listener's first Accept on: Thaw does not wait
	// for one. After an error nothing was taken over, the
	// files are still the caller's, and owners that were adopted are told by
	// Left. It may be called from several goroutines at once.
	Thaw(f *Frozen, ctx ThawContext) error
}

// Frozen is one tunnel connection at rest, with everything that another process
// needs to go on. It holds keys: it must not touch a disk.
type Frozen struct {
	// Source names the local pod, as in Match.Source.
	Source string
	// State is the engine's own encoding of keys, sequence numbers, flow control
	// and owners; Data the bytes that were on their way. A version reads what
	// those before it wrote, and what later ones do unless they say otherwise.
	State, Data []byte
	// Files are the descriptors of the tunnel connection and of its streams, in
	// State's order: more than one message of SCM_RIGHTS may carry. They belong
	// to whoever has the Frozen, and are not closed by Freeze before move has
	// returned.
	Files []int
}

// ThawContext gives a frozen connection what cannot be moved.
type ThawContext struct {
	// Adopt makes the owner of a stream again from what its Owner's Freeze gave.
	// It is called on the goroutine that called Thaw, before the connection
	// lives: an error keeps it from that.
	Adopt func(state []byte) (*Adopted, error)
	// Bundles verify the peer, as in ConnectRequest and Server. When they are not
	// those that vouched for it before, or nil, it is verified for the next
	// stream.
	Bundles x509bundle.Source
	// Memory is the pod's.
	Memory *Memory
}

// Owner is whoever a stream belongs to, and what lets it move with the stream.
// Both methods are called from an engine's loop and must not block.
type Owner interface {
	// Freeze returns what Adopt needs in the other process. The stream is at
	// rest; it may still turn out to stay here. After an error it does, and its
	// connection goes on.
	Freeze() ([]byte, error)
	// Left says that the stream is another process's: Done is not called.
	Left()
}

// Adopted is an owner's side of a stream that has come from another process.
// The counters go on from where they are: Adopt sets them. Only Owner need be
// there for the stream to move again; the others may be nil.
type Adopted struct {
	Owner    Owner
	Progress *Counters
	Cutter   *Cutter
	Done     func(Outcome)
}
