package replay

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Decision is what becomes of a connection, and who decides it.
type Decision struct {
	// Verdict is "allow" or "deny", or "mixed" when some of the workloads behind a waypoint let it in, and
	// others refuse. Reason is one of mesh.Reasons, or what a waypoint has for one.
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	// Policy is NAMESPACE/NAME, Rule its rule from 0; "" and -1 when none decides.
	Policy string `json:"policy,omitempty"`
	Rule   int    `json:"rule"`
	// Endpoint is NAMESPACE/NAME of the workload that refuses: of those of a service that datagrams
	// were sent to, or that are behind the waypoint.
	Endpoint string `json:"endpoint,omitempty"`
	// refusing are, of a mixed one, all workloads that refuse, each with a blank behind it.
	refusing string
}

func (d Decision) denied() bool { return d.Verdict == "deny" }

// less reports whether something is refused that another decision lets in.
func (d Decision) less(other Decision) bool {
	order := []string{"deny", "mixed", "allow"}
	if by := slices.Index(order, d.Verdict) - slices.Index(order, other.Verdict); by != 0 {
		return by < 0
	}
	return slices.ContainsFunc(strings.Fields(d.refusing), func(w string) bool { return !strings.Contains(other.refusing, w+" ") })
}

// why is why a connection cannot be judged.
type why string

// The reasons why one cannot be judged.
const (
	judged        why = ""
	goneServer    why = "the destination is gone, and nothing has taken its place"
	unknownClient why = "the client's address was not kept, as there were too many"
	manyPorts     why = "which ports they went to, or where at all, was not kept, as there were too many"
	goneClient    why = "the client was in no mesh, and is gone"
	goneSender    why = "the sender is gone, and no agent said who it was"
	byRequest     why = "it depends on the request: policies about requests are asked at the waypoint"
	byRouting     why = "it depends on the request: routes say to which workloads it goes, and these do not decide alike"
	partly        why = "some of the workloads behind the waypoint let it in, and others refuse it"
	nobodyBehind  why = "nobody is ready behind the waypoint"
	redirected    why = "the service that was dialled changes: nobody knows where they would go"
	several       why = "the destination is gone, and those that took its place do not decide alike"
)

// maxStandIns bounds the workloads that are asked in place of one that is gone.
const maxStandIns = 8

// judge decides connections, and datagrams, by one model.
type judge struct {
	model  *explain.Model
	now    *explain.Model                // as it is, whatever model is
	owners map[mesh.Key][]*mesh.Workload // by namespace and owner
}

// newJudge judges by a model, which a change may have made of what is now.
func newJudge(m, now *explain.Model) *judge {
	j := &judge{model: m, now: now, owners: map[mesh.Key][]*mesh.Workload{}}
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
func (j *judge) decide(c *past.Connection) (Decision, why) {
	if c.Port == 0 {
		return Decision{}, manyPorts
	}
	if c.UDP {
		return j.decideDatagram(c)
	}
	src, client, unclear := j.client(c)
	if unclear != judged {
		return Decision{}, unclear
	}
	if c.Destination.Workload == (mesh.Key{}) {
		a := j.model.Out(src, client, netip.AddrPortFrom(c.Destination.Address, c.Port))
		d := Decision{Verdict: a.Verdict, Reason: a.Reason, Rule: -1}
		if a.Verdict == "mixed" { // some of a service's workloads
			d.Verdict = "deny"
		}
		if b := a.Behind; b != nil && b.Verdict != "allow" && (a.Verdict == "allow" || a.Verdict == b.Verdict) {
			return sentOn(d, b)
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
		switch d, unclear := j.at(c, src, client, w); {
		case unclear != judged:
			return d, unclear
		case i == 0:
			first = d
		case d.Verdict != first.Verdict:
			return Decision{}, several
		}
	}
	return first, judged
}

// at says what becomes of a connection at one workload; at a waypoint, of what that sends on for it, too. What went
// to a service's workloads by its name would go to its waypoint, which sees requests.
func (j *judge) at(c *past.Connection, src *mesh.Workload, client netip.Addr, w *mesh.Workload) (Decision, why) {
	behind := j.behind(c, w)
	e := j.model.At(src, client, w, c.Port, behind)
	d := decisionOf(&e)
	if behind.IsValid() && !d.denied() {
		return sentOn(d, j.model.BehindWaypoint(src, client, behind))
	}
	s, ok := j.model.Service(c.Service)
	if !behind.IsValid() && ok && s.HasWaypoint() && d.Reason == mesh.ReasonRequestUnseen.String() {
		return d, byRequest
	}
	return d, judged
}

// sentOn is what becomes of a connection that comes to a waypoint, as hop says, by what that decides of it.
func sentOn(hop Decision, b *explain.Behind) (Decision, why) {
	switch {
	case b.Verdict == "allow":
		return hop, judged
	case b.Verdict == "request" && b.Reason == mesh.ReasonRequestUnseen.String():
		return hop, byRequest
	case b.Verdict == "request":
		return hop, byRouting
	}
	e := b.Refusing()
	if e == nil {
		return Decision{Verdict: b.Verdict, Reason: b.Reason, Rule: -1}, nobodyBehind
	}
	d := decisionOf(&explain.Endpoint{Verdict: b.Verdict, Reason: b.Reason, Policy: e.Policy, Rule: e.Rule})
	namespace, name, _ := strings.Cut(e.Workload, "/")
	d.Endpoint = ownerOf(mesh.Key{Namespace: namespace, Name: name}).String()
	if d.Verdict != "mixed" {
		return d, judged
	}
	d.refusing = b.AllRefusing()
	return d, partly
}

// behind returns the address and port of the service for which a connection went to w as
// its waypoint; zero where it went to w itself.
func (j *judge) behind(c *past.Connection, w *mesh.Workload) netip.AddrPort {
	s, ok := j.model.Service(c.Service)
	if !ok || s.Waypoint == (mesh.Key{}) {
		return netip.AddrPort{}
	}
	for _, addr := range slices.Concat(s.Addresses, s.External) {
		if at := netip.AddrPortFrom(addr, c.Port); j.model.Behind(at, w.Key) != nil {
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
func (j *judge) client(c *past.Connection) (*mesh.Workload, netip.Addr, why) {
	of := func(w *mesh.Workload) (*mesh.Workload, netip.Addr, why) {
		addr := c.Source.Address
		if len(w.Addresses) > 0 && !w.HasAddress(addr) {
			addr = w.Addresses[0]
		}
		return w, addr, judged
	}
	// Another mesh's workload may have the name of one of ours.
	known := c.Source.Workload != (mesh.Key{}) && !j.model.Foreign(c.Source.Identity)
	if known {
		if w, ok := j.model.Workload(c.Source.Workload); ok {
			if j.another(c) {
				as := *w // and not its identity, which another one had then
				as.Identity, as.Enrolled, as.Gated = c.Source.Identity, true, true
				w = &as
			}
			return of(w)
		}
		for _, w := range j.owners[ownerOf(c.Source.Workload)] {
			if c.Source.Identity.IsZero() || w.Identity == c.Source.Identity {
				return of(w)
			}
		}
	}
	switch id := c.Source.Identity; {
	case !id.IsZero():
		w := &mesh.Workload{Key: c.Source.Workload, Identity: id, Enrolled: true, Gated: true}
		if w.Namespace == "" {
			w.Namespace = mesh.NamespaceOf(j.model.Settings().TrustDomain, id)
		}
		w.Addresses = []netip.Addr{c.Source.Address}
		if !c.Source.Address.IsValid() { // of either family
			w.Addresses = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		}
		return w, c.Source.Address, judged
	case known:
		return nil, netip.Addr{}, goneClient
	case !c.Source.Address.IsValid():
		return nil, netip.Addr{}, unknownClient
	}
	return nil, c.Source.Address, judged
}

// another reports whether the workload that has the client's name now has another identity
// than the client had: its service account was changed, or the name was used again.
func (j *judge) another(c *past.Connection) bool {
	w, ok := j.now.Workload(c.Source.Workload)
	return ok && !c.Source.Identity.IsZero() && w.Identity != c.Source.Identity && !j.now.Foreign(c.Source.Identity)
}

// others are the names of clients that others have now, for people.
func (j *judge) others(all []*past.Connection) []string {
	was := map[string]string{}
	for _, c := range all {
		if j.another(c) {
			was[c.Source.Workload.String()] = c.Source.Identity.String()
		}
	}
	if len(was) == 0 {
		return nil
	}
	first := slices.Min(slices.Collect(maps.Keys(was)))
	return []string{fmt.Sprintf("%s had another identity when it connected than it has now, such as %s (%s): it is judged by the one it had", counted(uint64(len(was)), "client"), first, was[first])}
}

// servers are the destination, or those that have taken its place.
func (j *judge) servers(c *past.Connection) []*mesh.Workload {
	if w, ok := j.model.Workload(c.Destination.Workload); ok {
		return []*mesh.Workload{w}
	}
	var found []*mesh.Workload
	for _, w := range j.owners[ownerOf(c.Destination.Workload)] {
		if c.Destination.Identity.IsZero() || w.Identity == c.Destination.Identity {
			found = append(found, w)
		}
	}
	if s, ok := j.model.Service(c.Service); ok && len(found) == 0 {
		for _, key := range s.Endpoints {
			if w, ok := j.model.Workload(key); ok {
				found = append(found, w)
			}
		}
	}
	return found[:min(len(found), maxStandIns)]
}

// nameOf is how people know an end: by what owns the pod, or by its identity, or by
// its address.
func nameOf(p *past.Peer) string {
	switch {
	case p.Workload != (mesh.Key{}):
		return ownerOf(p.Workload).String()
	case !p.Identity.IsZero():
		return p.Identity.String()
	case p.Address.IsValid():
		return p.Address.String()
	}
	return "clients outside the mesh"
}

// anywhere is the name of what nobody knows more of.
const anywhere = "several destinations"

// placeOf is how people know where connections went.
func placeOf(c *past.Connection) string {
	if c.Anywhere() {
		return anywhere
	}
	name := nameOf(&c.Destination)
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	return name
}
