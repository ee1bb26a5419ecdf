// Package pending has what came of a body and did not go on yet. It knows neither who sends nor who
// takes it. A Body belongs to one goroutine.
package pending

import (
	"bytes"
	"time"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// spareBytes is how large a buffer is that is kept for another body.
const spareBytes = 32 << 10

// Body is what came of a body, and did not go on yet. Of a request's, what has gone is kept while it may have
// to be sent again: until it is Cut.
type Body struct {
	Data []byte
	// Cut says that what has gone is not kept, Ended that all of it has come, Done that the end has gone on, too.
	Cut, Ended, Done bool
	Trailers         []http1.Field

	at    int       // of Data, where what did not go on begins
	given int       // of Data, how much its sender was given back
	still time.Time // since when whoever is to have it takes nothing of it; zero while that is not so
}

// Waiting is what did not go on yet.
func (b *Body) Waiting() []byte { return b.Data[b.at:] }

// Went says that n bytes of what was Waiting have gone on, and returns how many bytes its sender may
// send more. What has gone is not kept any more when it would be more than most bytes.
func (b *Body) Went(n, most int) (more int) {
	if b.at += n; b.at > b.given {
		more, b.given = b.at-b.given, b.at
	}
	if b.Cut = b.Cut || len(b.Data) > most; b.Cut {
		b.Data = b.Data[:copy(b.Data, b.Data[b.at:])]
		b.at, b.given = 0, 0
	}
	return more
}

// Refused says whether whoever is to have it has not taken all of it, now, and whether they have taken some.
func (b *Body) Refused(some, moved bool, now time.Time) {
	switch {
	case !some:
		b.still = time.Time{}
	case moved || b.still.IsZero():
		b.still = now
	}
}

// Stalls is when nothing of it will have been taken for some time, the zero time if nothing was refused.
func (b *Body) Stalls(after time.Duration) time.Time {
	if b.still.IsZero() {
		return b.still
	}
	return b.still.Add(after)
}

// Again begins anew with what was kept, for somebody else.
func (b *Body) Again() { b.at, b.Done = 0, false }

// End is the end of what comes. The trailers are copied.
func (b *Body) End(trailers []http1.Field) {
	b.Ended = true
	for _, f := range trailers { // they are gone at the next call
		b.Trailers = append(b.Trailers, http1.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
	}
}

// Reset forgets it, and keeps a small buffer for another one.
func (b *Body) Reset() {
	keep := b.Data[:0]
	if cap(keep) > spareBytes {
		keep = nil
	}
	*b = Body{Data: keep}
}
