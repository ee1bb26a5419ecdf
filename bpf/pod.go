package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Pod is one enrolled pod's part of the kernel. Its methods are safe for
// concurrent use.
type Pod struct {
	node *Node
	dir  string

	maps      map[string]*ebpf.Map // by their names in C
	gate      *ebpf.Collection
	redirect  *ebpf.Collection
	enrolment uint32

	mu    sync.Mutex
	cfg   PodConfig            // guarded by mu
	wrote gatePodConfig        // guarded by mu; what cfg and the node's configuration came to
	links map[string]link.Link // guarded by mu; by program name
	// held are the places that HoldGate has filters in; guarded by mu.
	held []place
	// ended are the connections of TakeEnded; guarded by mu.
	ended []FlowEntry
	olds  olds

	datagrams datagrams        // guarded by mu
	look      *ebpf.Collection // guarded by mu; what digests rules, nil until that is needed
	// unmended is what Reconcile found of datagrams and could not mend yet, mended what has
	// been since, for it to return; guarded by mu.
	unmended, mended []string
}

// linkNames are the pins of a pod that are links; each is named like its
// program.
func linkNames() []string {
	return []string{gateProgHostOutbound, gateProgHostInbound, gateProgPodOutbound, gateProgPodInbound, redirectProgRedirect, redirectProgRefuse}
}

// Pod creates a pod's maps and programs, or adopts those of an earlier agent:
// links that exist go over to this version's programs without a gap. It
// attaches nothing that was not attached.
func (n *Node) Pod(cfg PodConfig) (*Pod, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	dir := n.podDir(cfg.Name)
	_, err := os.Stat(dir)
	fresh := errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of pod %s: %w", cfg.Name, err)
	}
	var p *Pod
	if fresh {
		p = n.takeSpare()
	}
	if p != nil {
		err = p.settle(dir)
	} else {
		p = n.newPod(dir)
		err = p.load()
	}
	if err == nil {
		err = p.adoptDatagrams() // nobody else has the Pod yet
	}
	if err == nil {
		err = p.Update(cfg)
	}
	if err == nil {
		err = p.adopt()
	}
	if err == nil {
		return p, nil
	}
	errs := []error{fmt.Errorf("set up pod %s: %w", cfg.Name, err), p.Close()}
	if fresh {
		errs = append(errs, unpinFolder(p.dir))
	}
	return nil, errors.Join(errs...)
}

func (n *Node) newPod(dir string) *Pod {
	return &Pod{node: n, dir: dir, maps: map[string]*ebpf.Map{}, links: map[string]link.Link{}}
}

// load creates or adopts the maps and loads the programs on them.
func (p *Pod) load() error {
	gate, err := loadGate()
	if err != nil {
		return fmt.Errorf("read the gate's object: %w", err)
	}
	shared := map[string]*ebpf.Map{gateMapStamps: p.node.stamps, gateMapDrops: p.node.drops}
	if p.gate, err = p.collection(gate, shared); err != nil {
		return fmt.Errorf("load the gate: %w", err)
	}
	redirect, err := loadRedirect()
	if err != nil {
		return fmt.Errorf("read the redirect's object: %w", err)
	}
	shared = map[string]*ebpf.Map{redirectMapDrops: p.node.drops, redirectMapVacant: p.node.vacant, redirectMapVacantUntil: p.node.vacantUntil}
	maps.Copy(shared, p.maps)
	if p.redirect, err = p.collection(redirect, shared); err != nil {
		return fmt.Errorf("load the redirect: %w", err)
	}
	return nil
}

// collection loads an object on existing maps and on the pod's pinned ones,
// which it adds to p.maps. One without a folder has no pins, yet.
func (p *Pod) collection(spec *ebpf.CollectionSpec, existing map[string]*ebpf.Map) (*ebpf.Collection, error) {
	// Only pointers are in there that keep types in BTF.
	delete(spec.Maps, ".bss")
	maps.DeleteFunc(spec.Variables, func(_ string, v *ebpf.VariableSpec) bool { return v.SectionName == ".bss" })
	replace := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if have, ok := existing[name]; ok {
			m.MaxEntries = have.MaxEntries() // the spec has the default of sizeFlows' map
			replace[name] = have
			continue
		}
		if name == ".rodata" {
			continue
		}
		if name == gateMapFlows {
			if err := p.sizeFlows(m); err != nil {
				return nil, err
			}
		}
		if p.dir != "" {
			m.Pinning = ebpf.PinByName
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: p.dir},
		MapReplacements: replace,
	})
	if err != nil {
		return nil, err
	}
	for name, m := range coll.Maps {
		if _, ok := replace[name]; !ok {
			p.maps[name] = m
		}
	}
	return coll, nil
}

// sizeFlows bounds the flow table; one that is adopted keeps its bound.
func (p *Pod) sizeFlows(spec *ebpf.MapSpec) error {
	spec.MaxEntries = p.node.cfg.FlowsPerPod
	if p.dir == "" {
		return nil
	}
	old, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, gateMapFlows), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the flow table: %w", err)
	}
	spec.MaxEntries = old.MaxEntries()
	return old.Close()
}

// adopt moves the links that an earlier agent pinned to this one's programs.
func (p *Pod) adopt() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range linkNames() {
		l, err := p.adoptOne(name)
		if err != nil && name != refusal().name { // AttachRefusal says what is wrong with that
			return err
		}
		if l != nil {
			p.links[name] = l
		}
	}
	return p.adoptFilters()
}

// adoptOne adopts a link if it hangs where the configuration says.
func (p *Pod) adoptOne(name string) (link.Link, error) {
	path := filepath.Join(p.dir, name)
	l, err := adoptLink(path, p.program(name))
	if l == nil || err != nil {
		return nil, err
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at link %s: %w", name, err), l.Close())
	}
	if tcx := info.TCX(); tcx != nil && int(tcx.Ifindex) != p.ifindex(name) {
		return nil, errors.Join(l.Unpin(), l.Close())
	}
	return l, nil
}

func (p *Pod) program(name string) *ebpf.Program {
	if prog, ok := p.redirect.Programs[name]; ok {
		return prog
	}
	return p.gate.Programs[name]
}

// Close lets go of the handles. What is attached stays attached.
func (p *Pod) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for name, l := range p.links {
		errs = append(errs, l.Close())
		delete(p.links, name)
	}
	errs = append(errs, p.datagrams.close())
	p.datagrams = datagrams{}
	for _, coll := range []*ebpf.Collection{p.look, p.redirect, p.gate} {
		if coll != nil {
			coll.Close()
		}
	}
	return errors.Join(errs...)
}

// Remove detaches and unpins everything of the pod, and closes it. The gate
// goes last.
func (p *Pod) Remove() error {
	errs := []error{p.DetachRedirect(), p.DetachGate(), p.Close()}
	return errors.Join(append(errs, unpinFolder(p.dir))...)
}

// Update applies a changed configuration to the running programs: at no moment
// does plaintext pass that neither the old nor the new configuration admits.
// Connections that the new one does not admit lose their flow entries. Name
// and interfaces cannot change.
func (p *Pod) Update(cfg PodConfig) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Name != "" && (cfg.Name != p.cfg.Name || cfg.HostIfindex != p.cfg.HostIfindex || cfg.PodIfindex != p.cfg.PodIfindex) {
		return fmt.Errorf("update pod %s: its name or interfaces changed: remove it and enroll it anew", p.cfg.Name)
	}
	return p.apply(cfg)
}

// apply writes a configuration to the maps; mu is held.
func (p *Pod) apply(cfg PodConfig) error {
	desired := cfg.portFlags()
	ports := p.maps[gateMapPorts]
	for port, flags := range desired {
		if err := ports.Put(port, flags); err != nil {
			return fmt.Errorf("write port %d: %w", port, err)
		}
	}
	if err := p.writeConfig(cfg); err != nil {
		return err
	}
	// Exceptions go after the default has changed: a STRICT one must not be
	// missing while the default still is PERMISSIVE.
	if err := prunePorts(ports, desired); err != nil {
		return err
	}
	p.cfg = cfg
	return p.endRefusedFlows()
}

// Refresh writes the configuration anew, after the node's has changed.
func (p *Pod) Refresh() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apply(p.cfg)
}

// SetMode changes the modes of the pod's ports; see Update.
func (p *Pod) SetMode(mode Mode, perPort map[uint16]Mode) error {
	cfg := p.config()
	cfg.Mode, cfg.PortModes = mode, perPort
	return p.Update(cfg)
}

func (p *Pod) config() PodConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg
}

// writeConfig writes the slot that is not in use, then makes it the one in use.
func (p *Pod) writeConfig(cfg PodConfig) error {
	var active uint32
	if err := p.maps[gateMapActive].Lookup(uint32(0), &active); err != nil {
		return fmt.Errorf("read which configuration is in use: %w", err)
	}
	if p.enrolment == 0 {
		var old gatePodConfig
		if err := p.maps[gateMapConfig].Lookup(active&1, &old); err != nil {
			return fmt.Errorf("read the configuration: %w", err)
		}
		p.enrolment = old.Enrolment
	}
	for p.enrolment == 0 {
		var b [4]byte
		rand.Read(b[:]) // never fails: crypto/rand
		p.enrolment = binary.NativeEndian.Uint32(b[:])
	}
	next, wanted := (active+1)&1, cfg.kernel(p.node.config(), p.enrolment)
	if p.datagrams.table != nil {
		wanted.Flags |= uint32(gatePodFlagsPOD_DATAGRAMS)
	}
	if len(p.datagrams.inside) > 0 {
		wanted.Flags |= uint32(gatePodFlagsPOD_OUTSIDE)
	}
	if err := p.maps[gateMapConfig].Put(next, wanted); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := p.maps[gateMapActive].Put(uint32(0), next); err != nil {
		return fmt.Errorf("switch the configuration: %w", err)
	}
	p.wrote = wanted
	return nil
}

func prunePorts(ports *ebpf.Map, desired map[uint16]uint32) error {
	var port uint16
	var flags uint32
	var gone []uint16
	it := ports.Iterate()
	for it.Next(&port, &flags) {
		if _, ok := desired[port]; !ok {
			gone = append(gone, port)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list ports: %w", err)
	}
	for _, port := range gone {
		if err := ports.Delete(port); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete port %d: %w", port, err)
		}
	}
	return nil
}

// SetListener makes a listening socket of the agent, or a bound UDP one, the
// target of a slot, and stamps it by what the slot's connections are for. The
// socket must have been made in the pod's network namespace, transparent, and
// not be MPTCP. The
// kernel forgets a listener when it is closed; then connections are refused
// until the next SetListener.
func (p *Pod) SetListener(slot Slot, fd uintptr) error {
	table, index := slot.place()
	if table == "" {
		return fmt.Errorf("no such slot: %d", slot)
	}
	if err := p.Stamp(fd, slot.class()); err != nil {
		return err
	}
	// One that came from another agent is there already, and is not put a second
	// time: the kernel would unlink the two entries together (sock_map_del_link,
	// net/core/sock_map.c).
	if leads, err := p.LeadsTo(slot, fd); err != nil || leads {
		return err
	}
	if err := p.maps[table].Put(index, uint64(fd)); err != nil {
		return fmt.Errorf("put the listener in slot %d: %w", slot, err)
	}
	return nil
}

// Stamp says what a socket of the agent is for. It must come before connect:
// what the gate sees first decides the flow's kind.
func (p *Pod) Stamp(fd uintptr, class Class) error {
	if class == 0 || class >= Class(gateStampClassCLASSES) {
		return fmt.Errorf("no such class: %d", class)
	}
	socket, stamp := int32(fd), gateStamp{Class: uint32(class)}
	if errno := elementCall(unix.BPF_MAP_UPDATE_ELEM, p.node.stamps, &socket, &stamp, ebpf.UpdateAny); errno != 0 {
		return fmt.Errorf("stamp a socket: %w", errno)
	}
	return nil
}

// ErrPassthruBusy says that the client's address and port are in use on the
// wire, so the agent must choose another port towards the app.
var ErrPassthruBusy = errors.New("the client has a live flow on this tuple")

// AddPassthru lets the agent's next connection from client to app reach the
// app's own listener, past the redirect; packets from the wire on this tuple
// are dropped. Call it between bind and connect. It fails with ErrPassthruBusy
// when the tuple is live on the wire.
func (p *Pod) AddPassthru(client, app netip.AddrPort) error {
	key := toTuple(app, client)
	errno := p.putPassthru(&key, gatePassthruStatePASSTHRU_CONNECTING, ebpf.UpdateNoExist)
	if errno == unix.EEXIST {
		return fmt.Errorf("add passthru %v to %v: %w", client, app, ErrPassthruBusy)
	}
	if errno != 0 {
		return fmt.Errorf("add passthru %v to %v: %w", client, app, errno)
	}
	// In this order, so that a SYN that the gate admits meanwhile is seen.
	var flow gateFlow
	for _, name := range []string{gateMapFlows, gateMapTransient} {
		errno := elementCall(unix.BPF_MAP_LOOKUP_ELEM, p.maps[name], &key, &flow, 0)
		if errno == unix.ENOENT {
			continue
		}
		var err error = errno
		if errno == 0 {
			err = ErrPassthruBusy
		}
		return errors.Join(fmt.Errorf("add passthru %v to %v: %w", client, app, err), p.RemovePassthru(client, app))
	}
	return nil
}

func (p *Pod) putPassthru(key *gateTuple, state gatePassthruState, flags ebpf.MapUpdateFlags) syscall.Errno {
	value := uint32(state)
	return elementCall(unix.BPF_MAP_UPDATE_ELEM, p.maps[gateMapPassthru], key, &value, flags)
}

// HoldPassthru ends what a passthru entry allowed, after connect: no packet from
// the wire can pose as the agent's connection to the app for as long as that
// lives, and when the app's end is gone without a word, the agent's next segment
// is answered by a reset. RemovePassthru ends it.
func (p *Pod) HoldPassthru(client, app netip.AddrPort) error {
	key := toTuple(app, client)
	if errno := p.putPassthru(&key, gatePassthruStatePASSTHRU_HELD, ebpf.UpdateExist); errno != 0 {
		return fmt.Errorf("hold passthru %v to %v: %w", client, app, errno)
	}
	return nil
}

// RemovePassthru removes what AddPassthru added; it is no error when that is
// gone.
func (p *Pod) RemovePassthru(client, app netip.AddrPort) error {
	key := toTuple(app, client)
	errno := elementCall(unix.BPF_MAP_DELETE_ELEM, p.maps[gateMapPassthru], &key, (*uint32)(nil), 0)
	if errno != 0 && errno != unix.ENOENT {
		return fmt.Errorf("remove passthru %v to %v: %w", client, app, errno)
	}
	return nil
}
