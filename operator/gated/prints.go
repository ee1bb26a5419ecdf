package gated

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// ConfigMapName is that of the ConfigMap that keeps Prints, in printsEntry.
	ConfigMapName = "heddle-gates"
	printsEntry   = "gates"
	// printBytes are enough of a hash: names and UIDs that come to another's would have to
	// be found among 2^96. After them it is kept until when they hold, in seconds since 1970.
	printBytes = 12
	keptBytes  = printBytes + 4
	// maxKept bounds what is kept: an API server takes 1 MiB of data in one object.
	maxKept = 900 << 10
	// untilStep is what times are rounded down to, so that what is kept is not written anew
	// with each word of an agent.
	untilStep = Grace / 4
)

type print [printBytes]byte

// Prints are workloads that are behind their gates, each by a hash of all that a gate knows
// it by, and until when that holds unless its node's agent says so again. They must not be
// changed.
type Prints map[print]time.Time

// PrintsOf returns those of a View's workloads that it, and a Ledger, has behind their gates.
func PrintsOf(view *mesh.View, l *Ledger) Prints {
	all := Prints{}
	for _, w := range view.Workloads() {
		if !w.Gated {
			continue
		}
		if until := l.Until(w); !until.IsZero() {
			all[printOf(w)] = until.Truncate(untilStep)
		}
	}
	return all
}

// holding returns those that have not run out. One that holds for longer than anything does
// is spoiled, or of a clock that has been set back: it does not hold.
func (p Prints) holding(now time.Time, grace time.Duration) Prints {
	holding := Prints{}
	for one, until := range p {
		if until.After(now) && !until.After(now.Add(grace)) {
			holding[one] = until
		}
	}
	return holding
}

func printOf(w *mesh.Workload) print {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %q %v", w.Node, w.Namespace, w.Name, w.UID, w.NetNS, w.Addresses) // a hash takes everything
	return print(h.Sum(nil)[:printBytes])
}

// encode returns the octets that are kept: each print and its time, in order; and of how many
// there was no room for.
func (p Prints) encode() (data []byte, left int) {
	sorted := slices.SortedFunc(maps.Keys(p), func(a, b print) int { return bytes.Compare(a[:], b[:]) })
	if most := maxKept / keptBytes; len(sorted) > most {
		sorted, left = sorted[:most], len(sorted)-most
	}
	for _, one := range sorted {
		data = binary.BigEndian.AppendUint32(append(data, one[:]...), uint32(max(p[one].Unix(), 0)))
	}
	return data, left
}

func decode(data []byte) (Prints, error) {
	if len(data)%keptBytes != 0 {
		return nil, fmt.Errorf("%d bytes are not a multiple of %d", len(data), keptBytes)
	}
	all := make(Prints, len(data)/keptBytes)
	for one := range slices.Chunk(data, keptBytes) {
		all[print(one[:printBytes])] = time.Unix(int64(binary.BigEndian.Uint32(one[printBytes:])), 0)
	}
	return all, nil
}
