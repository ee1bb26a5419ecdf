// Package standing is what a server of configuration knows of those that it serves: who is
// connected, what each has applied, and since when it has lacked something. It streams
// nothing.
//
// A Book is safe for concurrent use.
package standing

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Status is what the server knows of one node's agent, or of one pod of a waypoint.
type Status struct {
	Node string
	// Waypoint and Replica are as those of its caller.
	Waypoint mesh.Key
	Replica  string
	// Connected is the number of live streams: 2 for a moment while one agent
	// takes over from another.
	Connected int
	// Since is when the newest stream began, or when the last one ended.
	Since time.Time
	// Revision and Epoch are the newest that the node has applied; zero until
	// it says so.
	Revision string
	Epoch    uint64
	// Commit is the version of the commit that it has applied, as it said itself.
	Commit string
	// AppliedAt is when it said so.
	AppliedAt time.Time
	// BehindSince is since when it has lacked something: when what followed Revision was
	// published, however much has been since; zero when it has applied the newest.
	BehindSince time.Time
	// LastError is the node's newest refusal; "" after it applied one.
	LastError string
}

// Behind is for how long it has lacked something; 0 when it does not, and never of one that
// does.
func (s *Status) Behind() time.Duration {
	if s.BehindSince.IsZero() {
		return 0
	}
	return max(time.Since(s.BehindSince), 1)
}

// Next is the publication that follows the newest.
type Next struct {
	// Published is closed when it is there.
	Published chan struct{}
	at        time.Time // when that was; to be read from then on
}

// NewNext returns one that is not there yet.
func NewNext() *Next { return &Next{Published: make(chan struct{})} }

// BehindSince is since when one lacks something that has applied what n follows; zero when
// it lacks nothing.
func (n *Next) BehindSince() time.Time {
	select {
	case <-n.Published:
		return n.at
	default:
		return time.Time{}
	}
}

// maxNodes bounds the memory for nodes that are gone.
const maxNodes = 20_000

// Book has the Status of each.
type Book struct {
	mu     sync.Mutex
	byName map[key]*Status // guarded by mu
}

// key names whom a Status is of.
type key struct{ node, replica string }

// NewBook returns an empty one.
func NewBook() *Book { return &Book{byName: map[key]*Status{}} }

// Publish notes that a publication is there: whoever lacked nothing lacks it.
func (b *Book) Publish(n *Next) {
	n.at = time.Now()
	close(n.Published)
	// After the channel: one that applies what came before at this very moment either sees
	// it closed, or is seen here.
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.byName {
		if s.BehindSince.IsZero() {
			s.BehindSince = n.at
		}
	}
}

// All returns those of whom of says so, sorted by name.
func (b *Book) All(of func(*Status) bool) []Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]Status, 0, len(b.byName))
	for _, s := range b.byName {
		if of(s) {
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Replica, b.Replica))
	})
	return all
}

// Update changes the Status of one, which is new when there is none. It makes room by
// forgetting the one that has been away longest.
func (b *Book) Update(node, replica string, waypoint mesh.Key, update func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := key{node, replica}
	s := b.byName[at]
	if s == nil {
		if len(b.byName) >= maxNodes {
			b.forgetLocked()
		}
		s = &Status{Node: node, Waypoint: waypoint, Replica: replica}
		b.byName[at] = s
	}
	update(s)
}

func (b *Book) forgetLocked() {
	var oldest key
	for name, s := range b.byName {
		if s.Connected == 0 && (oldest == key{} || s.Since.Before(b.byName[oldest].Since)) {
			oldest = name
		}
	}
	delete(b.byName, oldest)
}
