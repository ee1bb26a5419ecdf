// Package kernel joins agent/podnet, which puts the mesh around a pod, to what
// decides about pods (agent/enroll), what carries their connections
// (agent/proxy) and what records drops (internal/flow). It translates names and
// types between them and decides nothing.
//
// A Datapath is safe for concurrent use. Open starts nothing; Run blocks.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/agent/drift"
	"github.com/heddle-mesh/heddle/agent/kubelet"
	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/overdue"
)

// Config says where the kernel's part of a node is. Zero numbers take podnet's
// defaults.
type Config struct {
	Node string
	// PinDir is the node's folder on bpffs, StateDir its folder on a tmpfs.
	PinDir, StateDir string
	// Cgroup is the agent's own cgroup2 folder; "" finds or makes one.
	Cgroup string
	// Kubelet says where probes come from: kubelet.Auto, kubelet's cgroup2 folder,
	// or "" for none.
	Kubelet        string
	Mark, MarkMask uint32
	FlowsPerPod    uint32
	// CaptureDNS takes what those pods send to port 53 whose configuration does not
	// say; see Answering.
	CaptureDNS bool
	// SystemCongestion leaves TCP's congestion control to the system everywhere.
	SystemCongestion bool
	// Grandfather bounds connections that were open before enrolment.
	Grandfather time.Duration
	// Inherited are the listeners of the agent that this one succeeds, by pod,
	// and Beside is its process: they share a cgroup for as long as both run.
	Inherited map[string][]Inherited
	Beside    int
	Log       *slog.Logger
}

// Inherited is a listener of another agent.
type Inherited = listener.Inherited

// CloseInherited closes listeners that were shared.
func CloseInherited(all map[string][]Inherited) { listener.CloseAll(all) }

// Duplicate returns a descriptor of a listener for another process.
func Duplicate(l *net.TCPListener) (int, error) { return listener.Duplicate(l) }

// Name is the name under which a workload is enrolled.
func Name(key mesh.Key) string { return podnet.Name(key) }

// Layout says on what two agents must agree that work on one node's pins and
// pods, one after the other or together.
func Layout(cfg Config) string {
	return fmt.Sprintf("%s, mark %#x of %#x", bpf.Layout, cfg.Mark, cfg.MarkMask)
}

// Datapath is the kernel's part of a node.
type Datapath struct {
	node       *podnet.Node
	name       string         // the node's
	kubelet    *kubelet.Watch // nil for none
	drift      *drift.Watch
	room       *Room
	log        *slog.Logger
	captureDNS bool          // unless a workload's configuration says
	enrolled   chan struct{} // of one: a pod was enrolled
	judged     *mesh.View    // of endRefused: the last by which it has judged
	finishing  finishing
	keys       struct {
		sync.RWMutex
		byName map[string]mesh.Key
	}
}

// openWithin bounds each step of Open: many times what it takes on a busy machine.
const openWithin = 2 * time.Minute

// Open moves the process into its cgroup and loads the kernel's part, or adopts
// what an earlier agent left. It must come before the first socket that is to
// reach a pod's wire.
//
// Its steps wait for locks in the kernel that everybody on the machine shares. They
// cannot be interrupted; when ctx is done, or after two minutes each, Open returns an
// error without them, after which the process should end.
func Open(ctx context.Context, cfg Config) (*Datapath, error) {
	var beside []int
	if cfg.Beside > 0 {
		beside = append(beside, cfg.Beside)
	}
	entering := overdue.Step{What: "for the kernel to move the agent into its cgroup", Within: openWithin, Remedy: "see what has the machine's cgroups locked (dmesg, processes in state D), or set --cgroup and start the agent in it"}
	own, err := overdue.Do(ctx, cfg.Log, entering, func() (*cgroup.Cgroup, error) { return cgroup.Enter(cfg.Node, cfg.Cgroup, beside...) }, nil)
	if err != nil {
		return nil, err
	}
	probes, err := kubelet.NewWatch(cfg.Kubelet, cfg.Log)
	if err != nil {
		return nil, err
	}
	// The steps have threads of their own: the node is where the caller's is.
	home, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	loading := overdue.Step{What: "for the kernel to load or adopt the programs of the node", Within: openWithin, Remedy: "see what the threads of this process wait for in the kernel (the log, dmesg, /proc/PID/task/*/stack)"}
	node, err := overdue.Do(ctx, cfg.Log, loading, func() (*podnet.Node, error) {
		return podnet.Open(podnet.Config{
			NetNS: fmt.Sprintf("/proc/self/fd/%d", home.Fd()), PinDir: cfg.PinDir, StateDir: filepath.Join(cfg.StateDir, "pods"),
			Cgroup: own.Path, KubeletCgroup: probes.ID(), Mark: cfg.Mark, MarkMask: cfg.MarkMask, FlowsPerPod: cfg.FlowsPerPod,
			Grandfather: cfg.Grandfather, SystemCongestion: cfg.SystemCongestion, Inherited: cfg.Inherited, Shared: cfg.Beside > 0, Log: cfg.Log,
		})
	}, func(late *podnet.Node) { _ = late.Close() }) // nobody is there to hear of it
	if err != nil {
		return nil, err
	}
	d := &Datapath{node: node, name: cfg.Node, kubelet: probes, drift: drift.New(node, cfg.Log), room: newRoom(), log: cfg.Log, captureDNS: cfg.CaptureDNS, enrolled: make(chan struct{}, 1), finishing: finishing{due: make(chan struct{}, 1)}}
	d.keys.byName = map[string]mesh.Key{}
	return d, nil
}

// Close lets go of the kernel's part, which stays in force.
func (d *Datapath) Close() error { return d.node.Close() }

// Uninstall removes what is left in the kernel when every pod has left the mesh;
// Close must follow.
func (d *Datapath) Uninstall() error { return d.node.Uninstall() }

// Pods is the podnet.Node, for reports.
func (d *Datapath) Pods() *podnet.Node { return d.node }

// Kubelet is what knows where probes come from; nil for none.
func (d *Datapath) Kubelet() *kubelet.Watch { return d.kubelet }

// Drift is what keeps the kernel's maps as they were written, while Run runs.
func (d *Datapath) Drift() *drift.Watch { return d.drift }

// Room is what knows which gates have no room for all rules of datagrams.
func (d *Datapath) Room() *Room { return d.room }

// LostDrops counts the drops without a record.
func (d *Datapath) LostDrops() uint64 {
	n, err := d.node.LostDrops()
	if err != nil {
		d.log.Warn("lost drop records cannot be counted", "error", err)
	}
	return n
}

// Enroll implements enroll.Datapath.
func (d *Datapath) Enroll(ctx context.Context, w *mesh.Workload, revoked bool) (proxy.Pod, error) {
	pod, err := d.enrollPrompt(ctx, podnet.SpecOf(w, d.captureDNS, revoked))
	if err != nil {
		return proxy.Pod{}, err
	}
	d.keys.Lock()
	d.keys.byName[pod.Name()] = w.Key
	d.keys.Unlock()
	select {
	case d.enrolled <- struct{}{}:
	default: // it will be looked at anyway
	}
	listeners := pod.Listeners()
	return proxy.Pod{
		Key: w.Key, UID: w.UID, NetNS: w.NetNS, Addresses: w.Addresses,
		Listeners: proxy.Listeners{
			Outbound: widen(listeners.Outbound), Inbound: widen(listeners.Inbound), Tunnel: listeners.Tunnels(),
		},
		Sockets: sockets{pod},
		Probe: func(local, remote netip.AddrPort) bool {
			kind, ok, err := pod.FlowKind(local, remote)
			return err == nil && ok && kind == bpf.FlowProbe
		},
	}, nil
}

func widen(listeners []*net.TCPListener) []net.Listener {
	all := make([]net.Listener, len(listeners))
	for i, l := range listeners {
		all[i] = l
	}
	return all
}

// sockets gives podnet's refusal the name that proxy knows.
type sockets struct{ *podnet.Pod }

// DialApp implements proxy.Sockets.
func (s sockets) DialApp(ctx context.Context, client, app netip.AddrPort) (*net.TCPConn, error) {
	conn, err := s.Pod.DialApp(ctx, client, app)
	return conn, redirectError(err)
}

// StartApp implements proxy.Starter.
func (s sockets) StartApp(client, app netip.AddrPort) (int, func(context.Context) error, error) {
	fd, wait, err := s.Pod.StartApp(client, app)
	if wait == nil {
		return fd, nil, redirectError(err)
	}
	return fd, func(ctx context.Context) error { return redirectError(wait(ctx)) }, nil
}

func redirectError(err error) error {
	if errors.Is(err, podnet.ErrRedirect) {
		return fmt.Errorf("%w: %w", proxy.ErrRedirect, err)
	}
	return err
}

// Unenroll implements enroll.Datapath.
func (d *Datapath) Unenroll(ctx context.Context, key mesh.Key) error {
	return d.node.Unenroll(ctx, podnet.Name(key))
}

// Prune implements enroll.Datapath.
func (d *Datapath) Prune(ctx context.Context, keep []mesh.Key) error {
	names := map[string]bool{}
	for _, key := range keep {
		names[podnet.Name(key)] = true
	}
	pruned, err := d.node.Prune(ctx, names)
	if len(pruned) > 0 {
		d.log.Info("took back what an earlier agent left", "workloads", pruned)
	}
	return err
}

// Run records what the gates drop and end, and which datagrams they let pass, ends what was
// open before enrolment and policy no longer allows, reports pods that went away, keeps the kernel told of services that nobody serves and of who may exchange
// datagrams, and the next pod's programs loaded, until ctx is done.
func (d *Datapath) Run(ctx context.Context, store *mesh.Store, drops *flow.Drops, gone func(mesh.Key, error)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { d.kubelet.Run(ctx, d.node.SetKubelet); return nil })
	group.Go(func() error { d.refuseVacant(ctx, store); return nil })
	group.Go(func() error { d.keepSpare(ctx); return nil })
	group.Go(func() error { return d.Finish(ctx) })
	group.Go(func() error { d.passDatagrams(ctx, store, drops); return nil })
	group.Go(func() error { d.recordEnded(ctx, store, drops); return nil })
	group.Go(func() error { d.endRefused(ctx, store, drops); return nil })
	group.Go(func() error { d.drift.Run(ctx); return nil })
	group.Go(func() error {
		err := d.node.Drops(ctx, func(drop podnet.Drop) { d.record(store.View(), drops, &drop) })
		return unlessDone(ctx, err)
	})
	group.Go(func() error {
		err := d.node.Watch(ctx, func(name string, why error) {
			if key, ok := d.key(name); ok {
				gone(key, why)
			}
		})
		return unlessDone(ctx, err)
	})
	return group.Wait()
}

// keepSpare makes enrolment fast, not possible: a pod whose programs do not load says so.
func (d *Datapath) keepSpare(ctx context.Context) {
	if err := d.node.KeepSpare(ctx); err != nil {
		d.log.Warn("the programs of the next pod are not loaded ahead: it takes longer to enroll", "error", err)
	}
}

func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (d *Datapath) key(name string) (mesh.Key, bool) {
	d.keys.RLock()
	defer d.keys.RUnlock()
	key, ok := d.keys.byName[name]
	return key, ok
}

// record turns one dropped packet into part of a flow record.
func (d *Datapath) record(view *mesh.View, drops *flow.Drops, drop *podnet.Drop) {
	key, known := d.key(drop.Pod)
	if !known { // dropped while no agent ran; or the zero Key for a pod that is gone
		key, known = podnet.KeyOf(drop.Pod)
	}
	r := flow.Record{
		Start: drop.Time, Reason: drop.Reason, Rule: -1, Packets: 1, Protocol: drop.Protocol,
		Source: endpoint(view, drop.Source), Destination: endpoint(view, drop.Destination),
	}
	own := &r.Source
	if drop.Direction == bpf.Inbound {
		own = &r.Destination
	}
	if known {
		own.Workload = key
	}
	w, ok := view.Workload(key)
	if ok {
		own.Identity = w.Identity
	}
	if drop.Reason == mesh.ReasonNoEndpoint {
		if s := view.Route(w, drop.Destination).Service; s != nil { // also at its external addresses
			r.Service = s.Key
		}
		drops.AddRefusal(key, r)
		return
	}
	if drop.Reason == mesh.ReasonKernelUDP {
		drops.AddExplained(key, r, func(r *flow.Record) { explainDatagram(view, w, drop, d.room.of(drop.Pod), r) })
		return
	}
	drops.Add(key, r)
}

func endpoint(view *mesh.View, addr netip.AddrPort) flow.Endpoint {
	e := flow.Endpoint{Addr: addr}
	if w, ok := view.WorkloadAt(addr.Addr()); ok {
		e.Workload = w.Key
	}
	return e
}
