// Package draft writes AuthorizationPolicies from who needs to be admitted to what, and says
// where waypoints send who came to them. It decides nothing, and what it returns is the caller's.
package draft

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Policy is one that is suggested, and how many connections, or flows over UDP, each of its
// rules is for.
type Policy struct {
	Policy *v1alpha1.AuthorizationPolicy `json:"policy"`
	Counts []uint64                      `json:"counts"`
}

// Client is who may come: a service account, NAME or NAMESPACE/NAME, or another identity,
// or a block of addresses.
type Client struct{ Account, Identity, Block string }

// Named is how a policy of a namespace names who has an identity: short where a service account of the trust domain has it.
func Named(trustDomain spiffeid.TrustDomain, who spiffeid.ID, namespace string) Client {
	id, ns := who.String(), mesh.NamespaceOf(trustDomain, who)
	switch account := id[strings.LastIndexByte(id, '/')+1:]; ns {
	case "":
		return Client{Identity: id}
	case namespace:
		return Client{Account: account}
	default:
		return Client{Account: ns + "/" + account}
	}
}

func compareClients(a, b Client) int {
	return cmp.Or(strings.Compare(a.Account, b.Account), strings.Compare(a.Identity, b.Identity), strings.Compare(a.Block, b.Block))
}

// Group is the workloads that one policy selects, and who needs to be admitted to them.
type Group struct {
	// Owners are the names of what owns the workloads, sorted.
	Owners   []string
	Members  []*mesh.Workload
	selector map[string]string
	// TCP and UDP are who needs to be admitted over either.
	TCP, UDP Needs
}

// Needs are how often each client needs to be admitted to each port.
type Needs map[Client]map[uint16]uint64

// Add notes that a client is to be admitted to a port, for so many connections.
func (n Needs) Add(from Client, port uint16, count uint64) { n.set(from, port, n[from][port]+count) }

func (n Needs) set(from Client, port uint16, count uint64) {
	if n[from] == nil {
		n[from] = map[uint16]uint64{}
	}
	n[from][port] = count
}

// Has reports whether a client is to be admitted to a port.
func (n Needs) Has(from Client, port uint16) bool {
	_, ok := n[from][port]
	return ok
}

// Cover adds what others need that counted the same: of either's number the larger.
func (n Needs) Cover(others Needs) {
	for from, ports := range others {
		for port, count := range ports {
			n.set(from, port, max(n[from][port], count))
		}
	}
}

// Least returns one of the needs, the same of equal Needs; none when there is none.
func (n Needs) Least() Needs {
	for _, from := range slices.SortedFunc(maps.Keys(n), compareClients) {
		port := slices.Min(slices.Collect(maps.Keys(n[from])))
		return Needs{from: {port: n[from][port]}}
	}
	return nil
}

// Admit notes for the groups of a workload that it is to admit a client over TCP.
func Admit(groups []*Group, from Client, w *mesh.Workload, port uint16, count uint64) {
	for _, g := range groups {
		if slices.Contains(g.Members, w) {
			g.TCP.Add(from, port, count)
		}
	}
}

// Groups parts the enrolled workloads of a namespace by what owns them, as far as labels
// do: two that no label tells apart are one. ownerOf is of a workload's name.
func Groups(workloads []*mesh.Workload, namespace string, ownerOf func(mesh.Key) mesh.Key) []*Group {
	byOwner := map[string]*Group{}
	var all []*mesh.Workload
	for _, w := range workloads {
		if w.Namespace == namespace && w.Enrolled {
			owner := ownerOf(w.Key).Name
			if byOwner[owner] == nil {
				byOwner[owner] = &Group{Owners: []string{owner}, TCP: Needs{}, UDP: Needs{}}
			}
			byOwner[owner].Members = append(byOwner[owner].Members, w)
			all = append(all, w)
		}
	}
	groups := slices.SortedFunc(maps.Values(byOwner), func(a, b *Group) int { return strings.Compare(a.Owners[0], b.Owners[0]) })
	for i := 0; i < len(groups); i++ {
		g := groups[i]
		labels := shared(g.Members)
		picked := selected(all, labels)
		if len(picked) == len(g.Members) {
			g.selector = shortest(all, labels, len(picked))
			continue
		}
		for k, other := range groups { // no label tells these apart
			if k != i && slices.ContainsFunc(picked, func(w *mesh.Workload) bool { return slices.Contains(other.Members, w) }) {
				g.Owners = append(g.Owners, other.Owners...)
				g.Members = append(g.Members, other.Members...)
				groups = slices.Delete(groups, k, k+1)
				break
			}
		}
		slices.Sort(g.Owners)
		i = -1 // what was whole may not be any more
	}
	return groups
}

// shared are the labels that all workloads have, without those that change with each
// version of them.
func shared(workloads []*mesh.Workload) map[string]string {
	labels := maps.Clone(workloads[0].Labels)
	for _, key := range []string{"pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
		"app.kubernetes.io/version", "helm.sh/chart", v1alpha1.LabelMesh} {
		delete(labels, key)
	}
	for _, w := range workloads[1:] {
		maps.DeleteFunc(labels, func(k, v string) bool { return w.Labels[k] != v })
	}
	return labels
}

func selected(all []*mesh.Workload, labels map[string]string) []*mesh.Workload {
	p := mesh.Policy{Key: all[0].Key, Selector: labels}
	return slices.Collect(func(yield func(*mesh.Workload) bool) {
		for _, w := range all {
			if p.Selects(w.Namespace, w.Labels) && !yield(w) {
				return
			}
		}
	})
}

// shortest is one label that picks as many as all of them do, where there is one:
// one of those that people use for it, or the first.
func shortest(all []*mesh.Workload, labels map[string]string, n int) map[string]string {
	usual := []string{"app.kubernetes.io/name", "app", "k8s-app", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
	for _, key := range append(usual, slices.Sorted(maps.Keys(labels))...) {
		value, ok := labels[key]
		one := map[string]string{key: value}
		if ok && len(selected(all, one)) == n {
			return one
		}
	}
	return labels
}

func empty(namespace, name string, selector map[string]string) *v1alpha1.AuthorizationPolicy {
	p := &v1alpha1.AuthorizationPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "AuthorizationPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
	}
	if len(selector) > 0 {
		p.Spec.Selector = &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{}}
		for key, value := range selector {
			p.Spec.Selector.MatchLabels[key] = v1alpha1.LabelValue(value)
		}
	}
	return p
}

// Closed is a policy that admits nobody to any workload of a namespace.
func Closed(namespace, name string) Policy { return Policy{Policy: empty(namespace, name, nil)} }

// OverUDP reports whether a rule is about UDP.
func (p *Policy) OverUDP(rule int) bool {
	rules := p.Policy.Spec.Rules
	return rule < len(rules) && len(rules[rule].To) > 0 && rules[rule].To[0].Protocol != nil
}

// Write writes a document of YAML, with what each rule is for.
func (p *Policy) Write(out io.Writer) error {
	text, err := yaml.Marshal(p.Policy)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("---\n")
	for i, n := range p.Counts {
		what := "connection"
		if p.OverUDP(i) {
			what = "flow"
		}
		if n != 1 {
			what += "s"
		}
		fmt.Fprintf(&b, "# rules[%d]: %d %s\n", i, n, what)
	}
	b.Write(strip(text))
	_, err = io.WriteString(out, b.String())
	return err
}

// strip leaves out what only a cluster fills in.
func strip(text []byte) []byte {
	var kept []string
	for line := range strings.Lines(string(text)) {
		if line == "  creationTimestamp: null\n" {
			continue
		}
		if line == "status: {}\n" {
			break
		}
		kept = append(kept, line)
	}
	return []byte(strings.Join(kept, ""))
}
