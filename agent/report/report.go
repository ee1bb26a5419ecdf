// Package report says what an agent is doing: its status, its live connections
// and what the kernel counted at its pods' gates, as the admin socket serves
// them. It reads; it changes nothing.
//
// A Report is safe for concurrent use.
package report

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/agent/kubelet"
	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/agent/uplink"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/identity"
)

// Enrolments lists the node's pods, and those that are behind their gates.
type Enrolments interface {
	Status() []enroll.Status
	Gated() (pods []enroll.Status, complete bool, changed <-chan struct{})
}

// Carrier lists the live connections.
type Carrier interface{ Live() []flow.Record }

// Drift says what somebody else had changed in the kernel's maps of a pod, by its name
// there; nil is nothing. Drifting is set of a pod whose maps have not held since.
type Drift interface {
	Problem(pod string) error
	Drifting(pod string) bool
}

// Report answers for one agent. Its fields must be set before it is used.
type Report struct {
	Node, Version string
	Started       time.Time
	Uplink        *uplink.Uplink
	Datapath      *podnet.Node
	Enrolments    Enrolments
	Carrier       Carrier
	// MaxFiles is the limit of open descriptors that the agent runs with, and
	// PodConnections how many connections a pod has within it while others have none.
	MaxFiles       uint64
	PodConnections int
	// Engine carries the tunnels; Crypto says whose AES-GCM it seals with, and why.
	Engine, Crypto string
	// FIPS140 is the process's FIPS 140-3 mode.
	FIPS140 string
	// HandOver returns how this agent took over from another; it may be nil, and
	// return nil, when it did not.
	HandOver func() *meshpb.HandOver
	// Kubelet knows where probes come from; nil where nothing probes.
	Kubelet *kubelet.Watch
	// Drift knows which pods' maps were changed by somebody else.
	Drift Drift
	// Room says what of policies a pod's gate, by its name there, has no room for; nil for
	// nothing.
	Room interface{ Problem(pod string) error }
	// History says why the history of flows is not on disk, if it is not.
	History func() string
	// NameServers says how the DNS servers fare that captured pods ask.
	NameServers func() []*meshpb.Check
	// WorkloadAPI says which pods are given their SVIDs, and which cannot be.
	WorkloadAPI func() []*meshpb.Check
	// NewPods says whether new pods are held back, as the agent of a container
	// runtime's node is to see to.
	NewPods func() []*meshpb.Check
}

// Connections implements admin.Agent.
func (r *Report) Connections(context.Context) ([]flow.Record, error) {
	live := r.Carrier.Live()
	for i := range live {
		live[i].Node = r.Node
	}
	slices.SortFunc(live, func(a, b flow.Record) int { return a.Start.Compare(b.Start) })
	return live, nil
}

// Status implements admin.Agent.
func (r *Report) Status(context.Context) (*meshpb.AgentStatus, error) {
	d := r.Uplink.Discovery().Status()
	status := &meshpb.AgentStatus{
		Node: r.Node, Version: r.Version, StartedNs: meshpb.Nanos(r.Started),
		Pid: int64(os.Getpid()), Engine: r.Engine, Fips140: r.FIPS140,
		Configuration: &meshpb.ConfigurationStatus{
			Synced: r.Uplink.Store().View().Synced(), Revision: d.Revision, Epoch: d.Epoch, Source: "none",
		},
		Operator: &meshpb.OperatorStatus{
			Target: r.Uplink.Operator(), Connected: d.Connected, SinceNs: meshpb.Nanos(d.Since),
		},
	}
	if r.HandOver != nil {
		status.HandOver = r.HandOver()
	}
	switch {
	case d.FromLastGood:
		status.Configuration.Source = "last-good"
	case status.Configuration.Synced:
		status.Configuration.Source = "operator"
	}
	if d.Connected {
		status.Configuration.Error = d.LastError
	} else {
		status.Operator.Error = d.LastError
		status.Configuration.Error = d.LastGoodError
	}
	status.Pods = r.pods()
	for _, s := range append(r.Uplink.NodeStatus(), r.Uplink.Source().Statuses()...) {
		status.Certificates = append(status.Certificates, r.certificate(s))
	}
	status.Checks = r.checks()
	return status, nil
}

func (r *Report) pods() []*meshpb.PodStatus {
	carried := map[string]uint32{}
	for _, c := range r.Carrier.Live() {
		carried[c.Source.Workload.String()]++
		if c.Destination.Workload != c.Source.Workload {
			carried[c.Destination.Workload.String()]++
		}
	}
	var pods []*meshpb.PodStatus
	for _, s := range r.Enrolments.Status() {
		p := &meshpb.PodStatus{Workload: s.Key.String(), State: string(s.State), Connections: carried[s.Key.String()]}
		if s.Err != nil {
			p.Error = s.Err.Error()
		}
		if s.State == enroll.Enrolled {
			p.EnrolledNs = meshpb.Nanos(s.Since)
		}
		p.StaysNs = meshpb.Nanos(s.Stays)
		if w := s.Workload; w != nil {
			p.Identity, p.NetworkNamespace, p.Mode = w.Identity.String(), w.NetNS, w.Mode.String()
			for _, a := range w.Addresses {
				p.Addresses = append(p.Addresses, a.String())
			}
		}
		pods = append(pods, p)
	}
	return pods
}

func (r *Report) certificate(s identity.Status) *meshpb.CertificateStatus {
	c := &meshpb.CertificateStatus{Identity: s.ID.String(), Serial: s.Serial, NotAfterNs: meshpb.Nanos(s.NotAfter), RenewalNs: meshpb.Nanos(s.RenewAt)}
	if cert, err := r.Uplink.Source().Certificate(s.ID); err == nil {
		c.NotBeforeNs = meshpb.Nanos(cert.Leaf.NotBefore)
	}
	if s.LastErr != nil {
		c.Error = s.LastErr.Error()
	}
	return c
}

// minFiles is what 5,000 connections of one pod need with some to spare.
const minFiles = 16384

// checks looks at the agent's surroundings, and at every pod's gate.
func (r *Report) checks() []*meshpb.Check {
	files := &meshpb.Check{Name: "open files", Ok: r.MaxFiles >= minFiles, Detail: fmt.Sprintf("the limit is %d: enough for %d connections of one pod while others have none", r.MaxFiles, r.PodConnections)}
	if !files.Ok {
		files.Remedy = "raise it with LimitNOFILE= in the unit, or `ulimit -n`; each connection takes one or two"
	}
	checks := []*meshpb.Check{files, {Name: "engine", Ok: true, Detail: r.Engine + "; " + r.Crypto}, {Name: "FIPS 140-3", Ok: true, Detail: r.FIPS140}}
	if why := r.Uplink.Discovery().Status().UnsavedError; why != "" {
		checks = append(checks, &meshpb.Check{Name: "last good configuration", Detail: "what is applied is not on disk: " + why,
			Remedy: "make room in the agent's state directory, or mend its disk: the agent goes on, and tries again every second"})
	}
	if why := r.History(); why != "" {
		checks = append(checks, &meshpb.Check{Name: "history of flows", Detail: "what came last is not on disk: " + why,
			Remedy: "make room in the agent's state directory, or mend its disk: the agent goes on, and tries again every minute"})
	}
	if r.Kubelet != nil {
		probes := &meshpb.Check{Name: "kubelet"}
		probes.Ok, probes.Detail, probes.Remedy = r.Kubelet.Check()
		checks = append(checks, probes)
	}
	pods := r.Datapath.Pods()
	checks = append(checks, r.names(pods)...)
	checks = append(checks, r.WorkloadAPI()...)
	checks = append(checks, r.NewPods()...)
	for _, s := range r.Enrolments.Status() {
		check := &meshpb.Check{Name: "gate of " + s.Key.String(), Ok: true, Detail: "in place"}
		pod, ok := pods[podnet.Name(s.Key)]
		switch {
		case !ok && s.Err != nil:
			check.Ok, check.Detail = false, s.Err.Error()
			check.Remedy = "mend what the error names: the agent tries again by itself"
		case !ok:
			check.Ok, check.Detail = false, "the pod is "+string(s.State)
			check.Remedy = "wait some seconds and check again"
		default:
			if err := errors.Join(pod.Check(), r.Drift.Problem(pod.Name()), r.Room.Problem(pod.Name())); err != nil {
				check.Ok, check.Detail = false, err.Error()
				check.Remedy = "mend what the error names; traffic is refused rather than let out meanwhile"
			} else if pod.Unfinished() {
				check.Detail += ", closed by tc filters for the moment until its gate is where it stays"
			} else if err := pod.Unrefused(); err != nil {
				check.Detail += ", but connections to services that nobody serves are accepted and reset, not refused: " + err.Error()
			}
		}
		if check.Ok && !s.Stays.IsZero() {
			check.Detail += "; the pod has left the mesh again and again, and stays until " + s.Stays.UTC().Format(time.TimeOnly) + " UTC in case it is put back"
		}
		checks = append(checks, check)
	}
	for _, left := range r.Datapath.Retired() {
		pod := left.Pod
		if key, ok := podnet.KeyOf(pod); ok {
			pod = key.String()
		}
		checks = append(checks, &meshpb.Check{Name: "former namespace of " + pod, Ok: true,
			Detail: left.Path + " as it was is closed until it is gone or the pod leaves the mesh"})
	}
	return checks
}

// names says in how many pods the agent answers DNS, and which servers do not answer
// it.
func (r *Report) names(pods map[string]*podnet.Pod) []*meshpb.Check {
	captured := 0
	for _, pod := range pods {
		if pod.CapturesDNS() {
			captured++
		}
	}
	if captured == 0 {
		return []*meshpb.Check{{Name: "DNS", Ok: true, Detail: "queries leave the pods unread"}}
	}
	own := &meshpb.Check{Name: "DNS", Ok: true, Detail: fmt.Sprintf("answered by the agent in %d of %d pods", captured, len(pods))}
	return append([]*meshpb.Check{own}, r.NameServers()...)
}

// Prove implements admin.Agent.
func (r *Report) Prove(_ context.Context, workload string) (*meshpb.ProveResponse, error) {
	response := &meshpb.ProveResponse{Node: r.Node}
	pods := r.Datapath.Pods()
	for _, s := range r.Enrolments.Status() {
		if workload != "" && s.Key.String() != workload {
			continue
		}
		proof := &meshpb.PodProof{Workload: s.Key.String()}
		if pod, ok := pods[podnet.Name(s.Key)]; !ok {
			proof.Error = "the pod is " + string(s.State)
			if s.Err != nil {
				proof.Error += ": " + s.Err.Error()
			}
		} else if err := errors.Join(pod.Check(), prove(pod, proof)); err != nil {
			proof.Error = err.Error()
		}
		response.Pods = append(response.Pods, proof)
	}
	if workload != "" && len(response.Pods) == 0 {
		return nil, fmt.Errorf("prove %s: %w", workload, fs.ErrNotExist)
	}
	return response, nil
}

// CertificateLives returns the time until expiry of each SVID, by identity; of an
// identity that has one for tunnels and one that is given to pods, the shorter.
func (r *Report) CertificateLives() map[string]time.Duration {
	lives := map[string]time.Duration{}
	for _, s := range append(r.Uplink.Source().Statuses(), r.Uplink.Given().Statuses()...) {
		if s.NotAfter.IsZero() {
			continue
		}
		left, id := time.Until(s.NotAfter), s.ID.String()
		if other, ok := lives[id]; !ok || left < other {
			lives[id] = left
		}
	}
	return lives
}

// PodStates counts the node's pods by the state of their enrolment.
func (r *Report) PodStates() map[string]int {
	count := map[string]int{}
	for _, s := range r.Enrolments.Status() {
		count[string(s.State)]++
	}
	return count
}

// slow is for how long a pod may be on its way into the mesh before it is one that is not
// as it should be.
const slow = 2 * time.Second

// PodsAmiss counts the node's pods that are not as the configuration says: those that
// could not be enrolled, or changed, or found where they run, those that are not yet after 2 s, and those whose maps
// drift. What is being deleted may be half gone.
func (r *Report) PodsAmiss() int {
	amiss := 0
	for _, s := range r.Enrolments.Status() {
		if s.Workload != nil && s.Workload.Leaving {
			continue
		}
		late := s.State == enroll.Enrolling && time.Since(s.Since) > slow
		if s.Err != nil || late || r.Drift.Drifting(podnet.Name(s.Key)) {
			amiss++
		}
	}
	return amiss
}
