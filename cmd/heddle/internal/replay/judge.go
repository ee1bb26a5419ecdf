package replay

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Decision is what becomes of a connection, and who decides it.
type Decision struct {
	// Verdict is "allow" or "deny", Reason one of mesh.Reasons.
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	// Policy is NAMESPACE/NAME, Rule its rule from 0; "" and -1 when none decides.
	Policy string `json:"policy,omitempty"`
	Rule   int    `json:"rule"`
}

func (d Decision) denied() bool { return d.Verdict == "deny" }

// why is why a connection cannot be judged.
type why string

// The reasons why one cannot be judged.
const (
	judged        why = ""
	goneServer    why = "the destination is gone, and nothing has taken its place"
	unknownClient why = "the client's address was not kept, as there were too many"
	manyPorts     why = "which ports they went to, or where at all, was not kept, as there were too many"
	goneClient    why = "the client was in no mesh, and is gone"
	byRequest     why = "it depends on the request: policies about requests are asked at the waypoint"
	several       why = "the destination is gone, and those that took its place do not decide alike"
)

// maxStandIns bounds the workloads that are asked in place of one that is gone.
const maxStandIns = 8

// judge decides connections by one model.
type judge struct {
	model  *explain.Model
	owners map[mesh.Key][]*mesh.Workload // by namespace and owner
}

func newJudge(m *explain.Model) *judge {
	j := &judge{model: m, owners: map[mesh.Key][]*mesh.Workload{}}
	for _, w := range m.Workloads() {
		key := ownerOf(w.Key)
		j.owners[key] = append(j.owners[key], w)
	}
	return j
}

// ownerOf takes off a pod's name what its Deployment, DaemonSet or StatefulSet has put
// behind its own: those of a Deployment have two random parts, of the letters that
// Kubernetes uses (k8s.io/apimachinery/pkg/util/rand).
func ownerOf(pod mesh.Key) mesh.Key {
	if m := podName.FindStringSubmatch(pod.Name); m != nil {
		pod.Name = m[1]
	}
	return pod
}

var podName = regexp.MustCompile(`^(.+?)(-[bcdf-hj-np-tv-xz2456789]{6,10}-[bcdf-hj-np-tv-xz2456789]{5}|-[bcdf-hj-np-tv-xz2456789]{5}|-[0-9]{1,4})$`)

// decide says what becomes of a connection now.
func (j *judge) decide(c *connection) (Decision, why) {
	if c.port == 0 {
		return Decision{}, manyPorts
	}
	src, client, unclear := j.client(c)
	if unclear != judged {
		return Decision{}, unclear
	}
	if c.destination.workload == (mesh.Key{}) {
		a := j.model.Out(src, client, netip.AddrPortFrom(c.destination.address, c.port))
		d := Decision{Verdict: a.Verdict, Reason: a.Reason, Rule: -1}
		if a.Verdict == "mixed" { // some of a service's workloads
			d.Verdict = "deny"
		}
		if len(a.Requests) > 0 && a.Verdict == "allow" {
			return d, byRequest
		}
		for _, e := range a.Endpoints {
			if e.Verdict == d.Verdict && e.Reason == d.Reason {
				return decisionOf(&e), judged
			}
		}
		return d, judged
	}
	servers := j.servers(c)
	if len(servers) == 0 {
		return Decision{}, goneServer
	}
	var first Decision
	for i, w := range servers {
		behind := j.behind(c, w)
		e := j.model.At(src, client, w, c.port, behind)
		d := decisionOf(&e)
		switch {
		case j.dependsOnRequest(c, src, d, behind):
			return d, byRequest
		case i == 0:
			first = d
		case d.Verdict != first.Verdict:
			return Decision{}, several
		}
	}
	return first, judged
}

// dependsOnRequest reports whether policies about requests are asked at a waypoint: of a connection
// that went to it, or would go to it, as what went to the service's workloads by its name would.
func (j *judge) dependsOnRequest(c *connection, src *mesh.Workload, d Decision, behind netip.AddrPort) bool {
	if behind.IsValid() {
		return !d.denied() && len(j.model.Requests(src, behind)) > 0
	}
	s, ok := j.model.Service(c.service)
	return ok && s.HasWaypoint() && d.Reason == mesh.ReasonRequestUnseen.String()
}

// behind returns the address and port of the service for which a connection went to w as
// its waypoint; zero where it went to w itself.
func (j *judge) behind(c *connection, w *mesh.Workload) netip.AddrPort {
	s, ok := j.model.Service(c.service)
	if !ok || s.Waypoint == (mesh.Key{}) {
		return netip.AddrPort{}
	}
	for _, addr := range slices.Concat(s.Addresses, s.External) {
		if at := netip.AddrPortFrom(addr, c.port); j.model.Behind(at, w.Key) != nil {
			return at
		}
	}
	return netip.AddrPort{}
}

func decisionOf(e *explain.Endpoint) Decision {
	d := Decision{Verdict: e.Verdict, Reason: e.Reason, Policy: e.Policy, Rule: -1}
	if e.Rule != nil {
		d.Rule = *e.Rule
	}
	return d
}

// client returns who connects: the workload, or one of its kind when it is gone, or
// one that has its identity and nothing else; nil for a client that is in no mesh.
func (j *judge) client(c *connection) (*mesh.Workload, netip.Addr, why) {
	of := func(w *mesh.Workload) (*mesh.Workload, netip.Addr, why) {
		addr := c.source.address
		if len(w.Addresses) > 0 && !w.HasAddress(addr) {
			addr = w.Addresses[0]
		}
		return w, addr, judged
	}
	// Another mesh's workload may have the name of one of ours.
	known := c.source.workload != (mesh.Key{}) && !j.model.Foreign(c.source.identity)
	if known {
		if w, ok := j.model.Workload(c.source.workload); ok {
			return of(w)
		}
		for _, w := range j.owners[ownerOf(c.source.workload)] {
			if c.source.identity.IsZero() || w.Identity == c.source.identity {
				return of(w)
			}
		}
	}
	switch id := c.source.identity; {
	case !id.IsZero():
		w := &mesh.Workload{Key: c.source.workload, Identity: id, Enrolled: true}
		if w.Namespace == "" {
			w.Namespace = mesh.NamespaceOf(j.model.Settings().TrustDomain, id)
		}
		w.Addresses = []netip.Addr{c.source.address}
		if !c.source.address.IsValid() { // of either family
			w.Addresses = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		}
		return w, c.source.address, judged
	case known:
		return nil, netip.Addr{}, goneClient
	case !c.source.address.IsValid():
		return nil, netip.Addr{}, unknownClient
	}
	return nil, c.source.address, judged
}

// servers are the destination, or those that have taken its place.
func (j *judge) servers(c *connection) []*mesh.Workload {
	if w, ok := j.model.Workload(c.destination.workload); ok {
		return []*mesh.Workload{w}
	}
	var found []*mesh.Workload
	for _, w := range j.owners[ownerOf(c.destination.workload)] {
		if c.destination.identity.IsZero() || w.Identity == c.destination.identity {
			found = append(found, w)
		}
	}
	if s, ok := j.model.Service(c.service); ok && len(found) == 0 {
		for _, key := range s.Endpoints {
			if w, ok := j.model.Workload(key); ok {
				found = append(found, w)
			}
		}
	}
	return found[:min(len(found), maxStandIns)]
}

// name is how people know an end: by what owns the pod, or by its identity, or by
// its address.
func (p *peer) name() string {
	switch {
	case p.workload != (mesh.Key{}):
		return ownerOf(p.workload).String()
	case !p.identity.IsZero():
		return p.identity.String()
	case p.address.IsValid():
		return p.address.String()
	}
	return "clients outside the mesh"
}

// anywhere is the name of what nobody knows more of.
const anywhere = "several destinations"

// anywhere reports whether nothing is known of where they went.
func (c *connection) anywhere() bool {
	return c.destination.workload == (mesh.Key{}) && !c.destination.address.IsValid()
}

func (c *connection) to() string {
	if c.anywhere() {
		return anywhere
	}
	name := c.destination.name()
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	return name
}
