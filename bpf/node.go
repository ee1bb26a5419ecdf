package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Node is the node-wide part: the stamps of the agent's sockets, the program
// that puts them, and the ring of drop records. Its methods are safe for
// concurrent use.
type Node struct {
	cfg    Config
	dir    string // PinDir/Layout
	stamps *ebpf.Map
	drops  *ebpf.Map
	vacant *ebpf.Map
	// vacantUntil is until when vacant holds.
	vacantUntil *ebpf.Map
	stamp       link.Link // on the agent's cgroup
	// kubelet is Config.KubeletCgroup as of now.
	kubelet  atomic.Uint64
	vacantMu sync.Mutex // held while vacant is read and written
	spare    spare
}

// Load creates the node's maps or adopts the pinned ones, and stamps from now
// on every inet socket that is created in the agent's cgroup. It mounts the
// BPF file system when that is missing.
func Load(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit of locked memory: %w", err)
	}
	if err := mountBPFFS(cfg.PinDir); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, dir: filepath.Join(cfg.PinDir, Layout), spare: spare{taken: make(chan struct{}, 1)}}
	n.kubelet.Store(cfg.KubeletCgroup)
	if err := os.MkdirAll(filepath.Join(n.dir, "pods"), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of pins: %w", err)
	}
	if err := n.load(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) load() error {
	gate, err := loadGate()
	if err != nil {
		return fmt.Errorf("read the gate's object: %w", err)
	}
	redirect, err := loadRedirect()
	if err != nil {
		return fmt.Errorf("read the redirect's object: %w", err)
	}
	pinned := ebpf.MapOptions{PinPath: n.dir}
	for name, m := range map[string]**ebpf.Map{gateMapStamps: &n.stamps, gateMapDrops: &n.drops, redirectMapVacant: &n.vacant, redirectMapVacantUntil: &n.vacantUntil} {
		spec := gate.Maps[name]
		if spec == nil {
			spec = redirect.Maps[name]
		}
		spec.Pinning = ebpf.PinByName
		if *m, err = ebpf.NewMapWithOptions(spec, pinned); err != nil {
			return fmt.Errorf("create or adopt map %s: %w", name, err)
		}
	}
	return n.stampCgroup()
}

// stampCgroup attaches sock_create to the agent's cgroup. Links of cgroups
// that are gone, as after a restart in a new container, are collected; another
// agent's live one stays.
func (n *Node) stampCgroup() error {
	spec, err := loadStamp()
	if err != nil {
		return fmt.Errorf("read the stamp's object: %w", err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{stampMapStamps: n.stamps},
	})
	if err != nil {
		return fmt.Errorf("load sock_create: %w", err)
	}
	defer coll.Close()
	id, err := CgroupID(n.cfg.CgroupPath)
	if err != nil {
		return err
	}
	if err := n.collectStampLinks(); err != nil {
		return err
	}
	prog := coll.Programs[stampProgSockCreate]
	path := filepath.Join(n.dir, fmt.Sprintf("%s_%d", stampProgSockCreate, id))
	if n.stamp, err = adoptLink(path, prog); n.stamp != nil || err != nil {
		return err
	}
	n.stamp, err = link.AttachCgroup(link.CgroupOptions{
		Path: n.cfg.CgroupPath, Attach: ebpf.AttachCGroupInetSockCreate, Program: prog,
	})
	if err != nil {
		return fmt.Errorf("attach sock_create to %s: %w", n.cfg.CgroupPath, err)
	}
	if err := n.stamp.Pin(path); err != nil {
		return fmt.Errorf("pin sock_create: %w", err)
	}
	return nil
}

func (n *Node) collectStampLinks() error {
	paths, err := filepath.Glob(filepath.Join(n.dir, stampProgSockCreate+"_*"))
	if err != nil {
		return fmt.Errorf("list the links of sock_create: %w", err)
	}
	for _, path := range paths {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		info, err := l.Info()
		if err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == 0 {
			err = l.Unpin()
		}
		if err = errors.Join(err, l.Close()); err != nil {
			return fmt.Errorf("collect %s: %w", path, err)
		}
	}
	return nil
}

// adoptLink opens a pinned link and gives it this version's program. It
// returns nil without an error when nothing usable is pinned there: a link
// whose cgroup, interface or namespace is gone is unpinned.
func adoptLink(path string, prog *ebpf.Program) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = l.Update(prog)
	if err == nil {
		return l, nil
	}
	// The kernel says ENOLINK or EINVAL for a link that has lost its target.
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.EINVAL) {
		return nil, errors.Join(l.Unpin(), l.Close())
	}
	return nil, errors.Join(fmt.Errorf("update %s: %w", path, err), l.Close())
}

// SetKubeletCgroup changes Config.KubeletCgroup for whatever is written from now on:
// call Pod.Refresh for the pods that are there.
func (n *Node) SetKubeletCgroup(id uint64) { n.kubelet.Store(id) }

// config is the configuration as of now.
func (n *Node) config() Config {
	cfg := n.cfg
	cfg.KubeletCgroup = n.kubelet.Load()
	return cfg
}

// Close lets go of the handles. The pins stay: stamps go on being put, and
// gates go on.
func (n *Node) Close() error {
	var errs []error
	if n.stamp != nil {
		errs = append(errs, n.stamp.Close())
	}
	errs = append(errs, n.stamps.Close(), n.drops.Close(), n.vacant.Close(), n.vacantUntil.Close())
	return errors.Join(errs...)
}

// Remove takes everything of this node out of the kernel, its pods' parts
// included, and closes the Node.
func (n *Node) Remove() error {
	pods, err := n.Pods()
	errs := []error{err}
	for _, name := range pods {
		errs = append(errs, n.RemovePod(name))
	}
	if n.stamp != nil {
		errs = append(errs, n.stamp.Detach())
	}
	errs = append(errs, n.Close(), unpinFolder(n.dir))
	// PinDir goes too when it is empty; another layout's agent may use it.
	if err := os.Remove(n.cfg.PinDir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Pods lists the names of the pods that have pins: what an earlier agent left.
func (n *Node) Pods() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(n.dir, "pods"))
	if err != nil {
		return nil, fmt.Errorf("list pinned pods: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (n *Node) podDir(name string) string { return filepath.Join(n.dir, "pods", name) }

// RenamePod gives everything that is pinned for a pod another name, in one step
// during which the gate stays as it is, but for datagrams: those pass no more, but to
// DNS, until Pod.SetDatagrams says so under the new name. No Pod may hold either name;
// there must be nothing under the new one.
func (n *Node) RenamePod(from, to string) error {
	for _, name := range []string{from, to} {
		if strings.ContainsAny(name, "/.") || name == "" {
			return fmt.Errorf("pod name %q is not one of ours", name)
		}
	}
	if err := dropPinnedDatagrams(n.podDir(from)); err != nil {
		return err
	}
	if err := os.Rename(n.podDir(from), n.podDir(to)); err != nil {
		return fmt.Errorf("rename the pins of pod %s: %w", from, err)
	}
	return nil
}

// RemovePod takes out what is pinned for a pod that is gone, or whose
// namespace is: it needs no PodConfig. A clsact filter on the pod's own
// interface goes with that interface, or by RemoveFilters.
func (n *Node) RemovePod(name string) error {
	if strings.ContainsAny(name, "/.") || name == "" {
		return fmt.Errorf("pod name %q is not one of ours", name)
	}
	dir := n.podDir(name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{removeHostFilters(dir)}
	for _, name := range linkNames() {
		errs = append(errs, dropLink(filepath.Join(dir, name)))
	}
	return errors.Join(append(errs, unpinFolder(dir))...)
}

// dropLink detaches a pinned link, whoever else holds it, and unpins it.
func dropLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := errors.Join(detachLink(l), l.Unpin(), l.Close()); err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}

// detachLink detaches; a link that has lost its target is no error.
func detachLink(l link.Link) error {
	err := l.Detach()
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// Drops calls fn for every drop record until ctx is done; it blocks. Records that were written while nobody read are
// delivered first, as far as the ring held them. One caller at a time.
func (n *Node) Drops(ctx context.Context, fn func(Drop)) error {
	r, err := ringbuf.NewReader(n.drops)
	if err != nil {
		return fmt.Errorf("open the ring of drop records: %w", err)
	}
	closed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { closed <- r.Close() })
	defer func() {
		if stop() {
			closed <- r.Close()
		}
		<-closed // closing a reader that is not in use has no error worth keeping
	}()
	boot, err := bootTime()
	if err != nil {
		return err
	}
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read a drop record: %w", err)
		}
		if drop, ok := decodeDrop(rec.RawSample, boot); ok {
			fn(drop)
		}
	}
}

// decodeDrop reads a record; false when it is shorter than one.
func decodeDrop(b []byte, boot time.Time) (Drop, bool) {
	var raw gateDropRecord
	if len(b) < int(unsafe.Sizeof(raw)) {
		return Drop{}, false
	}
	if _, err := binary.Decode(b, binary.NativeEndian, &raw); err != nil {
		return Drop{}, false
	}
	hook := Hook(raw.Hook)
	if more := b[unsafe.Sizeof(raw):]; len(more) > 0 && more[0] != 0 { // an earlier version's: see c/types.h
		hook += PodOutbound
	}
	drop := Drop{
		Time: boot.Add(time.Duration(raw.Time)), Pod: raw.Pod, Reason: DropReason(raw.Reason), Direction: Outbound, Twin: hook >= PodOutbound,
		Source:      netip.AddrPortFrom(fromAddress(raw.Source), raw.SourcePort),
		Destination: netip.AddrPortFrom(fromAddress(raw.Destination), raw.DestinationPort),
		Protocol:    raw.Proto, TCPFlags: raw.TcpFlags, Length: int(raw.Length),
	}
	if hook == HostInbound || hook == PodInbound {
		drop.Direction = Inbound
	}
	return drop, true
}

// bootTime is the wall clock's time when the monotonic clock was zero.
func bootTime() (time.Time, error) {
	now, err := monotonic()
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-time.Duration(now)), nil
}

// CgroupID returns the id of a cgroup2 folder as bpf_skb_cgroup_id gives it, for
// Config.KubeletCgroup.
func CgroupID(path string) (uint64, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return 0, fmt.Errorf("read the id of cgroup %s: %w", path, err)
	}
	if h.Size() != 8 {
		return 0, fmt.Errorf("%s is not a cgroup2 folder", path)
	}
	return binary.NativeEndian.Uint64(h.Bytes()), nil
}
