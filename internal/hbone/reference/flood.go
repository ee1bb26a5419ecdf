package reference

import (
	"encoding/binary"
	"sync/atomic"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// What a frame counts of those "without meaning" (flood.Other).
const (
	// answerUnits is what a request of ours entitles the peer to: an answer, what informs
	// before it, and trailers.
	answerUnits = 8
	// unknownUnits is for frames that net/http has no use for: it logs each.
	unknownUnits = 16
)

// floodGuard bounds the frames that a server sends us and that cost it nothing (RFC 9113
// section 10.5), as package connect does for clients': net/http's client bounds none. It reads
// the headers of frames as they go by.
type floodGuard struct {
	// Of the reading goroutine.
	guard flood.Guard
	head  [h2.HeaderBytes]byte
	have  int // of head
	left  int // of the payload

	updates atomic.Int64 // WINDOW_UPDATEs that what we sent entitles the peer to
	asked   atomic.Int64 // requests
}

// wrote counts what we send. Any goroutine may call it.
func (g *floodGuard) wrote(n int) { g.updates.Add(int64(flood.Updates(n))) }

// read looks at what came, and fails with a *flood.Error when it is too much.
func (g *floodGuard) read(p []byte) error {
	for len(p) > 0 {
		if g.left > 0 {
			n := min(g.left, len(p))
			g.left, p = g.left-n, p[n:]
			continue
		}
		n := copy(g.head[g.have:], p)
		g.have, p = g.have+n, p[n:]
		if g.have == len(g.head) {
			g.have = 0
			g.left = int(binary.BigEndian.Uint32(g.head[:]) >> 8)
			if err := g.frame(http2.FrameType(g.head[3]), http2.Flags(g.head[4])); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *floodGuard) frame(kind http2.FrameType, flags http2.Flags) error {
	switch kind {
	case http2.FrameData:
		if g.left > 0 || flags.Has(http2.FlagDataEndStream) {
			return nil
		}
		return g.guard.Spend(flood.EmptyData)
	case http2.FrameHeaders, http2.FrameContinuation:
		g.guard.Earn(flood.Other, float64(answerUnits*g.asked.Swap(0)))
		if err := g.guard.SpendHeader(g.left); err != nil {
			return err
		}
		return g.guard.Spend(flood.Other)
	case http2.FrameWindowUpdate:
		g.guard.Earn(flood.WindowUpdate, float64(g.updates.Swap(0)))
		return g.guard.Spend(flood.WindowUpdate)
	case http2.FrameRSTStream:
		return g.guard.Spend(flood.Reset)
	case http2.FramePing:
		return g.guard.Spend(flood.Ping)
	case http2.FrameSettings:
		return g.guard.Spend(flood.Settings)
	default:
		return g.guard.SpendMany(flood.Other, unknownUnits)
	}
}
