// Package judge decides about connections in plaintext as agents do: by the model that
// objects of Kubernetes compile to. Where one is refused it says all that stands in its
// way, not only what refuses it first. It reads objects, and changes nothing.
//
// A Judge belongs to one goroutine.
package judge

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Judge decides about connections to enrolled pods.
type Judge struct {
	enrolled []Pod
	asIs     *mesh.View
	// open is asIs with every port PERMISSIVE, free the same without NetworkPolicies: what
	// else stands in the way is not seen behind the first refusal.
	open, free *mesh.View
	// blocks has an address of each block that policies of a namespace name, and
	// outsiders a pod of each workload that is not enrolled.
	blocks    map[string][]Source
	outsiders []Source
	said      []*kube.Problem
	known     map[question]Verdict
}

// question is one about callers who are not known, to a port of pods that are all alike.
type question struct {
	kind string
	port uint16
	pods bool
}

// Pod is one that is enrolled.
type Pod struct {
	*corev1.Pod
	Workload *mesh.Workload
	ports    []kube.NamedPort
	kind     string // all that decides about its connections, but its node
}

// Port is the TCP port to which a name leads, as it does for services; 0 when no container
// that lives on has one of this name.
func (p *Pod) Port(name string) uint16 {
	i := slices.IndexFunc(p.ports, func(port kube.NamedPort) bool { return port.Name == name })
	if i < 0 {
		return 0
	}
	return p.ports[i].Port
}

// Callers are those who connect.
type Callers struct {
	Known []Source // none when they are not known
	// Every has all of those who are known get in; else one has to.
	Every bool
	// Pods has those who are not known be pods outside the mesh, as they may.
	Pods bool
}

// Verdict is what stands in the way of a connection, each nil or false when it does not:
// STRICT, NetworkPolicies, and all else that decides.
type Verdict struct {
	Strict          bool
	Network, Policy *mesh.Decision
}

// New compiles objects. The error says what is wrong with the Mesh: other objects that have
// a problem are in force as they are in a cluster.
func New(o *Objects) (*Judge, error) {
	known := o.podsByKey()
	compiled, err := o.compile(known)
	if err != nil {
		return nil, err
	}
	j := &Judge{blocks: o.blocks(), said: slices.Concat(compiled.Refused, compiled.Warnings), known: map[question]Verdict{}}
	if err := j.views(compiled); err != nil {
		return nil, fmt.Errorf("compile configuration: %w", err)
	}
	kinds := map[string]bool{}
	for i := range compiled.Workloads {
		w := &compiled.Workloads[i]
		p := known[w.Key]
		if w.Enrolled {
			j.enrolled = append(j.enrolled, Pod{p.of, w, p.trimmed.Ports, fmt.Sprint(w.Namespace, w.Labels, w.Mode, w.PortModes, p.trimmed.Ports)})
		} else if kind := fmt.Sprint(w.Namespace, Stable(w.Labels)); !kinds[kind] && len(w.Addresses) > 0 {
			kinds[kind] = true
			j.outsiders = append(j.outsiders, Source{Addr: w.Addresses[0]})
		}
	}
	return j, nil
}

// views makes those that are asked.
func (j *Judge) views(compiled *kube.Compiled) (err error) {
	permissive := *compiled
	permissive.Workloads = slices.Clone(compiled.Workloads)
	for i := range permissive.Workloads {
		permissive.Workloads[i].Mode, permissive.Workloads[i].PortModes = mesh.ModePermissive, nil
	}
	free := permissive
	free.Network = mesh.Network{}
	if j.asIs, err = compiled.View("as it is"); err != nil {
		return err
	}
	if j.open, err = permissive.View("PERMISSIVE"); err != nil {
		return err
	}
	j.free, err = free.View("without NetworkPolicies")
	return err
}

// Enrolled are the pods that are, sorted by key.
func (j *Judge) Enrolled() []Pod { return j.enrolled }

// Said is why an object does not do what it says, or not for every pod that it selects: one
// sentence each, which names the object that holds instead where there is one.
func (j *Judge) Said(kind string, key mesh.Key) (all []string) {
	for _, p := range j.said {
		if p.Ref == (kube.Ref{Kind: kind, Namespace: key.Namespace, Name: key.Name}) {
			all = append(all, p.Text)
		}
	}
	return all
}

// Of returns what stands in the way of callers to a port of a pod: for Every, all that does
// for any of them; else as little as there is for one. Where none is known this is somebody
// from outside, and who is in a block of addresses that policies let in, or is a pod that they
// do: what lets such in at the port was written for them.
func (j *Judge) Of(c *Callers, p *Pod, port uint16) Verdict {
	if len(c.Known) > 0 {
		return j.among(c.Known, c.Every, p, port)
	}
	asked := question{p.kind, port, c.Pods}
	v, ok := j.known[asked]
	if !ok {
		from := append([]Source{stranger()}, j.blocks[p.Namespace]...)
		if c.Pods {
			from = append(from, j.outsiders...)
		}
		v = j.among(from, false, p, port)
		j.known[asked] = v
	}
	return v
}

// among asks about callers, of which there is one at least.
func (j *Judge) among(from []Source, every bool, p *Pod, port uint16) Verdict {
	result := j.connect(p, port, from[0])
	for _, s := range from[1:] {
		if !every && result.Network == nil && result.Policy == nil {
			break // whence they come matters to no mode
		}
		next := j.connect(p, port, s)
		if every {
			result = result.and(next)
		} else if next.weight() < result.weight() {
			result = next
		}
	}
	return result
}

// connect asks the model about a connection in plaintext.
func (j *Judge) connect(p *Pod, port uint16, s Source) (v Verdict) {
	c := mesh.Connection{Source: s.Addr, Destination: p.Workload, Port: port, Node: s.Node != "" && s.Node == p.Workload.Node}
	_, d := j.asIs.Authorize(c)
	if d.Verdict != mesh.VerdictDeny {
		return v
	}
	v.Strict = d.Reason == mesh.ReasonStrictPlaintext
	if _, d := j.open.Authorize(c); d.Reason == mesh.ReasonNetworkPolicyIngress {
		v.Network = &d
	}
	if _, d := j.free.Authorize(c); d.Verdict == mesh.VerdictDeny {
		v.Policy = j.named(p.Workload, d)
	}
	return v
}

// named is a decision with the policy that is to be looked at: where none of those to ALLOW
// lets a connection in, the first. One that may, by requests, which nobody sees here, lets
// in as little, and is no more in the way of another.
func (j *Judge) named(w *mesh.Workload, d mesh.Decision) *mesh.Decision {
	for _, p := range j.asIs.Policies() {
		allows := p.Action == mesh.ActionAllow && p.Selects(w.Namespace, w.Labels)
		if allows && (d.Reason == mesh.ReasonPolicyNoMatch || d.Reason == mesh.ReasonRequestUnseen && d.Policy == p.Key) {
			d.Reason, d.Policy = mesh.ReasonPolicyNoMatch, p.Key
			break
		}
	}
	return &d
}

// and is what stands in the way of either of two callers.
func (v Verdict) and(other Verdict) Verdict {
	v.Strict = v.Strict || other.Strict
	if v.Network == nil {
		v.Network = other.Network
	}
	if v.Policy == nil || other.Final() {
		v.Policy = other.Policy
	}
	return v
}

// weight orders verdicts by what has to be done: 0 for nothing, most where no object can.
func (v *Verdict) weight() (n int) {
	for _, is := range []bool{v.Strict, v.Network != nil, v.Policy != nil, v.Final(), v.Final()} {
		if is {
			n++
		}
	}
	return n
}

// Final reports whether no object beside the others lets the connection in.
func (v *Verdict) Final() bool {
	return v.Policy != nil && v.Policy.Reason != mesh.ReasonPolicyNoMatch
}

// stranger is a client of whom nothing is known: an address of nobody's (RFC 5737).
func stranger() Source { return Source{Addr: netip.AddrFrom4([4]byte{192, 0, 2, 1})} }
