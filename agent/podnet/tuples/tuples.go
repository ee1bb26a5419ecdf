// Package tuples knows the connections between the agent and a pod's
// applications, by their addresses: those tuples are exempt from redirection for
// as long as the connection lives, and no longer. It asks others to change the
// kernel's table.
//
// A Set is safe for concurrent use.
package tuples

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Tuple is one connection of the agent to a pod's application.
type Tuple struct{ Client, App netip.AddrPort }

// Set is a pod's passthru tuples, from before connect until the connection
// is closed. Others have its socket, in the end in another process: that it is
// closed is found out by looking at the kernel's list of sockets.
type Set struct {
	mu         sync.Mutex
	connecting map[Tuple]bool
	// adrift are those of connections that were made, here or elsewhere: nobody
	// tells when their sockets are gone.
	adrift       map[Tuple]bool
	lookedAt     time.Time
	pause        time.Duration // until the next look
	driftedSince int           // since lookedAt
}

// Claim takes a tuple unless it is in use.
func (s *Set) Claim(t Tuple) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connecting[t] || s.adrift[t] {
		return false
	}
	if s.connecting == nil {
		s.connecting = map[Tuple]bool{}
	}
	s.connecting[t] = true
	return true
}

// Release gives a claimed tuple back.
func (s *Set) Release(t Tuple) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.connecting, t)
}

// Hold says that a claimed tuple's connection is up, and given away.
func (s *Set) Hold(t Tuple) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.connecting, t)
	s.drift(t)
}

// drift makes a tuple one whose socket has to be looked for; mu is held.
func (s *Set) drift(t Tuple) {
	if s.adrift == nil {
		s.adrift = map[Tuple]bool{}
	}
	s.adrift[t] = true
	s.driftedSince++
}

// Len counts the tuples.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.connecting) + len(s.adrift)
}

// Inherit takes over those of the tuples in the kernel, client and app each, that
// another agent has entered.
func (s *Set) Inherit(entered [][2]netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entered {
		t := Tuple{Client: e[0], App: e[1]}
		if !s.connecting[t] {
			s.drift(t)
		}
	}
}

// The sockets of a pod are listed this often for the tuples that are adrift; less
// and less often, to once in lookAtLeast, while they stay the same and all live,
// since a list of thousands costs; and after lookAtMost when there are many new
// ones: the kernel's table is bounded.
const (
	LookEvery   = 5 * time.Second
	lookAtLeast = 30 * time.Second
	lookAtMost  = time.Second
	manyNew     = 2048
)

// Due returns the tuples that are adrift when it is time to look for their
// sockets.
func (s *Set) Due() []Tuple {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driftedSince > 0 {
		s.pause = LookEvery
	}
	quiet := time.Since(s.lookedAt)
	if len(s.adrift) == 0 || quiet < s.pause && (quiet < lookAtMost || s.driftedSince < manyNew) {
		return nil
	}
	s.lookedAt, s.driftedSince = time.Now(), 0
	s.pause = min(2*s.pause, lookAtLeast) // unless one is forgotten
	return slices.Collect(maps.Keys(s.adrift))
}

// Forget calls forget for a tuple that is adrift, and lets it go when that
// worked; otherwise it is due again.
func (s *Set) Forget(t Tuple, forget func(Tuple) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := forget(t); err != nil {
		return err
	}
	delete(s.adrift, t)
	s.pause = LookEvery
	return nil
}
