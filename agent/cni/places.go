package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Place is where one pod of this node runs.
type Place struct {
	Key mesh.Key
	// UID is the pod's; "" when nobody has said it.
	UID string
	// Sandbox is the runtime's name for it: a pod that is made anew has another.
	Sandbox string
	// NetNS is the path of the network namespace, Namespace what it led to.
	NetNS     string
	Namespace netns.ID
	// Addresses are what the cluster's CNI gave it; empty when nobody has said.
	Addresses []netip.Addr
	// Created is when the runtime made the sandbox.
	Created time.Time
}

// What the runtime has not shown yet is kept for so long; what it has shown to
// be deleted is not believed again for so long.
const grace = 2 * time.Minute

// entry is a Place, and how it is known.
type entry struct {
	Place
	// verified by the runtime and the kernel; if not, added is when it was asked for.
	verified bool
	added    time.Time
}

// Places knows where the pods of this node run, in the mesh or not. The zero
// value is not ready: use NewPlaces. It is safe for concurrent use.
type Places struct {
	mu      sync.Mutex
	byKey   map[mesh.Key]*entry
	deleted map[string]time.Time // by sandbox
	synced  bool
	changed chan struct{}
}

// NewPlaces knows no pod yet.
func NewPlaces() *Places {
	return &Places{byKey: map[mesh.Key]*entry{}, deleted: map[string]time.Time{}, changed: make(chan struct{})}
}

// Find returns where a pod runs. A pod of the same name that had another UID is
// another pod.
func (p *Places) Find(w *mesh.Workload) (netNS string, addrs []netip.Addr, ok bool) {
	place, ok := p.Get(w.Key)
	if !ok || another(w, place.UID) {
		return "", nil, false
	}
	return place.NetNS, place.Addresses, true
}

// another reports whether a workload is surely not the pod of this UID.
func another(w *mesh.Workload, uid string) bool {
	return w.UID != "" && uid != "" && w.UID != uid
}

// Get returns a pod's place.
func (p *Places) Get(key mesh.Key) (Place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.byKey[key]
	if !ok {
		return Place{}, false
	}
	return e.Place, true
}

// Synced reports whether the runtime was asked successfully once: from then on
// a pod that is not here does not run.
func (p *Places) Synced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

// Changed returns a channel that the next change closes. Take it before looking.
func (p *Places) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// signal wakes whoever waits; mu is held.
func (p *Places) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Put remembers a place that the runtime asks about, and reports whether it was
// here already. It refuses one whose namespace is another pod's, and one that
// the runtime and the kernel have shown to be another pod's.
func (p *Places) Put(place Place) (before bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.unclaimed(place); err != nil {
		return false, err
	}
	e, known := p.byKey[place.Key]
	if known && e.Sandbox == place.Sandbox {
		switch {
		case e.verified && place.UID != "" && e.UID != place.UID:
			return true, fmt.Errorf("sandbox %s is that of the pod with the UID %s, not %s", place.Sandbox, e.UID, place.UID)
		case e.verified && e.Namespace != place.Namespace:
			return true, fmt.Errorf("sandbox %s has its processes in another network namespace than %s", place.Sandbox, place.NetNS)
		case e.Namespace == place.Namespace:
			return true, nil
		}
	}
	delete(p.deleted, place.Sandbox)
	p.byKey[place.Key] = &entry{Place: place, added: time.Now()}
	p.signal()
	return known && e.Sandbox == place.Sandbox, nil
}

// unclaimed refuses a namespace that another live pod has; mu is held. The
// kernel uses an inode again, so that a path which no longer leads there counts
// for nothing.
func (p *Places) unclaimed(place Place) error {
	for key, e := range p.byKey {
		if e.Namespace == place.Namespace && key != place.Key && leadsTo(e.NetNS, e.Namespace) {
			return fmt.Errorf("network namespace %s is pod %s's", place.NetNS, key)
		}
	}
	return nil
}

// Forget drops a sandbox that the runtime deletes, and reports whether it was
// here. That of the pod's next sandbox stays.
func (p *Places) Forget(sandbox string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deleted[sandbox] = time.Now()
	for key, e := range p.byKey {
		if e.Sandbox == sandbox {
			delete(p.byKey, key)
			p.signal()
			return true
		}
	}
	return false
}

// Update makes the places equal to what the runtime runs, verified. Those that
// were asked for a moment ago stay: a runtime shows a sandbox when it is whole.
// One that is shown no more stays, too, while its network namespace is there: a
// runtime that has just been started again may have lost sight of it, and it must
// not be opened for that. It returns what it had to correct, in words.
func (p *Places) Update(running []Place) (corrected []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, changed := time.Now(), !p.synced
	p.synced = true
	seen := map[mesh.Key]bool{}
	slices.SortFunc(running, func(a, b Place) int { return b.Created.Compare(a.Created) }) // the newest has the name
	for _, place := range running {
		if _, gone := p.deleted[place.Sandbox]; gone || seen[place.Key] {
			continue
		}
		e, known := p.byKey[place.Key]
		switch {
		case known && e.Sandbox == place.Sandbox && e.Namespace == place.Namespace:
			// The path stays: what serves the pod must not take it for a move.
			place.NetNS = e.NetNS
			if len(e.Addresses) > 0 {
				place.Addresses = e.Addresses
			}
			changed = changed || len(e.Addresses) != len(place.Addresses) || e.UID != place.UID
		case known && e.Sandbox == place.Sandbox:
			corrected = append(corrected, fmt.Sprintf("pod %s was asked for with %s, and runs in %s", place.Key, e.NetNS, place.NetNS))
			changed = true
		case known && !e.verified && now.Sub(e.added) < grace:
			seen[place.Key] = true
			continue // its next sandbox is being made
		default:
			changed = true
		}
		seen[place.Key] = true
		p.byKey[place.Key] = &entry{Place: place, verified: true}
	}
	for key, e := range p.byKey {
		if !seen[key] && (e.verified || now.Sub(e.added) >= grace) && !leadsTo(e.NetNS, e.Namespace) {
			delete(p.byKey, key)
			changed = true
		}
	}
	for sandbox, at := range p.deleted {
		if now.Sub(at) >= grace {
			delete(p.deleted, sandbox)
		}
	}
	if changed {
		p.signal()
	}
	return corrected
}
