// Package status sums up how a mesh is: its control plane, its nodes, its
// namespaces, its policies, the first certificates to expire, and how far agents are
// behind. It
// asks operators, agents and, on Kubernetes, the API server; it changes nothing.
//
// A Summary belongs to one goroutine.
package status

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
)

// Summary is how a mesh is.
type Summary struct {
	OK bool `json:"ok"`
	// Leader is the replica of the operator that writes statuses; "" outside
	// Kubernetes.
	Leader     string      `json:"leader,omitempty"`
	Operators  []Operator  `json:"operators"`
	Nodes      []Node      `json:"nodes"`
	Namespaces []Namespace `json:"namespaces"`
	// Federated are the other trust domains with workloads that may be connected to.
	Federated []Federated `json:"federated,omitempty"`
	// Policies are Heddle's own and NetworkPolicies, in order of kind, namespace and
	// name; PoliciesLeftOut is how many more there are, all of them well.
	Policies        []Policy `json:"policies"`
	PoliciesLeftOut int      `json:"policiesLeftOut,omitempty"`
	// Problems are what is not well, each a line.
	Problems []string `json:"problems"`
}

// Operator is one operator, or one replica of it.
type Operator struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// FIPS140 is its FIPS 140-3 mode: "off", or "on" or "only" with the module's version.
	FIPS140 string `json:"fips140,omitempty"`
	Epoch   uint64 `json:"epoch,omitempty"`
	// Nodes is how many agents are connected to it.
	Nodes       int       `json:"nodes"`
	RootExpires time.Time `json:"rootExpires,omitzero"`
	Error       string    `json:"error,omitempty"`
}

// Node is one node's agent.
type Node struct {
	Name      string `json:"name"`
	Version   string `json:"version,omitempty"`
	FIPS140   string `json:"fips140,omitempty"`
	Connected bool   `json:"connected"`
	Epoch     uint64 `json:"epoch,omitempty"`
	// LagSeconds is how long ago the first of what the agent has not applied yet was
	// published, by the operator that it is connected to; 0 when it has applied all, and
	// of an agent that is connected to none.
	LagSeconds  float64 `json:"lagSeconds"`
	Pods        int     `json:"pods"`
	Enrolled    int     `json:"enrolled"`
	Connections uint32  `json:"connections"`
	// Certificates are how many are valid, Expires when the first of them ends.
	Certificates int       `json:"certificates"`
	Expires      time.Time `json:"expires,omitzero"`
	Error        string    `json:"error,omitempty"`
}

// Namespace is one that is enrolled, or has a pod that is.
type Namespace struct {
	Name string `json:"name"`
	// Label is that of the namespace; "" outside Kubernetes, or when there is none.
	Label string `json:"label,omitempty"`
	// Pods are those that belong in the mesh, Enrolled those that are in it.
	Pods     int `json:"pods"`
	Enrolled int `json:"enrolled"`
	// Unknown are those of nodes whose agents did not say.
	Unknown int `json:"unknown,omitempty"`
	// Strict is how many of them refuse plaintext at ports without a mode of
	// their own.
	Strict int `json:"strict"`
}

// Federated is another trust domain, with workloads that those of the mesh may connect to.
type Federated struct {
	TrustDomain string `json:"trustDomain"`
	Workloads   int    `json:"workloads"`
	Addresses   int    `json:"addresses"`
	// RootsExpire is when the last root that verifies them does; zero without one.
	RootsExpire time.Time `json:"rootsExpire,omitzero"`
	// Verifiable is set when each replica that answered has a root that verifies them.
	Verifiable bool `json:"verifiable"`
}

// Policy is what became of one: of a Mesh, a PeerAuthentication, an
// AuthorizationPolicy or a NetworkPolicy.
type Policy struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Accepted  bool   `json:"accepted"`
	// Message says why it is refused, or what is to be noted about it.
	Message string `json:"message,omitempty"`
	// Nodes are how many have an enrolled workload that it is about, Live how many of
	// them have it in force; Pending are some of the others.
	Nodes   int      `json:"nodes"`
	Live    int      `json:"live"`
	Pending []string `json:"pending,omitempty"`
}

// String returns "NetworkPolicy shop/db".
func (p *Policy) String() string {
	return problem.ObjectName(p.Kind, p.Namespace, p.Name)
}

// well reports whether a policy is in force wherever it is to be.
func (p *Policy) well() bool { return p.Accepted && p.Live == p.Nodes }

// Of asks everybody. An error means that it is not known whom to ask.
func Of(ctx context.Context, m *reach.Mesh) (*Summary, error) {
	agents, err := m.Agents(ctx)
	if err != nil {
		return nil, err
	}
	operators, err := m.Operators(ctx)
	if err != nil {
		return nil, err
	}
	s := &Summary{OK: true, Operators: []Operator{}, Nodes: []Node{}, Namespaces: []Namespace{}, Policies: []Policy{}, Problems: []string{}}
	lacking := s.operators(reach.Ask(ctx, m.Timeout, operators, reach.StateAndPolicies))
	counts := namespaces{}
	s.nodes(reach.Ask(ctx, m.Timeout, agents, reach.Status), lacking, counts)
	versions := health.Versions{}
	for _, o := range s.Operators {
		versions.Add(o.Version, o.Name)
	}
	for _, n := range s.Nodes {
		versions.Add(n.Version, n.Name)
	}
	if detail, _ := versions.TooFar(); detail != "" {
		s.problem("versions are %s", detail)
	}
	if m.OnCluster() {
		if err := s.cluster(ctx, m, counts); err != nil {
			return nil, err
		}
	}
	s.sum(counts)
	slices.SortFunc(s.Namespaces, func(a, b Namespace) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(s.Problems)
	return s, nil
}

// sum adds the namespaces, and says of which pods it is not well.
func (s *Summary) sum(counts namespaces) {
	for _, n := range counts {
		s.Namespaces = append(s.Namespaces, *n)
		if outside := n.Pods - n.Enrolled - n.Unknown; outside > 0 {
			s.problem("namespace %s: %d of %d pods are not in the mesh", n.Name, outside, n.Pods)
		}
		if n.Unknown > 0 {
			s.problem("namespace %s: of %d of %d pods it is not known whether they are in the mesh: their nodes' agents did not answer", n.Name, n.Unknown, n.Pods)
		}
	}
}

// Answered reports whether any agent answered.
func (s *Summary) Answered() bool {
	return slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.Version != "" })
}

func (s *Summary) problem(format string, args ...any) {
	s.OK = false
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

// federated adds what an operator says of other trust domains, each once.
func (s *Summary) federated(operator string, all []*meshpb.FederatedWorkloads) {
	for _, f := range all {
		detail := health.Unverifiable(f)
		if detail != "" {
			s.problem("%s: trust domain %s: %s", operator, f.GetTrustDomain(), detail)
		}
		i := slices.IndexFunc(s.Federated, func(o Federated) bool { return o.TrustDomain == f.GetTrustDomain() })
		if i < 0 {
			i = len(s.Federated)
			s.Federated = append(s.Federated, Federated{TrustDomain: f.GetTrustDomain(), Workloads: int(f.GetWorkloads()), Addresses: int(f.GetAddresses()),
				RootsExpire: moment(f.GetRootsNotAfterNs()), Verifiable: true})
		}
		s.Federated[i].Verifiable = s.Federated[i].Verifiable && detail == ""
	}
}

// behind is for how long the connected nodes lack some of what their operator has
// published, by name.
type behind map[string]time.Duration

func (s *Summary) operators(answers []reach.Answer[*meshpb.OperatorState]) behind {
	lacking := behind{}
	for _, answer := range answers {
		o := Operator{Name: cmp.Or(answer.Target.Node, "operator")}
		if answer.Err != nil {
			o.Error = answer.Err.Error()
			s.problem("%s", o.Error)
			s.Operators = append(s.Operators, o)
			continue
		}
		c := answer.Value.GetConfiguration()
		o.Version, o.FIPS140, o.Epoch, o.RootExpires = answer.Value.GetVersion(), answer.Value.GetFips140(), c.GetEpoch(), moment(answer.Value.GetAuthority().GetRootNotAfterNs())
		for _, n := range answer.Value.GetNodes() {
			if n.GetConnected() {
				o.Nodes++
				lacking[n.GetName()] = time.Duration(n.GetBehindNs())
			}
		}
		for _, w := range answer.Value.GetWaypoints() {
			if w.GetError() != "" {
				s.problem("waypoint %s refused the newest configuration: %s", w.GetName(), w.GetError())
			}
		}
		if problems := c.GetProblems(); len(problems) > 0 {
			s.problem("%s: the configuration is refused: %s", o.Name, strings.Join(problems, "; "))
		}
		if detail, _ := health.APIServer(answer.Value.GetApiServer()); detail != "" {
			s.problem("%s: the API server %s", o.Name, detail)
		}
		s.federated(o.Name, answer.Value.GetFederated())
		s.Operators = append(s.Operators, o)
		s.policies(answer.Value)
	}
	return lacking
}

// policies takes what the replica that leads says; the others have none.
func (s *Summary) policies(o *meshpb.OperatorState) {
	s.PoliciesLeftOut += int(o.GetPoliciesLeftOut())
	for _, answer := range o.GetPolicies() {
		p := Policy{
			Kind: answer.GetKind(), Namespace: answer.GetNamespace(), Name: answer.GetName(), Accepted: answer.GetAccepted(), Message: answer.GetMessage(),
			Nodes: int(answer.GetNodes()), Live: int(answer.GetLive()), Pending: answer.GetPending(),
		}
		if !p.Accepted {
			s.problem("%s is refused: %s", &p, p.Message)
		}
		s.Policies = append(s.Policies, p)
	}
}

func moment(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// namespaces are counted by name.
type namespaces map[string]*Namespace

func (n namespaces) of(name string) *Namespace {
	if n[name] == nil {
		n[name] = &Namespace{Name: name}
	}
	return n[name]
}

func (s *Summary) nodes(answers []reach.Answer[*meshpb.AgentStatus], lacking behind, counts namespaces) {
	for _, answer := range answers {
		n := Node{Name: cmp.Or(answer.Target.Node, answer.Value.GetNode(), "this")}
		if answer.Err != nil {
			n.Error = answer.Err.Error()
			s.problem("%s", n.Error)
			s.Nodes = append(s.Nodes, n)
			continue
		}
		s.node(&n, answer.Value, lacking[n.Name])
		for _, p := range answer.Value.GetPods() {
			namespace, _, _ := strings.Cut(p.GetWorkload(), "/")
			count := counts.of(namespace)
			count.Pods++
			if p.GetState() == "enrolled" && p.GetError() == "" {
				n.Enrolled++
				count.Enrolled++
			} else {
				s.problem("pod %s on node %s is %s", p.GetWorkload(), n.Name, strings.TrimSuffix(p.GetState()+": "+p.GetError(), ": "))
			}
			if p.GetMode() == "STRICT" {
				count.Strict++
			}
			n.Connections += p.GetConnections()
		}
		s.Nodes = append(s.Nodes, n)
	}
}

func (s *Summary) node(n *Node, status *meshpb.AgentStatus, lag time.Duration) {
	c := status.GetConfiguration()
	n.Version, n.FIPS140, n.Connected, n.Epoch, n.Pods = status.GetVersion(), status.GetFips140(), status.GetOperator().GetConnected(), c.GetEpoch(), len(status.GetPods())
	switch {
	case !c.GetSynced():
		s.problem("node %s has no configuration yet", n.Name)
	case c.GetError() != "":
		s.problem("node %s refused the newest configuration: %s", n.Name, c.GetError())
	}
	if !n.Connected {
		s.problem("node %s is not connected to an operator: %s", n.Name, status.GetOperator().GetError())
	}
	// By the operator that it is connected to: an epoch may be newer elsewhere, and say nothing new.
	if n.LagSeconds = lag.Seconds(); lag > health.LongBehind && n.Connected && c.GetError() == "" {
		s.problem("node %s has not applied what was published %s ago", n.Name, lag.Round(time.Second))
	}
	for _, cert := range status.GetCertificates() {
		until := moment(cert.GetNotAfterNs())
		if until.IsZero() || until.Before(time.Now()) {
			s.problem("node %s has no valid certificate for %s: %s", n.Name, cert.GetIdentity(), cert.GetError())
			continue
		}
		n.Certificates++
		if n.Expires.IsZero() || until.Before(n.Expires) {
			n.Expires = until
		}
	}
	for _, check := range status.GetChecks() {
		if !check.GetOk() {
			s.problem("node %s: %s: %s", n.Name, check.GetName(), check.GetDetail())
		}
	}
}

// cluster adds what only the API server knows: who leads, which namespaces are
// labelled, and pods that no agent has heard of.
func (s *Summary) cluster(ctx context.Context, m *reach.Mesh, counts namespaces) error {
	c, err := cluster.Connect(m.Cluster)
	if err != nil {
		return err
	}
	if lease, err := c.Core.CoordinationV1().Leases(c.Namespace()).Get(ctx, "heddle-operator", metav1.GetOptions{}); err == nil && lease.Spec.HolderIdentity != nil {
		s.Leader = *lease.Spec.HolderIdentity
	}
	if len(s.Operators) == 0 {
		s.problem("no operator runs: traffic goes on with the last configuration, and new pods wait")
	}
	list, err := c.Core.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelMesh})
	if err != nil {
		return c.Explain("list namespaces", err)
	}
	for i := range list.Items {
		ns := &list.Items[i]
		if ns.Labels[v1alpha1.LabelMesh] != v1alpha1.MeshEnabled && counts[ns.Name] == nil {
			continue // it is to have nothing to do with the mesh
		}
		count := counts.of(ns.Name)
		count.Label = ns.Labels[v1alpha1.LabelMesh]
		if m.Node != "" || count.Label != v1alpha1.MeshEnabled {
			continue
		}
		pods, err := c.Core.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return c.Explain("list the pods of namespace "+ns.Name, err)
		}
		all, unknown := s.belonging(pods.Items)
		count.Pods = max(count.Pods, all)
		count.Unknown = min(unknown, count.Pods-count.Enrolled)
	}
	return nil
}

// belonging counts the pods of an enrolled namespace that belong in the mesh, and those of
// them whose nodes' agents did not answer.
func (s *Summary) belonging(pods []corev1.Pod) (n, unknown int) {
	for i := range pods {
		p := &pods[i]
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if ended || p.Spec.HostNetwork || p.Spec.NodeName == "" || p.Labels[v1alpha1.LabelMesh] == v1alpha1.MeshDisabled {
			continue
		}
		n++
		if slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.Name == p.Spec.NodeName && n.Error != "" }) {
			unknown++
		}
	}
	return n, unknown
}
