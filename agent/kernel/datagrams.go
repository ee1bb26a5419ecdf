package kernel

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

const (
	// datagramsEvery is how often conversations are looked at, and rules that could not be
	// written are tried again.
	datagramsEvery = time.Second
	// datagramsPause is how long a new configuration waits at least for the one before:
	// of many in a row, not each is written out.
	datagramsPause = 100 * time.Millisecond
)

// A gate has room for all that an agent gives it: what is inside, and rules, are bounded in
// both packages.
const _, _ = uint(bpf.MaxInside - datagram.MaxInside), uint(bpf.MaxDatagramRules - datagram.MaxRules)

// passDatagrams keeps the gates told of who may exchange datagrams with whom, also outside
// the mesh, as the View of the moment has it, and records what they let pass, until ctx is
// done. What they were told last holds after that.
func (d *Datapath) passDatagrams(ctx context.Context, store *mesh.Store, flows *flow.Drops) {
	g := datagrams{datapath: d, flows: flows, began: time.Now(), pods: map[string]*datagramPod{}}
	look := time.NewTicker(datagramsEvery)
	defer look.Stop()
	enrolled := true
	for {
		view, replaced := store.Snapshot()
		if view.Synced() {
			g.tell(view, enrolled)
		}
		enrolled = false
		pause := time.After(datagramsPause)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				g.record(view)
				return
			case <-replaced:
				waiting = false
			case <-d.enrolled:
				waiting, enrolled = false, true
			case <-look.C:
				g.record(view)
				g.fill(view)
				waiting = !g.behind
			}
		}
		select {
		case <-ctx.Done():
		case <-pause:
		}
	}
}

// datagrams is what the gates were told, and what they are known to have let pass.
type datagrams struct {
	datapath *Datapath
	flows    *flow.Drops
	began    time.Time
	pods     map[string]*datagramPod
	behind   bool // a gate could not be told
	// view is what was told last, and inside what it came to: empty while nothing may leave
	// the mesh.
	view   *mesh.View
	inside []netip.Prefix
}

type datagramPod struct {
	pod  *podnet.Pod
	told bool
	// leaves says that some of its rules are about who is outside, and inside what is not.
	leaves bool
	inside []netip.Prefix
	left   int // found no room
	// short is set since rules were taken away that may have made room for those left.
	short bool
	seen  map[conversation]bpf.Conversation
}

// conversation names one of a pod's.
type conversation struct{ local, remote netip.AddrPort }

// wanted is what a gate is to be told: all of its rules, or what changes.
type wanted struct {
	pod         *datagramPod
	whole       bool
	rules       []bpf.DatagramRule // where whole
	left        int                // of those
	gone, added []bpf.DatagramRule // where not
}

// tell brings every gate to what a View says: first what is taken away is, from all, then
// what is new is given. Enrolled says that there may be pods that have been told nothing.
func (g *datagrams) tell(view *mesh.View, enrolled bool) {
	changes, fresh := g.follow(view)
	if !fresh && !enrolled && !g.behind {
		return
	}
	pods := g.datapath.node.Pods()
	maps.DeleteFunc(g.pods, func(name string, p *datagramPod) bool { return pods[name] != p.pod })
	g.datapath.room.keep(func(name string) bool { return g.pods[name] != nil })
	all := map[string]wanted{}
	for name, pod := range pods {
		p := g.pods[name]
		if p == nil {
			p = &datagramPod{pod: pod}
			g.pods[name] = p
		}
		if key, known := g.datapath.key(name); known {
			if w := g.want(p, key, changes[key]); w.whole || len(w.gone)+len(w.added) > 0 {
				all[name] = w
			}
		}
	}
	for name, w := range all {
		if p := w.pod; p.told && w.whole {
			g.set(name, p, func(k *bpf.Pod) (int, error) { return w.left, k.KeepDatagrams(w.rules, g.inside) })
		} else if len(w.gone) > 0 {
			p.short = p.short || p.left > 0
			g.change(name, p, w.gone, nil)
		}
	}
	for name, w := range all {
		if p := w.pod; w.whole {
			g.setWhole(name, p, w)
		} else if len(w.added) > 0 && p.told { // what is gone is
			g.change(name, p, nil, w.added)
		}
	}
	g.behind = false
	for _, p := range g.pods {
		g.behind = g.behind || !p.told
	}
}

// want works out what a gate is to be told.
func (g *datagrams) want(p *datagramPod, key mesh.Key, c datagram.Change) wanted {
	if p.told && !c.Whole && (!p.leaves || slices.Equal(g.inside, p.inside)) {
		return wanted{pod: p, gone: GateRules(c.Gone), added: GateRules(c.Added)}
	}
	rules, left := datagram.RulesOf(g.view, g.datapath.name, key)
	return wanted{pod: p, whole: true, rules: GateRules(rules), left: left}
}

// fill gives one gate that has lost rules those that had found no room.
func (g *datagrams) fill(view *mesh.View) {
	for name, p := range g.pods {
		key, known := g.datapath.key(name)
		if !known || !p.told || !p.short || view != g.view {
			continue
		}
		g.setWhole(name, p, g.want(p, key, datagram.Change{Whole: true}))
		g.behind = g.behind || !p.told
		return
	}
}

func (g *datagrams) change(name string, p *datagramPod, gone, added []bpf.DatagramRule) {
	g.set(name, p, func(k *bpf.Pod) (int, error) {
		left, err := k.ChangeDatagrams(gone, added)
		return p.left + left, err
	})
}

func (g *datagrams) setWhole(name string, p *datagramPod, w wanted) {
	p.short = false
	p.leaves = slices.ContainsFunc(w.rules, func(r bpf.DatagramRule) bool { return r.Remote == datagram.Outside() })
	g.set(name, p, func(k *bpf.Pod) (int, error) {
		left, err := k.SetDatagrams(w.rules, g.inside)
		return w.left + left, err
	})
}

// follow says what a View changes of rules; false when it is nothing, as it is while no
// policy is about UDP, and none may leave the mesh.
func (g *datagrams) follow(view *mesh.View) (changes map[mesh.Key]datagram.Change, fresh bool) {
	before := g.view
	if before != nil && view.SameMembers(before) {
		g.view = view
		return nil, false
	}
	g.view = view
	leaves := datagram.LeavesMesh(view.Settings())
	if before == nil {
		before = view // pods have been told nothing
	} else if !leaves && !datagram.LeavesMesh(before.Settings()) && len(view.Receivers())+len(before.Receivers()) == 0 {
		return nil, false
	}
	if g.inside = nil; leaves {
		g.inside = datagram.Inside(view)
	}
	if len(g.inside) > datagram.MaxInside {
		g.datapath.log.Error("no datagram leaves the mesh: more addresses of it lie outside of spec.clusterRanges of the Mesh than gates have room for; extend that", "addresses", len(g.inside), "room", datagram.MaxInside)
	}
	return datagram.Changes(before, view, g.datapath.name), true
}

// GateRules are rules as a gate takes them.
func GateRules(rules []datagram.Rule) []bpf.DatagramRule {
	converted := make([]bpf.DatagramRule, len(rules))
	for i, r := range rules {
		converted[i] = bpf.DatagramRule{Remote: r.Remote, Port: r.Port, Direction: bpf.Outbound}
		if r.Inbound {
			converted[i].Direction = bpf.Inbound
		}
	}
	return converted
}

// set tells one gate, and notes whether it could be told, and how many rules are left.
func (g *datagrams) set(name string, p *datagramPod, tell func(*bpf.Pod) (left int, err error)) {
	left := 0
	err := p.pod.Kernel(func(k *bpf.Pod) (err error) {
		left, err = tell(k)
		return err
	})
	if err != nil && !errors.Is(err, podnet.ErrClosed) {
		g.datapath.log.Error("who may exchange datagrams with a pod could not be changed: trying again", "workload", name, "error", err)
	}
	if left > 0 && p.left == 0 {
		g.datapath.log.Error("policies let more addresses exchange datagrams with a pod than the kernel has room for: the others' are dropped", "workload", name, "room", bpf.MaxDatagramRules, "left", left)
	}
	p.left, p.told, p.inside = left, err == nil, g.inside
	g.datapath.room.set(name, left)
}

// record records what passed since the last time.
func (g *datagrams) record(view *mesh.View) {
	for name, p := range g.pods {
		var now []bpf.Conversation
		err := p.pod.Kernel(func(k *bpf.Pod) (err error) {
			now, err = k.Conversations()
			return err
		})
		if err != nil {
			if !errors.Is(err, podnet.ErrClosed) {
				g.datapath.log.Warn("datagrams that passed cannot be counted", "workload", name, "error", err)
			}
			continue
		}
		key, _ := g.datapath.key(name)
		own, _ := view.Workload(key)
		seen := make(map[conversation]bpf.Conversation, len(now))
		for _, c := range now {
			id := conversation{c.Local, c.Remote}
			seen[id] = c
			since, ok := news(c, p.seen[id], time.Since(g.began))
			if ok && own != nil {
				g.flows.AddDatagrams(passed(view, own, c, since))
			}
		}
		p.seen = seen
	}
}

// news returns what is new of a conversation, and whether anything is. One that was there
// before this agent was an earlier one's to record.
func news(c, before bpf.Conversation, running time.Duration) (since bpf.Conversation, ok bool) {
	since = c
	again := c.Direction != before.Direction || c.Out.Packets < before.Out.Packets || c.In.Packets < before.In.Packets
	switch {
	case before.Local.IsValid() && !again:
		since.Out.Packets, since.Out.Bytes = c.Out.Packets-before.Out.Packets, c.Out.Bytes-before.Out.Bytes
		since.In.Packets, since.In.Bytes = c.In.Packets-before.In.Packets, c.In.Bytes-before.In.Bytes
	case !before.Local.IsValid() && c.Opened > running:
		return since, false
	}
	return since, since.Out.Packets+since.In.Packets > 0
}

// passed is a part of a flow record.
func passed(view *mesh.View, own *mesh.Workload, c, since bpf.Conversation) flow.Record {
	now := time.Now()
	r := flow.Record{
		Start: now.Add(-min(c.Opened, datagramsEvery)), Direction: flow.DirectionOutbound, Wire: flow.Wire{Transport: flow.TransportPlaintext},
		Packets: since.Out.Packets + since.In.Packets, Protocol: flow.ProtocolUDP,
	}
	r.Duration = max(0, now.Add(-c.LastSeen).Sub(r.Start))
	mine, other := flow.Endpoint{Workload: own.Key, Identity: own.Identity, Addr: c.Local}, flow.Endpoint{Addr: c.Remote}
	peer, ok := view.WorkloadAt(c.Remote.Addr())
	if ok {
		other.Workload = peer.Key
		if peer.Enrolled {
			other.Identity = peer.Identity
		}
	}
	var decision mesh.Decision
	outside := false
	if c.Direction == bpf.Inbound {
		r.Direction, r.Source, r.Destination = flow.DirectionInbound, other, mine
		r.BytesSent, r.BytesReceived = since.In.Bytes, since.Out.Bytes
		decision = datagram.Authorize(view, datagram.Conversation{Source: c.Remote.Addr(), Destination: own, Port: c.Local.Port()})
	} else {
		r.Source, r.Destination = mine, other
		r.BytesSent, r.BytesReceived = since.Out.Bytes, since.In.Bytes
		if outside = !ok && datagram.IsOutside(view, c.Remote.Addr()); !outside { // no policy has a say there
			decision, r.Service, _ = datagram.AuthorizeTo(view, own, c.Remote)
		}
	}
	// The gate let it pass, by what it was told: policy may have changed since.
	r.Verdict, r.Reason, r.Rule = mesh.VerdictAllow, mesh.ReasonPolicyAllow, -1
	if outside {
		r.Reason = mesh.ReasonEgressAllowed
	}
	if !outside && decision.Verdict != mesh.VerdictDeny {
		r.Verdict, r.Policy, r.Rule, r.Audited = decision.Verdict, decision.Policy, decision.Rule, flow.NamesOf(decision.Audited)
	}
	return r
}

// explainDatagram adds to a datagram of the pod that was dropped what policy says of it.
// Left is for how many rules its gate has no room.
func explainDatagram(view *mesh.View, own *mesh.Workload, drop *podnet.Drop, left int, r *flow.Record) {
	if own == nil {
		return
	}
	var decision mesh.Decision
	if drop.Direction == bpf.Inbound {
		decision = datagram.Authorize(view, datagram.Conversation{Source: drop.Source.Addr(), Destination: own, Port: drop.Destination.Port()})
	} else {
		decision, r.Service, _ = datagram.AuthorizeTo(view, own, drop.Destination)
	}
	r.Audited = flow.NamesOf(decision.Audited)
	ungated := firstUngated(view, own, drop.Source.Addr(), drop.Destination.Addr())
	switch {
	case decision.Verdict != mesh.VerdictDeny && left > 0:
		r.Detail = "policy allows it, but the pod's gate has no room for all that policies allow"
	case decision.Verdict != mesh.VerdictDeny:
		r.Detail = "policy allows it now"
	case decision.Reason == mesh.ReasonKernelUDP && ungated != nil:
		r.Detail = "the agent of node " + ungated.Node + " has not said that " + ungated.Key.String() + " is behind its gate"
	case decision.Reason == mesh.ReasonPolicyDeny:
		r.Policy, r.Rule = decision.Policy, decision.Rule
	case decision.Reason != mesh.ReasonKernelUDP:
		r.Detail = decision.Reason.String()
	}
}

// firstUngated returns the pod itself, or who else has one of the addresses, if it belongs in
// the mesh and nobody has said that it is behind its gate: of who takes datagrams, or sends
// them to one that does. nil where no policy is about UDP.
func firstUngated(view *mesh.View, own *mesh.Workload, addrs ...netip.Addr) *mesh.Workload {
	if len(view.Receivers()) == 0 {
		return nil
	}
	ends := []*mesh.Workload{own}
	for _, addr := range addrs {
		if w, ok := view.WorkloadAt(addr); ok {
			ends = append(ends, w)
		}
	}
	for _, w := range ends {
		if w.Enrolled && !w.Gated {
			return w
		}
	}
	return nil
}
