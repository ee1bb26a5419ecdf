// Package kernelstate lists what somebody has left in the kernel beside files, links and
// routes: the BPF objects that are pinned below a folder, and whether the kernel still has
// them when their pins are gone; and the BPF programs of cgroups. It changes nothing.
//
// Functions may be called from any goroutine, by root.
package kernelstate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
	"golang.org/x/sys/unix"
)

// Object is a BPF object that was pinned.
type Object struct {
	// Kind is "map", "program" or "link"; ID is the kernel's, one of that kind's.
	Kind string
	ID   uint32
	// Pin is its path below the folder.
	Pin string
}

// String returns "program 42, pinned at layout/pods/web/ingress".
func (o Object) String() string { return fmt.Sprintf("%s %d, pinned at %s", o.Kind, o.ID, o.Pin) }

// Pinned lists the BPF objects, and the programs of links, below a folder of a BPF file system; none where there is
// no such folder.
func Pinned(dir string) ([]Object, error) {
	var all []Object
	for p, err := range pin.WalkDir(dir, nil) {
		if errors.Is(err, fs.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list the pins in %s: %w", dir, err)
		}
		found, err := identify(p.Object)
		if err != nil {
			return nil, fmt.Errorf("pin %s: %w", p.Path, err)
		}
		name, err := filepath.Rel(dir, p.Path)
		if err != nil {
			return nil, err
		}
		for _, o := range found {
			o.Pin = name
			all = append(all, o)
		}
	}
	return all, nil
}

// identify returns what an object is: a link, which runs a program, is two.
func identify(object io.Closer) ([]Object, error) {
	switch object := object.(type) {
	case *ebpf.Map:
		info, err := object.Info()
		if err != nil {
			return nil, err
		}
		id, known := info.ID()
		return []Object{{Kind: "map", ID: uint32(id)}}, knownID(known)
	case *ebpf.Program:
		info, err := object.Info()
		if err != nil {
			return nil, err
		}
		id, known := info.ID()
		return []Object{{Kind: "program", ID: uint32(id)}}, knownID(known)
	case link.Link:
		info, err := object.Info()
		if err != nil {
			return nil, err
		}
		return []Object{{Kind: "link", ID: uint32(info.ID)}, {Kind: "program", ID: uint32(info.Program)}}, nil
	}
	return nil, fmt.Errorf("%T is no object that is known here", object)
}

func knownID(known bool) error {
	if !known {
		return errors.New("the kernel does not say its ID")
	}
	return nil
}

// Alive returns those objects that the kernel still has. One that nobody refers to any
// more goes a moment later.
func Alive(objects []Object) ([]Object, error) {
	var left []Object
	for _, o := range objects {
		object, err := open(o)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("look for %s: %w", o, err)
		}
		if err := object.Close(); err != nil {
			return nil, fmt.Errorf("look for %s: %w", o, err)
		}
		left = append(left, o)
	}
	return left, nil
}

// open opens an object by its ID.
func open(o Object) (io.Closer, error) {
	switch o.Kind {
	case "map":
		return ebpf.NewMapFromID(ebpf.MapID(o.ID))
	case "program":
		return ebpf.NewProgramFromID(ebpf.ProgramID(o.ID))
	case "link":
		return link.NewFromID(link.ID(o.ID))
	}
	return nil, fmt.Errorf("%q is no kind of object", o.Kind)
}

// attachTypes are the places of a cgroup that have to do with the network. The device
// programs of container runtimes are not among them.
func attachTypes() []ebpf.AttachType {
	return []ebpf.AttachType{
		ebpf.AttachCGroupInetSockCreate, ebpf.AttachCgroupInetSockRelease, ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupSockOps,
		ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCGroupGetsockopt, ebpf.AttachCGroupSetsockopt, ebpf.AttachCGroupSysctl,
	}
}

// CgroupPrograms lists the network programs of a cgroup and of those below it, one line
// for each place that has any: "agent: 1 programs at CGroupInetSockCreate". Where the first
// version of cgroups is mounted too, root may be the folder of all hierarchies: only the
// second has network programs.
func CgroupPrograms(root string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		if err != nil || !d.IsDir() {
			return err
		}
		if unified, err := isUnified(path); err != nil || !unified {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		lines, err := programsOf(path)
		for _, line := range lines {
			all = append(all, name+": "+line)
		}
		return err
	})
	return all, err
}

// isUnified reports whether a folder is a cgroup of the second version (include/uapi/linux/magic.h);
// false, too, for one that has gone.
func isUnified(path string) (bool, error) {
	var at unix.Statfs_t
	err := unix.Statfs(path, &at)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil && at.Type == unix.CGROUP2_SUPER_MAGIC, err
}

// programsOf lists the programs of one cgroup.
func programsOf(path string) ([]string, error) {
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var lines []string
	for _, at := range attachTypes() {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: at})
		switch {
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV): // a place that this kernel has not; a cgroup that has gone meanwhile
			continue
		case err != nil:
			return nil, fmt.Errorf("query %s of cgroup %s: %w", at, path, err)
		}
		if len(found.Programs) > 0 {
			lines = append(lines, fmt.Sprintf("%d programs at %s", len(found.Programs), at))
		}
	}
	return lines, nil
}
