package relay

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

const (
	stateVersion = 1
	// maxState and maxOwner bound a frozen pair's state and its owner's part of
	// it, which base64 makes a third longer.
	maxState, maxOwner = 256 << 10, 128 << 10
)

// errState is why a frozen pair is not thawed.
var errState = errors.New("not the state of a frozen pair")

// state is Frozen.State. A way that has ended holds nothing; a FIN that was not
// read yet is still in its socket.
type state struct {
	Version int      `json:"version"`
	FromA   wayState `json:"fromA"`
	FromB   wayState `json:"fromB"`
	Owner   []byte   `json:"owner"`
}

type wayState struct {
	// Ended: FIN was read, and passed on.
	Ended bool `json:"ended"`
	// Carried counts the bytes that were.
	Carried uint64 `json:"carried"`
	// Held is how much of Frozen.Data is this direction's; A's comes first.
	Held int `json:"held"`
}

func (s *state) encode() ([]byte, error) {
	if len(s.Owner) > maxOwner {
		return nil, fmt.Errorf("the owner's state has %d bytes, more than %d", len(s.Owner), maxOwner)
	}
	return json.Marshal(s)
}

// decode is the other end of encode, and checks everything that a pair relies
// on but the sockets.
func decode(f *Frozen) (*state, error) {
	if len(f.State) > maxState || len(f.Files) != 2 {
		return nil, fmt.Errorf("%w: %d bytes and %d files", errState, len(f.State), len(f.Files))
	}
	s := &state{}
	if err := json.Unmarshal(f.State, s); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	switch {
	case s.Version != stateVersion:
		return nil, fmt.Errorf("%w: version %d, not %d", errState, s.Version, stateVersion)
	case !s.FromA.valid() || !s.FromB.valid() || s.FromA.Ended && s.FromB.Ended:
		return nil, fmt.Errorf("%w: directions %+v and %+v", errState, s.FromA, s.FromB)
	case s.FromA.Held+s.FromB.Held != len(f.Data):
		return nil, fmt.Errorf("%w: %d and %d bytes held, but %d given", errState, s.FromA.Held, s.FromB.Held, len(f.Data))
	case len(s.Owner) > maxOwner:
		return nil, fmt.Errorf("%w: the owner's has %d bytes", errState, len(s.Owner))
	}
	return s, nil
}

// Check reads a pair that came from another process as Thaw will, touches no
// descriptor, and returns what its owner's Freeze gave.
func Check(f *Frozen) (owner []byte, err error) {
	s, err := decode(f)
	if err != nil {
		return nil, err
	}
	return s.Owner, nil
}

func (w wayState) valid() bool {
	return w.Held >= 0 && w.Held <= spliceBytes && !(w.Ended && w.Held > 0)
}

// prepare makes a descriptor that came from another process fit for a loop, if it
// is a stream socket. Multipath TCP's are none of TCP's by protocol, but are
// joined like them.
func prepare(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("%w: ask descriptor %d for its type: %w", errState, fd, err)
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("%w: ask socket %d for its family: %w", errState, fd, err)
	}
	if kind != unix.SOCK_STREAM || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return fmt.Errorf("%w: socket %d has type %d and family %d", errState, fd, kind, domain)
	}
	return eventloop.Prepare(fd)
}
