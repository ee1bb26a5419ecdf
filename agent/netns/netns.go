package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ID tells network namespaces apart: the device and inode of the nsfs
// file. The kernel may reuse an inode, but not while anyone holds it open.
type ID struct {
	Dev, Inode uint64
}

// Namespace is an open network namespace. Holding it keeps the namespace alive,
// so that it is held only while its pod is enrolled. It is safe for concurrent
// use, Close included.
type Namespace struct {
	path string
	file *os.File
	id   ID
}

// Open opens the network namespace at path, and says what is wrong
// with a path that is none.
func Open(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s is gone: end the workload, or correct its networkNamespace: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns := &Namespace{path: path, file: f}
	if ns.id, err = identify(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ns, nil
}

// identify checks that f is a network namespace and returns its identity.
func identify(f *os.File) (ID, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return ID{}, err
	}
	var id ID
	var inner error
	err = raw.Control(func(fd uintptr) {
		var where unix.Statfs_t
		if inner = unix.Fstatfs(int(fd), &where); inner != nil {
			return
		}
		if where.Type != unix.NSFS_MAGIC {
			inner = errors.New("not a network namespace (no namespace is mounted there): recreate it with `ip netns add`, or correct the workload's networkNamespace")
			return
		}
		var kind int
		if kind, inner = unix.IoctlRetInt(int(fd), unix.NS_GET_NSTYPE); inner != nil {
			return
		}
		if kind != unix.CLONE_NEWNET {
			inner = errors.New("a namespace, but not of the network kind: give a .../ns/net path")
			return
		}
		var st unix.Stat_t
		inner = unix.Fstat(int(fd), &st)
		id = ID{Dev: st.Dev, Inode: st.Ino}
	})
	if err == nil {
		err = inner
	}
	return id, err
}

// Path returns the path that the namespace was opened by.
func (ns *Namespace) Path() string { return ns.path }

// ID returns the namespace's identity.
func (ns *Namespace) ID() ID { return ns.id }

// Fd returns the descriptor, which stays ns's and must not be used after Close.
func (ns *Namespace) Fd() int { return int(ns.file.Fd()) }

// Close lets go of the namespace; a running Do keeps its own hold.
func (ns *Namespace) Close() error { return ns.file.Close() }

// StillThere reports whether the path leads to this very namespace.
func (ns *Namespace) StillThere() bool {
	var st unix.Stat_t
	if unix.Stat(ns.path, &st) != nil {
		return false
	}
	return ID{Dev: st.Dev, Inode: st.Ino} == ns.id
}

// WithFd calls fn with the descriptor, which stays open until fn returns.
func (ns *Namespace) WithFd(fn func(fd int) error) error {
	raw, err := ns.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return fmt.Errorf("use network namespace %s: %w", ns.path, err)
	}
	return inner
}

// enter moves the calling thread, which must be locked, into the namespace.
func (ns *Namespace) enter() error {
	return ns.WithFd(func(fd int) error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.path, err)
		}
		return nil
	})
}

// Do runs fn on a thread inside the namespace and returns its error. Sockets
// that fn makes belong to the namespace for good; goroutines that it starts
// run outside.
func (ns *Namespace) Do(fn func() error) error {
	return OnThread(func() error {
		if err := ns.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// Netlink opens a netlink handle inside the namespace; the handle may be used
// from any thread. The caller closes it.
func (ns *Namespace) Netlink() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", ns.path, err)
	}
	return h, nil
}

// OnThread runs fn on a thread of its own that ends with it, because a thread
// that changed its namespace must never serve another goroutine.
func OnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and its namespaces are what
			// /proc/PID/ns shows. While it is locked here, the work runs on
			// another one.
			result <- OnThread(fn)
			runtime.UnlockOSThread()
			return
		}
		result <- fn()
	}()
	return <-result
}
