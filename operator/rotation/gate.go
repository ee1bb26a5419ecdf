package rotation

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// Node is a node that matters: its agent holds certificates, or trusts some.
type Node struct {
	Name string
	// Connected says whether its agent reports to any replica, Since since when,
	// or since when not; zero when it is not known.
	Connected bool
	Since     time.Time
	// Report is the last; nil when there is none.
	Report *meshpb.TrustReport
}

// Replica is another replica of the operator: what it trusts and signs by, or why
// that is not known.
type Replica struct {
	Name   string
	Roots  [][]byte // SHA-256
	Issuer []byte   // SHA-256
	Err    error
	// Problem is what it says of its authority; "" when nothing is amiss.
	Problem string
}

// Fleet is everybody who matters.
type Fleet struct {
	Nodes    []Node
	Replicas []Replica
	// Overlap is how long a new root is trusted here before it signs, for those of other
	// trust domains who ask for the bundle now and then; zero when nobody can.
	Overlap time.Duration
	// Even is since when no replica has been behind, as far as that has been looked at: one
	// that is gives out the bundle of before. Zero when that is not known.
	Even time.Time
	// Waypoints is how long a new root is known before it signs, for waypoints, which
	// report no roots; zero when there are none.
	Waypoints time.Duration
}

// partReplica is the Part of a replica that is behind.
const partReplica = "replica"

// Wait is who holds a rotation, and why.
type Wait struct {
	Part, Name, Reason string
	// Forcible says whether Force goes on without.
	Forcible bool
}

// Progress is how far a stage is.
type Progress struct {
	// Nodes matter, and Done of them have reported what the stage waits for.
	Nodes, Done int
	Waiting     []Wait
}

// Progress compares what everybody has reported with what the stage means.
func (k *Keyring) Progress(f Fleet) Progress {
	var p Progress
	if !k.Active() {
		return p
	}
	roots, issuer := sums(k.Signing.Roots()), sha256.Sum256(k.Signing.Signing().Raw)
	left := f.Overlap - min(time.Since(k.Since), time.Since(f.Even))
	if left := f.Waypoints - time.Since(k.Since); k.Stage == StageDistribute && left > 0 {
		p.Waiting = append(p.Waiting, Wait{Part: "waypoint", Name: "roots", Reason: fmt.Sprintf("waypoints have another %v to learn of the new root", left.Round(time.Second))})
	}
	for _, r := range f.Replicas {
		if why := behind(r, roots, issuer[:]); why != "" {
			left = f.Overlap
			p.Waiting = append(p.Waiting, Wait{Part: partReplica, Name: r.Name, Reason: why})
		}
	}
	if k.Stage == StageDistribute && left > 0 {
		p.Waiting = append(p.Waiting, Wait{Part: "bundle", Name: "endpoint", Reason: fmt.Sprintf("other trust domains have another %v to ask for the new root", left.Round(time.Second))})
	}
	for _, n := range f.Nodes {
		if slices.Contains(k.Without, n.Name) {
			continue
		}
		p.Nodes++
		why := k.lacks(n, roots, issuer[:])
		if why == "" {
			p.Done++
			continue
		}
		p.Waiting = append(p.Waiting, Wait{Part: "node", Name: n.Name, Reason: why, Forcible: !n.Connected})
	}
	slices.SortFunc(p.Waiting, func(a, b Wait) int { return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Name, b.Name)) })
	return p
}

// behind says why a replica is not yet in this stage.
func behind(r Replica, roots [][]byte, issuer []byte) string {
	switch {
	case r.Err != nil:
		return fmt.Sprintf("does not answer: %v; remedy: mend it, or delete its pod", r.Err)
	case !sameSet(r.Roots, roots) || !bytes.Equal(r.Issuer, issuer):
		return "has not taken the newest keys yet"
	}
	return ""
}

// lacks says what a node has not reported yet, and what to do about it.
func (k *Keyring) lacks(n Node, roots [][]byte, issuer []byte) string {
	switch {
	case !n.Connected:
		since := ""
		if !n.Since.IsZero() {
			since = " since " + n.Since.UTC().Format(time.RFC3339)
		}
		return "its agent is not connected" + since + "; remedy: start it, remove the node if it is gone for good, or go on without (`heddle certs rotate --force`)"
	case n.Report == nil:
		return "its agent has not reported; if it stays so, the agent is of a version before: upgrade it"
	case !sameSet(n.Report.GetRoots(), roots):
		return fmt.Sprintf("trusts other roots (%d) than these (%d)", len(n.Report.GetRoots()), len(roots))
	case k.Stage != StageReissue:
		return ""
	}
	before, example, failure := 0, "", ""
	for _, c := range n.Report.GetCertificates() {
		if bytes.Equal(c.GetIssuer(), issuer) {
			continue
		}
		if before++; example == "" || failure == "" {
			example, failure = c.GetIdentity(), c.GetError()
		}
	}
	if before == 0 {
		return ""
	}
	why := fmt.Sprintf("%d of its %d certificates are not of the new issuer yet, such as %s", before, len(n.Report.GetCertificates()), example)
	if failure != "" {
		why += ": " + failure
	}
	return why
}

func sameSet(a, b [][]byte) bool {
	sort := func(all [][]byte) [][]byte { return slices.SortedFunc(slices.Values(all), bytes.Compare) }
	return slices.EqualFunc(sort(a), sort(b), bytes.Equal)
}
