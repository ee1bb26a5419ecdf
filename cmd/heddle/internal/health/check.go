package health

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// Finding is one line of a check.
type Finding struct {
	// Part is "machine", "operator" or a node's name.
	Part   string `json:"part"`
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
	// Warning is of what is not OK and yet in nothing's way: an installation goes on.
	Warning bool `json:"warning,omitempty"`
}

// Report collects findings; New makes one.
type Report struct {
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}

// New returns an empty Report: all is well so far.
func New() *Report { return &Report{OK: true, Findings: []Finding{}} }

// Good adds what is well.
func (r *Report) Good(part, name, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Part: part, Name: name, OK: true, Detail: fmt.Sprintf(format, args...)})
}

// Bad adds what is not well.
func (r *Report) Bad(part, name, detail, remedy string) {
	r.OK = false
	r.Findings = append(r.Findings, Finding{Part: part, Name: name, Detail: detail, Remedy: remedy})
}

// Warn adds what is not well, and stands in nothing's way.
func (r *Report) Warn(part, name, detail, remedy string) {
	r.Bad(part, name, detail, remedy)
	r.Findings[len(r.Findings)-1].Warning = true
}

// Machine looks at what every agent of this machine needs.
func (r *Report) Machine() {
	const part = "machine"
	var uts unix.Utsname
	var major, minor int
	err := unix.Uname(&uts)
	release := unix.ByteSliceToString(uts.Release[:])
	if err == nil {
		_, err = fmt.Sscanf(release, "%d.%d", &major, &minor)
	}
	switch {
	case err != nil:
		r.Bad(part, "kernel", fmt.Sprintf("release %q: %v", release, err), "tell us with `uname -a`")
	case major < 6 || major == 6 && minor < 1:
		r.Bad(part, "kernel", release+" is too old", "run Linux 6.1 or newer")
	default:
		r.Good(part, "kernel", "%s", release)
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		r.Bad(part, "BTF", err.Error(), "run a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions ship")
	} else {
		r.Good(part, "BTF", "the kernel describes its types")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.Bad(part, "mounts", err.Error(), "mount /proc")
		return
	}
	if at := mountOf(string(mounts), "cgroup2"); at == "" {
		r.Bad(part, "cgroup2", "not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
	} else {
		r.Good(part, "cgroup2", "mounted at %s", at)
	}
	if at := mountOf(string(mounts), "bpf"); at == "" {
		r.Good(part, "bpf", "not mounted yet; an agent mounts it at its start")
	} else {
		r.Good(part, "bpf", "mounted at %s", at)
	}
}

// mountOf finds where a file system of a type is mounted (proc(5), mountinfo).
func mountOf(mountinfo, fstype string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		if fields := strings.Fields(before); ok && strings.HasPrefix(after, fstype+" ") && len(fields) > 4 {
			return fields[4]
		}
	}
	return ""
}

// Agent looks at what an agent answered, or why it did not. node may be "".
func (r *Report) Agent(node string, status *meshpb.AgentStatus, err error) {
	part := cmp.Or(node, "agent")
	if err != nil {
		remedy := "start the agent; in a local mesh `heddle local up` starts what died. Its pods are cut off meanwhile: nothing leaves in plaintext"
		r.silent(part, "agent", err, remedy)
		return
	}
	part = status.GetNode()
	r.Good(part, "agent", "version %s, up %s", status.GetVersion(), time.Since(time.Unix(0, status.GetStartedNs())).Round(time.Second))
	r.configuration(part, status)
	r.certificates(part, status.GetCertificates())
	for _, p := range status.GetPods() {
		switch {
		case p.GetState() == "enrolled" && p.GetError() == "":
			r.Good(part, "pod "+p.GetWorkload(), "enrolled, %s, %d connections", p.GetMode(), p.GetConnections())
		default:
			r.Bad(part, "pod "+p.GetWorkload(), strings.TrimSuffix(p.GetState()+": "+p.GetError(), ": "), "mend what the error names: the agent tries again by itself")
		}
	}
	for _, c := range status.GetChecks() {
		switch {
		case c.GetOk():
			r.Good(part, c.GetName(), "%s", c.GetDetail())
		case c.GetWarning():
			r.Warn(part, c.GetName(), c.GetDetail(), c.GetRemedy())
		default:
			r.Bad(part, c.GetName(), c.GetDetail(), c.GetRemedy())
		}
	}
}

func (r *Report) configuration(part string, status *meshpb.AgentStatus) {
	c, o := status.GetConfiguration(), status.GetOperator()
	switch {
	case !c.GetSynced():
		r.Bad(part, "configuration", strings.TrimSuffix("none yet: "+c.GetError(), ": "), "pods wait until the operator answers; see the line on the operator")
	case c.GetError() != "":
		r.Bad(part, "configuration", "the newest was refused: "+c.GetError(), "the one before stays in force; mend the folder or the operator")
	default:
		r.Good(part, "configuration", "revision %s, epoch %d, from the %s", short(c.GetRevision()), c.GetEpoch(), c.GetSource())
	}
	if o.GetConnected() {
		r.Good(part, "operator", "connected to %s", o.GetTarget())
		return
	}
	r.Bad(part, "operator", strings.TrimSuffix("not connected to "+o.GetTarget()+": "+o.GetError(), ": "),
		"start the operator, or mend the way to it; traffic goes on with the last configuration")
}

func (r *Report) certificates(part string, all []*meshpb.CertificateStatus) {
	now := time.Now()
	for _, c := range all {
		name, until := "SVID "+c.GetIdentity(), time.Unix(0, c.GetNotAfterNs())
		switch {
		case c.GetNotAfterNs() == 0:
			r.Bad(part, name, strings.TrimSuffix("none: "+c.GetError(), ": "), "see the line on the operator: it signs them")
		case until.Before(now):
			r.Bad(part, name, strings.TrimSuffix("expired "+now.Sub(until).Round(time.Second).String()+" ago: "+c.GetError(), ": "), "see the line on the operator, and the clocks of both machines")
		case c.GetError() != "":
			r.Bad(part, name, fmt.Sprintf("valid for %s, but renewal does not work: %s", until.Sub(now).Round(time.Second), c.GetError()), "see the line on the operator")
		default:
			r.Good(part, name, "valid for %s, renewed in %s", until.Sub(now).Round(time.Second), max(time.Unix(0, c.GetRenewalNs()).Sub(now), 0).Round(time.Second))
		}
	}
}

// short cuts what is only compared by eye.
func short(revision string) string { return revision[:min(len(revision), 12)] }

// Operator looks at what an operator answered, or why it did not. part is
// "operator", or the name of a replica.
func (r *Report) Operator(part string, state *meshpb.OperatorState, err error) {
	if err != nil {
		r.silent(part, "operator", err, "start it; traffic goes on with the last configuration and the certificates there are")
		return
	}
	r.Good(part, "operator", "version %s at %s", state.GetVersion(), state.GetAddress())
	c := state.GetConfiguration()
	source := "folder"
	if c.GetFolder() == "" {
		source = "objects"
	}
	if problems := c.GetProblems(); len(problems) > 0 {
		r.Bad(part, source, strings.Join(problems, "; "), "mend "+cmp.Or(c.GetFolder(), "the objects named")+"; until then the configuration before stays in force")
	} else {
		r.Good(part, source, "%s: %d workloads, %d services, %d policies", cmp.Or(c.GetFolder(), "of the cluster"), c.GetWorkloads(), c.GetServices(), c.GetPolicies())
	}
	for _, refused := range c.GetRefusals() {
		r.Bad(part, "refused", refused, "mend the object; until then what it selects is closed, and everything else is in force")
	}
	for _, w := range c.GetWarnings() {
		if !slices.Contains(c.GetRefusals(), w) { // of an operator of this version
			r.Good(part, "warning", "%s", w)
		}
	}
	r.authority(part, state.GetAuthority())
	r.apiServer(part, state.GetApiServer())
	r.federated(part, state.GetFederated())
	for _, n := range state.GetNodes() {
		if !n.GetConnected() && c.GetSource() == "kubernetes" {
			continue // to another replica, or its agent says why not
		}
		if detail := Behind(n); detail != "" {
			r.Bad(part, "node "+n.GetName(), detail, "look at its agent's log, and at the load of the node; what it has applied stays in force there")
			continue
		}
		if n.GetConnected() {
			r.Good(part, "node "+n.GetName(), "connected, applied epoch %d of %d", n.GetEpoch(), c.GetEpoch())
		} else {
			r.Bad(part, "node "+n.GetName(), strings.TrimSuffix("not connected: "+n.GetError(), ": "), "start its agent")
		}
	}
	for _, w := range state.GetWaypoints() {
		if w.GetError() == "" {
			r.Good(part, "waypoint "+w.GetName(), "connected, applied epoch %d of %d", w.GetEpoch(), c.GetEpoch())
		} else {
			r.Bad(part, "waypoint "+w.GetName(), "refused the newest configuration: "+w.GetError(), "mend what it names; until then it goes by what was good before")
		}
	}
}

// LongBehind is for how long an agent may lack something until that is called not well.
const LongBehind = time.Minute

// Behind says that an agent has been behind for too long, and why it says it is; "" when it
// has not, or is not connected.
func Behind(n *meshpb.OperatorNode) string {
	lag := time.Duration(n.GetBehindNs())
	if !n.GetConnected() || lag <= LongBehind {
		return ""
	}
	detail := fmt.Sprintf("has not applied what was published %s ago; it is at epoch %d", lag.Round(time.Second), n.GetEpoch())
	if n.GetError() != "" {
		detail += ": " + n.GetError()
	}
	return detail
}

// slowAPIServer is from when an API server is called slow.
const slowAPIServer = time.Second

// APIServer says what is not well about the API server that an operator asks: "" is
// nothing.
func APIServer(a *meshpb.OperatorAPIServer) (detail, remedy string) {
	took := time.Duration(a.GetTookNs())
	switch {
	case a.GetError() != "":
		since := time.Unix(0, a.GetSilentSinceNs())
		return fmt.Sprintf("has not answered for %s: %s", max(time.Since(since), 0).Round(time.Second), a.GetError()),
			"look at the API server, and at the way to it from the operator's pod; what is known is served on, certificates are renewed, and the operator takes up by itself"
	case took > slowAPIServer:
		return fmt.Sprintf("takes %s to answer: changes take effect that much later", took.Round(10*time.Millisecond)),
			"look at the load of the API server and of etcd"
	}
	return "", ""
}

// apiServer looks at what the operator says of it; an operator of a folder has none.
func (r *Report) apiServer(part string, a *meshpb.OperatorAPIServer) {
	if a == nil {
		return
	}
	if detail, remedy := APIServer(a); detail != "" {
		r.Bad(part, "API server", detail, remedy)
		return
	}
	r.Good(part, "API server", "answers in %s", time.Duration(a.GetTookNs()).Round(time.Millisecond))
}

// authority looks at the operator's root.
func (r *Report) authority(part string, a *meshpb.OperatorAuthority) {
	until := time.Unix(0, a.GetRootNotAfterNs())
	if by := a.GetIssuer(); by != "" { // which replaces it by itself, long before
		if left := time.Until(until); left < time.Duration(a.GetRootNotAfterNs()-a.GetRootNotBeforeNs())/10 {
			r.Bad(part, "authority", "the root certificate of "+by+" expires at "+until.Format(time.RFC3339)+", and none has taken its place", "have "+by+" replace it: `heddle certs` says whether the operator reaches "+by)
			return
		}
		r.Good(part, "authority", "trust domain %s of %s, root valid until %s", a.GetTrustDomain(), by, until.Format(time.RFC3339))
		return
	}
	if until.Before(time.Now().Add(30 * 24 * time.Hour)) {
		r.Bad(part, "authority", "the root certificate expires at "+until.Format(time.RFC3339),
			"`heddle certs rotate --root --wait`: no connection fails meanwhile; see docs/certificates.md")
		return
	}
	r.Good(part, "authority", "trust domain %s, root valid until %s", a.GetTrustDomain(), until.Format(time.DateOnly))
}

// Unseen warns that something of the cluster could not be looked at, for want of a right to it for example, in the API
// server's own words where it said why.
func (r *Report) Unseen(name string, err error) {
	text := err.Error()
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		text = status.Status().Message
	}
	r.Warn("cluster", name, "could not look: "+text, "have someone who may read it run `heddle check --cluster`, or see to it yourself (docs/install.md, Preflight)")
}

// silent says of a program that it did not answer. Of one that this user may not ask it is not known that it does not
// run, and what to do about it is what the error says.
func (r *Report) silent(part, name string, err error, remedy string) {
	detail := err.Error()
	if refused, ask, has := strings.Cut(detail, "; remedy: "); has && errors.Is(err, admin.ErrForbidden) {
		detail, remedy = refused, ask
	}
	r.Bad(part, name, detail, remedy)
}
