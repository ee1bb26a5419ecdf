package frozen

import (
	"context"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Kind says what a Frozen is.
type Kind string

const (
	// KindTunnel is a tunnel connection with its streams.
	KindTunnel Kind = "tunnel"
	// KindPair is a connection that no tunnel carries.
	KindPair Kind = "pair"
)

// Frozen is something live at rest, with everything that another process needs
// to go on. It holds keys: it must not touch a disk.
type Frozen struct {
	Kind Kind
	// Pod is whose tunnel connection it is. A pair's State says that itself.
	Pod mesh.Key
	// State, Data and Files are those of an hbone.Frozen: Files belong to whoever
	// has the Frozen, and are not closed by Freeze before move has returned.
	State, Data []byte
	Files       []int
}

const movePoll = 2 * time.Millisecond

// Await waits until cond. It polls: moments like these are rare, and short.
func Await(ctx context.Context, cond func() bool) error {
	poll := time.NewTicker(movePoll)
	defer poll.Stop()
	for !cond() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Give makes what engine and relay froze Frozen. A tunnel's source is its
// pod's key, which may not be served any more when nothing else of it is left.
func Give(kind Kind, all []*hbone.Frozen) []*Frozen {
	given := make([]*Frozen, len(all))
	for i, f := range all {
		given[i] = &Frozen{Kind: kind, State: f.State, Data: f.Data, Files: f.Files}
		given[i].Pod.Namespace, given[i].Pod.Name, _ = strings.Cut(f.Source, "/")
	}
	return given
}
