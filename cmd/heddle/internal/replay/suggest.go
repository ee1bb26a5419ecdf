package replay

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// DefaultDeny is the name of the policy that admits nobody.
const DefaultDeny = "default-deny"

// The bounds of the lists of an AuthorizationPolicy, as its schema has them.
const (
	maxRules    = 64
	maxSources  = 32
	maxAccounts = 256
	maxBlocks   = 64
	maxPorts    = 256
)

// Suggestion is the policies that the recorded connections need.
type Suggestion struct {
	Policies []Suggested `json:"policies"`
	// Notes are what a person has to look at.
	Notes []string `json:"notes"`
}

// Suggested is a policy, and how many connections each of its rules is for.
type Suggested struct {
	Policy *v1alpha1.AuthorizationPolicy `json:"policy"`
	Counts []uint64                      `json:"counts"`
}

// client is who may come: an identity, or an address.
type client struct{ account, identity, block string }

func compareClients(a, b client) int {
	return cmp.Or(strings.Compare(a.account, b.account), strings.Compare(a.identity, b.identity), strings.Compare(a.block, b.block))
}

// Suggest writes, for each workload of a namespace, the policy that admits those that
// reached it and are allowed to now, and no others; and one that admits nobody for
// the rest, unless open is set.
func Suggest(m *explain.Model, h *History, namespace string, open bool) (*Suggestion, error) {
	all, err := h.connections()
	if err != nil {
		return nil, err
	}
	out := &Suggestion{Policies: []Suggested{}, Notes: []string{}}
	groups := groupsOf(m, namespace)
	if len(groups) == 0 {
		return nil, fmt.Errorf("namespace %q has no workload in the mesh: `heddle enroll %s` first", namespace, namespace)
	}
	if !open {
		out.Policies = append(out.Policies, Suggested{policy(namespace, DefaultDeny, nil), nil})
	}
	j := newJudge(m)
	for _, c := range all {
		if c.destination.workload.Namespace != namespace && !c.anywhere() || c.carried() == 0 {
			continue
		}
		decision, unclear := j.decide(c)
		if unclear == judged && !decision.denied() {
			unclear = admit(j, groups, c)
		}
		if unclear != judged {
			out.Notes = append(out.Notes, fmt.Sprintf("%s of %s to %s not considered: %s", counted(c.carried(), "connection"), c.source.name(), to(who(&c.destination, c), c.port), unclear))
		}
	}
	for _, g := range groups {
		if p := g.policy(namespace); len(p.Counts) > 0 {
			out.Policies = append(out.Policies, p)
			if len(p.Counts) > maxRules {
				out.Notes = append(out.Notes, fmt.Sprintf("AuthorizationPolicy %s/%s has more than the %d rules that a cluster takes: split it", namespace, p.Policy.Name, maxRules))
			}
		} else if !open && !g.aboutRequests(m) {
			out.Notes = append(out.Notes, fmt.Sprintf("nobody has reached %s: %s closes it", strings.Join(g.owners, ", "), DefaultDeny))
		}
	}
	for _, p := range m.Policies() {
		suggested := func(s Suggested) bool { return s.Policy.Name == p.Name }
		if p.Namespace == namespace && p.AboutRequests() {
			out.Notes = append(out.Notes, fmt.Sprintf("AuthorizationPolicy %s is about requests, of which connections tell nothing: it stays, and nothing is suggested in its place", p.Key))
			continue
		}
		if p.Namespace == namespace && p.Action == mesh.ActionAllow && !slices.ContainsFunc(out.Policies, suggested) {
			out.Notes = append(out.Notes, fmt.Sprintf("AuthorizationPolicy %s admits what it did: try to do without, with --delete AuthorizationPolicy/%s", p.Key, p.Key))
		}
	}
	slices.Sort(out.Notes)
	out.Notes = slices.Compact(out.Notes)
	return out, nil
}

// admit notes that a connection is to be let in.
func admit(j *judge, groups []*selection, c *connection) why {
	servers := j.servers(c)
	if len(servers) == 0 {
		return goneServer
	}
	src, addr, unclear := j.client(c)
	if unclear != judged {
		return unclear
	}
	from := client{}
	switch {
	case src != nil && src.Enrolled:
		from.identity = src.Identity.String()
		// The short form is for identities that a service account of this mesh has.
		ns := mesh.NamespaceOf(j.model.Settings().TrustDomain, src.Identity)
		if account := from.identity[strings.LastIndexByte(from.identity, '/')+1:]; ns != "" {
			from = client{account: ns + "/" + account}
			if ns == servers[0].Namespace {
				from.account = account
			}
		}
	case addr.IsValid():
		from.block = netip.PrefixFrom(addr, addr.BitLen()).String()
	default:
		return unknownClient
	}
	need := func(w *mesh.Workload, port uint16) {
		for _, g := range groups {
			if slices.Contains(g.members, w) {
				g.need(from, port, c.carried())
			}
		}
	}
	for _, w := range servers {
		switch behind := j.behind(c, w); {
		case behind.IsValid(): // the waypoint asks about the client, for one of the service's own
			past := j.model.Past(src, behind)
			for _, own := range past.Candidates {
				need(own, past.PortOf(own))
			}
			return judged
		case src != nil && j.model.SentOn(w, src.Identity, c.port): // nobody asks about the waypoint
		default:
			need(w, c.port)
		}
	}
	return judged
}

// selection is the workloads that one policy selects.
type selection struct {
	owners   []string
	members  []*mesh.Workload
	selector map[string]string
	ports    map[client]map[uint16]uint64
}

// aboutRequests reports whether policies about requests select any of the workloads.
func (g *selection) aboutRequests(m *explain.Model) bool {
	return slices.ContainsFunc(g.members, m.View.AboutRequests)
}

func (g *selection) need(from client, port uint16, count uint64) {
	if g.ports[from] == nil {
		g.ports[from] = map[uint16]uint64{}
	}
	g.ports[from][port] += count
}

// groupsOf parts a namespace's workloads by what owns them, as far as labels do: two
// that no label tells apart are one.
func groupsOf(m *explain.Model, namespace string) []*selection {
	byOwner := map[string]*selection{}
	var all []*mesh.Workload
	for _, w := range m.Workloads() {
		if w.Namespace == namespace && w.Enrolled {
			owner := ownerOf(w.Key).Name
			if byOwner[owner] == nil {
				byOwner[owner] = &selection{owners: []string{owner}, ports: map[client]map[uint16]uint64{}}
			}
			byOwner[owner].members = append(byOwner[owner].members, w)
			all = append(all, w)
		}
	}
	groups := slices.SortedFunc(maps.Values(byOwner), func(a, b *selection) int { return strings.Compare(a.owners[0], b.owners[0]) })
	for i := 0; i < len(groups); i++ {
		g := groups[i]
		labels := shared(g.members)
		picked := selected(all, labels)
		if len(picked) == len(g.members) {
			g.selector = shortest(all, labels, len(picked))
			continue
		}
		for k, other := range groups { // no label tells these apart
			if k != i && slices.ContainsFunc(picked, func(w *mesh.Workload) bool { return slices.Contains(other.members, w) }) {
				g.owners = append(g.owners, other.owners...)
				g.members = append(g.members, other.members...)
				groups = slices.Delete(groups, k, k+1)
				break
			}
		}
		slices.Sort(g.owners)
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

func policy(namespace, name string, selector map[string]string) *v1alpha1.AuthorizationPolicy {
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

// policy has a rule for each set of ports that the same clients need.
func (g *selection) policy(namespace string) Suggested {
	out := Suggested{Policy: policy(namespace, g.owners[0]+"-clients", g.selector)}
	type need struct {
		ports   []uint16
		clients []client
		count   uint64
	}
	byPorts := map[string]*need{}
	for _, from := range slices.SortedFunc(maps.Keys(g.ports), compareClients) {
		ports := slices.Sorted(maps.Keys(g.ports[from]))
		key := fmt.Sprint(ports)
		if byPorts[key] == nil {
			byPorts[key] = &need{ports: ports}
		}
		byPorts[key].clients = append(byPorts[key].clients, from)
		for _, n := range g.ports[from] {
			byPorts[key].count += n
		}
	}
	needs := slices.SortedFunc(maps.Values(byPorts), func(a, b *need) int { return slices.Compare(a.ports, b.ports) })
	for _, n := range needs {
		var to []v1alpha1.Destination
		for ports := range slices.Chunk(n.ports, maxPorts) {
			d := v1alpha1.Destination{}
			for _, port := range ports {
				d.Ports = append(d.Ports, v1alpha1.Port(port))
			}
			to = append(to, d)
		}
		for from := range slices.Chunk(sources(n.clients), maxSources) {
			out.Policy.Spec.Rules = append(out.Policy.Spec.Rules, v1alpha1.Rule{From: from, To: to})
			out.Counts = append(out.Counts, n.count)
		}
	}
	return out
}

func sources(clients []client) (from []v1alpha1.Source) {
	var accounts, identities []string
	var blocks []v1alpha1.AddressBlock
	for _, c := range clients {
		switch {
		case c.account != "":
			accounts = append(accounts, c.account)
		case c.identity != "":
			identities = append(identities, c.identity)
		default:
			blocks = append(blocks, v1alpha1.AddressBlock(c.block))
		}
	}
	for some := range slices.Chunk(accounts, maxAccounts) {
		from = append(from, v1alpha1.Source{ServiceAccounts: some})
	}
	for some := range slices.Chunk(identities, maxAccounts) {
		from = append(from, v1alpha1.Source{Identities: some})
	}
	for some := range slices.Chunk(blocks, maxBlocks) {
		from = append(from, v1alpha1.Source{IPBlocks: some})
	}
	return from
}
