// Package flood bounds the HTTP/2 frames that cost a peer nothing and us work: a
// token bucket for each kind of frame of one connection. It knows nothing of
// frames but their kinds.
package flood

import (
	"fmt"
	"time"
)

// Kind is a kind of frame that costs us work and a peer nothing.
type Kind int

// The kinds, each with what an honest peer may need it for.
const (
	Ping         Kind = iota // keep-alive, measuring the path's delay
	Settings                 // a change of windows now and then
	Reset                    // every TCP connection that ends with a RST, or was answered with a refusal
	Refused                  // streams opened beyond the limit, before SETTINGS arrived
	EmptyData                // the END_STREAM of a body, which counts as none
	WindowUpdate             // Updates for what we sent
	Other                    // PRIORITY, unknown extensions, frames on streams just closed, what makes us reset one
	Kinds                    // how many there are
)

// rates are the sustained rate in frames per second and the burst that
// each kind may reach on one connection before it ends with ENHANCE_YOUR_CALM
// (RFC 9113 section 10.5).
var rates = [Kinds]struct {
	name  string
	rate  float64
	burst float64
}{
	Ping:         {"PING", 20, 200},
	Settings:     {"SETTINGS", 20, 200},
	Reset:        {"RST_STREAM", 2000, 4000},
	Refused:      {"refused streams", 500, 4000},
	EmptyData:    {"empty DATA", 200, 1000},
	WindowUpdate: {"WINDOW_UPDATE", 4000, 20000},
	Other:        {"frames without meaning", 500, 4000},
}

// Error says which kind of frame there was too much of.
type Error struct{ Kind Kind }

// Error names the frame and the rate.
func (e *Error) Error() string {
	r := rates[e.Kind]
	return fmt.Sprintf("more than %v/s of %s", r.rate, r.name)
}

// Guard is one token bucket for each kind of one connection. It is used by
// one goroutine.
type Guard [Kinds]tokens

// tokens are what was spent at most, at some time.
type tokens struct {
	spent float64
	at    time.Time
}

// spend counts one, and says whether there were too many.
func (b *tokens) spend(rate, burst float64) bool {
	if b.at.IsZero() {
		b.at = time.Now()
	}
	b.spent++
	if b.spent <= burst {
		return true
	}
	now := time.Now()
	b.spent = max(0, b.spent-rate*now.Sub(b.at).Seconds())
	b.at = now
	return b.spent <= burst
}

func (b *tokens) state(now time.Time) Bucket {
	if b.spent <= 0 {
		return Bucket{}
	}
	return Bucket{b.spent, now.Sub(b.at)}
}

func (b Bucket) tokens(burst float64, now time.Time) (t tokens) {
	if b.Spent > 0 {
		t.spent, t.at = min(b.Spent, burst), now.Add(-max(0, b.Age))
	}
	return t
}

// Spend counts one frame, and fails when there were too many. The clock is
// looked at only when the burst is used up: most connections never get there.
func (g *Guard) Spend(kind Kind) error {
	if r := &rates[kind]; !g[kind].spend(r.rate, r.burst) {
		return &Error{kind}
	}
	return nil
}

// headerBytes is what each header may have for nothing, headerFrames what each further
// such part counts as: a byte may be a field, or a change of the table (RFC 7541).
const headerBytes, headerFrames = 2 << 10, 8

// SpendHeader counts what a header of n compressed bytes costs beyond that of a frame.
func (g *Guard) SpendHeader(n int) error { return g.SpendMany(Other, n/headerBytes*headerFrames) }

// SpendMany counts a frame that is as much work as n.
func (g *Guard) SpendMany(kind Kind, n int) error {
	for range n {
		if err := g.Spend(kind); err != nil {
			return err
		}
	}
	return nil
}

// updateBytes is what a receiver may have taken of a stream when it gives that back, to
// the stream and to the connection. There are some that do so each time that their
// application has read 4 KiB (golang.org/x/net/http2, flow.go).
const updateBytes = 1 << 10

// Updates is how many WINDOW_UPDATEs a frame of DATA with n bytes entitles the peer to.
func Updates(n int) int { return 2 + 2*n/updateBytes }

// Earn takes back what an event of ours justifies: DATA that we sent entitles
// the peer to updates of windows.
func (g *Guard) Earn(kind Kind, n float64) {
	g[kind].spent = max(0, g[kind].spent-n)
}

// Bucket is what was spent of one kind, and how long ago it began to count.
type Bucket struct {
	Spent float64       `json:",omitzero"`
	Age   time.Duration `json:",omitzero"`
}

// State is the guard as a plain value, one Bucket for each kind.
func (g *Guard) State() []Bucket {
	state := make([]Bucket, Kinds)
	now := time.Now()
	for i := range g {
		state[i] = g[i].state(now)
	}
	return state
}

// NewGuard goes on from a state. Kinds that it does not have begin anew.
func NewGuard(state []Bucket) (g Guard) {
	now := time.Now()
	for i := range state[:min(len(state), len(g))] {
		g[i] = state[i].tokens(rates[i].burst, now)
	}
	return g
}

// keyUpdateRate is in KeyUpdates per second, keyUpdateBurst how many may come at
// once. Honest peers send one in 2^24 records or so, which is minutes of a fast
// connection (RFC 8446 section 5.5).
const keyUpdateRate, keyUpdateBurst = 0.5, 64

// keyUpdateBytes of data entitle to one more: a peer may change its key as often as it
// likes (section 4.6.3), as long as that is no more work than what it sends.
const keyUpdateBytes = 1 << 10

// KeyUpdates is a token bucket for the KeyUpdates of one TLS connection; the zero
// value is full. It is used by one goroutine.
type KeyUpdates struct{ t tokens }

// Spend counts one, and says whether it may be.
func (k *KeyUpdates) Spend() bool { return k.t.spend(keyUpdateRate, keyUpdateBurst) }

// Earn takes back what n bytes of data that came entitle to.
func (k *KeyUpdates) Earn(n int) { k.t.spent = max(0, k.t.spent-float64(n)/keyUpdateBytes) }

// State is the bucket as a plain value.
func (k *KeyUpdates) State() Bucket { return k.t.state(time.Now()) }

// NewKeyUpdates goes on from a state.
func NewKeyUpdates(b Bucket) KeyUpdates { return KeyUpdates{b.tokens(keyUpdateBurst, time.Now())} }
