package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/kube/ports"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Compiled is what Objects mean, ready for a mesh.View. Lists are sorted by key.
type Compiled struct {
	Settings  mesh.Settings
	Workloads []mesh.Workload
	Services  []mesh.Service
	Policies  []mesh.Policy
	Network   mesh.Network
	// DatagramBytes is how much policies say about UDP of the workloads of a namespace; of more
	// than policies.MaxNamespace not all is told.
	DatagramBytes map[string]int
	// Warnings are about objects that are valid and in force, but unlikely to
	// do what their author wants.
	Warnings []*Problem
	// Refused are the problems of objects that CompileEach left out, wholly or
	// in part.
	Refused []*Problem
}

// View makes a mesh.View of what was compiled; revision names it. The View
// takes over the parts, so they must not be changed afterwards.
func (c *Compiled) View(revision string) (*mesh.View, error) {
	return mesh.NewNetworkView(revision, c.Settings, c.Workloads, c.Services, c.Policies, c.Network)
}

// Compile turns objects into the parts of a mesh.View, resolving labels,
// selectors, defaults and PeerAuthentications. It is pure: equal objects, in any
// order, give equal parts. It returns every problem that it finds, joined; each
// is about one field of one object, and names the other object where two are in
// conflict.
func Compile(objs *Objects) (*Compiled, error) {
	c := newCompiler(objs, false)
	c.compileMesh()
	c.compileRest()
	if err := problem.Join(c.found.Problems); err != nil {
		return nil, fmt.Errorf("compile configuration: %w", err)
	}
	problem.Sort(c.found.Warnings)
	c.out.Warnings = c.found.Warnings
	return &c.out, nil
}

// CompileEach is Compile for a cluster, whose objects belong to many: one that
// has a problem does not keep the others from being in force. What is refused
// fails closed: a workload or an address is left out, and so cannot be reached;
// a rule that cannot be understood admits nobody when its policy is to ALLOW,
// and refuses everybody whom the policy selects when it is to DENY. Only a
// missing or a bad Mesh is an error.
func CompileEach(objs *Objects) (*Compiled, error) {
	c := newCompiler(objs, true)
	c.compileMesh()
	if err := problem.Join(c.found.Problems); err != nil {
		return nil, fmt.Errorf("compile configuration: %w", err)
	}
	c.compileRest()
	problem.Sort(c.found.Problems)
	problem.Sort(c.found.Warnings)
	c.out.Refused, c.out.Warnings = c.found.Problems, c.found.Warnings
	return &c.out, nil
}

func newCompiler(objs *Objects, each bool) *compiler {
	return &compiler{
		objs: objs, each: each,
		namespaces: map[string]namespace{},
		members:    map[string][]*mesh.Workload{},
		addresses:  make(map[netip.Addr]owner, len(objs.Workloads)+len(objs.Pods)+len(objs.Services)),
		netns:      map[string]owner{},
		identities: map[mesh.Key]spiffeid.ID{},
		groups:     map[groupKey]map[string][]*mesh.Workload{},
		pods:       make(map[mesh.Key]*Pod, len(objs.Pods)),
		hosts:      map[string][]*Pod{},
		external:   map[netip.Addr]external{},
		slices:     map[mesh.Key][]*EndpointSlice{},
		left:       map[string][]*Pod{},
	}
}

// compileRest compiles everything that the mesh's settings are needed for.
func (c *compiler) compileRest() {
	check.Bound(c.mesh.Subject, &c.out.Settings)
	c.compileNamespaces()
	check.Names(c.mesh.Subject, c.settings, c.known)
	authentications := c.compilePeerAuthentications()
	c.compilePolicies()
	c.compilePods(authentications)
	c.compileWorkloads(authentications)
	c.out.DatagramBytes = c.datagrams.Bytes()
	c.warnPolicies()
	c.compileNetworkPolicies()
	c.compileServices()
	c.addExternal()
	c.seeRequests()
}

// compiler holds what is known while compiling.
type compiler struct {
	objs       *Objects
	each       bool // see CompileEach
	out        Compiled
	found      check.List
	namespaces map[string]namespace        // by name
	members    map[string][]*mesh.Workload // by namespace, sorted by key
	settings   check.Settings
	mesh       subject
	addresses  map[netip.Addr]owner
	netns      map[string]owner // by node and path

	identities map[mesh.Key]spiffeid.ID                 // by service account
	groups     map[groupKey]map[string][]*mesh.Workload // see candidates
	pods       map[mesh.Key]*Pod                        // those that are workloads
	hosts      map[string][]*Pod                        // those in their node's network, by namespace
	external   map[netip.Addr]external
	slices     map[mesh.Key][]*EndpointSlice // by service
	left       map[string][]*Pod             // that are not workloads with all their addresses, by namespace
	datagrams  policies.UDP
	written    struct { // see bySlices
		svc *corev1.Service
		*ports.Slices
	}
}

// owner is the object that has something which no two may have.
type owner struct {
	object string
	origin Origin
	ref    Ref
}

func (o owner) String() string {
	if o.origin.File == "" {
		return o.object
	}
	return o.object + " at " + o.origin.String()
}

// subject is the object that is being compiled, for problems about it.
type subject struct {
	check.Subject
	compiler *compiler
}

func (c *compiler) subject(kind string, meta metav1.Object, origin Origin) subject {
	return c.subjectOf(Ref{Kind: kind, Namespace: meta.GetNamespace(), Name: meta.GetName()}, origin)
}

func (c *compiler) subjectOf(ref Ref, origin Origin) subject {
	return subject{check.NewSubject(&c.found, ref, origin), c}
}

func (s subject) owner() owner { return owner{s.Object, s.Origin, s.Ref} }

// sorted returns objects in the order in which they are compiled: oldest first,
// then by namespace and name. That is also the order in which conflicting
// PeerAuthentications win.
func sorted[T any, P interface {
	*T
	metav1.Object
}](objects []Sourced[T]) []Sourced[T] {
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, func(a, b Sourced[T]) int {
		x, y := P(a.Value), P(b.Value)
		return cmp.Or(
			x.GetCreationTimestamp().Time.Compare(y.GetCreationTimestamp().Time),
			cmp.Compare(x.GetNamespace(), y.GetNamespace()),
			cmp.Compare(x.GetName(), y.GetName()),
		)
	})
	return objects
}

func (c *compiler) compileMesh() {
	if len(c.objs.Meshes) == 0 {
		c.found.Problems = append(c.found.Problems, &Problem{
			Ref: Ref{Kind: "Mesh", Name: v1alpha1.MeshName}, Object: "Mesh " + v1alpha1.MeshName, Text: "is missing",
			Remedy: "add an object of apiVersion heddle.dev/v1alpha1 and kind Mesh, with metadata.name, spec.trustDomain and spec.clusterRanges",
		})
		return
	}
	for i, m := range sorted(c.objs.Meshes) {
		s := c.subject("Mesh", m.Value, m.Origin)
		if m.Value.Name != v1alpha1.MeshName {
			s.Problem("metadata.name", "name it "+v1alpha1.MeshName, "a mesh has one Mesh object, named %q", v1alpha1.MeshName)
		}
		if i == 0 || m.Value.Name == v1alpha1.MeshName {
			c.settings = check.Mesh(s.Subject, &m.Value.Spec)
			c.out.Settings, c.mesh = c.settings.Mesh, s
			s.claimForeign(&m.Value.Spec)
		}
	}
}

// claimForeign claims the addresses of workloads of other trust domains before anybody else
// can: who has one of them is not to be taken for one.
func (s subject) claimForeign(spec *v1alpha1.MeshSpec) {
	for i := range spec.Federation {
		for j := range spec.Federation[i].Workloads {
			for k, text := range spec.Federation[i].Workloads[j].Addresses {
				s.claimAddress(fmt.Sprintf("spec.federation[%d].workloads[%d].addresses[%d]", i, j, k), text)
			}
		}
	}
}

func (c *compiler) compileNamespaces() {
	for _, ns := range sorted(c.objs.Namespaces) {
		s := c.subject("Namespace", ns.Value, ns.Origin)
		s.DomainLabel("metadata.name", ns.Value.Name)
		s.Labels("metadata.labels", ns.Value.Labels)
		enrolled, _ := s.enrolled(ns.Value.Labels)
		c.namespaces[ns.Value.Name] = namespace{enrolled && !check.KeptOut(s.Subject, ns.Value.Name), check.WaypointOf(s.Subject, ns.Value.Labels)}
	}
}

// namespace is what the labels of one say of what is in it.
type namespace struct {
	enrolled bool
	waypoint check.Waypoint
}

// enrolled returns what LabelMesh says, and whether it says anything.
func (s subject) enrolled(labels map[string]string) (enrolled, given bool) {
	value, given := labels[v1alpha1.LabelMesh]
	if given && value != v1alpha1.MeshEnabled && value != v1alpha1.MeshDisabled {
		s.Problem("metadata.labels["+v1alpha1.LabelMesh+"]", "write enabled or disabled", "%q is not a value of this label", value)
		given = false
	}
	return value == v1alpha1.MeshEnabled, given
}

// place checks the name and the namespace of a namespaced object.
func (s subject) place(meta metav1.Object) {
	s.Subdomain("metadata.name", "an object's name", meta.GetName())
	if _, known := s.compiler.namespaces[meta.GetNamespace()]; !known {
		s.Problem("metadata.namespace", fmt.Sprintf("add an object of apiVersion v1 and kind Namespace, named %q, or correct the name", meta.GetNamespace()),
			"namespace %q is not defined", meta.GetNamespace())
	}
}

// claimAddress parses an address that no other object may have.
func (s subject) claimAddress(field, text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil || addr.Zone() != "":
		s.Problem(field, "write one such as 10.1.2.3 or fd00::3", "%q is not an IP address", text)
		return addr, false
	case addr.Is4In6():
		s.Problem(field, "write "+addr.Unmap().String(), "%q is an IPv4 address written as IPv6", text)
		return addr, false
	}
	return addr, s.claim(field, addr)
}

// claim notes whose an address is; it is reported when it is another's already,
// or outside the mesh.
func (s subject) claim(field string, addr netip.Addr) bool {
	switch {
	case addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast():
		s.Problem(field, "write the address that others reach it at", "%s is not an address that others can reach", addr)
		return false
	}
	if first, taken := s.compiler.addresses[addr]; taken {
		s.Conflict(field, "give every workload and service addresses of its own", "address %s is used twice: it is also that of %s", addr, first)
		return false
	}
	s.compiler.addresses[addr] = s.owner()
	ranges := s.compiler.out.Settings.ClusterRanges
	if len(ranges) > 0 && !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		s.Problem(field, "extend spec.clusterRanges of the Mesh, or correct the address", "address %s is outside the mesh's cluster ranges (%s)", addr, list(ranges))
		return false
	}
	return true
}

func list[T fmt.Stringer](items []T) string {
	words := make([]string, len(items))
	for i, item := range items {
		words[i] = item.String()
	}
	return strings.Join(words, ", ")
}

// isHeadless reports whether a service has no virtual address by intention.
func isHeadless(spec *corev1.ServiceSpec) bool {
	return spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(spec.ClusterIPs, corev1.ClusterIPNone)
}
