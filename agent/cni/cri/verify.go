package cri

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/agent/netns"
)

// verify finds out where a sandbox's network is. It returns nil for one that
// shares the node's.
func (c *Client) verify(s sandbox, answer []byte) (*cni.Place, error) {
	st, err := decodeStatus(answer)
	if err != nil {
		return nil, fmt.Errorf("details of the container runtime: %w", err)
	}
	if st.pid <= 0 {
		return nil, errors.New("the container runtime names no process of the sandbox: only containerd and CRI-O are known to")
	}
	id, uid, err := inspect(c.proc, st.pid)
	switch {
	case id == c.home:
		return nil, nil // there is nothing to prove
	case err != nil:
		return nil, err
	case uid != s.uid:
		return nil, fmt.Errorf("process %d is in the cgroup of the pod with the UID %s, not %s", st.pid, uid, s.uid)
	}
	slices.SortFunc(st.addresses, netip.Addr.Compare)
	return &cni.Place{
		Key: s.key, UID: s.uid, Sandbox: s.id, NetNS: c.pathOf(st, id), Namespace: id,
		Addresses: slices.Compact(st.addresses), Created: s.created,
	}, nil
}

// pathOf returns a path that leads to the namespace: the runtime's, which
// outlives the process, or the process's.
func (c *Client) pathOf(st status, id netns.ID) string {
	candidates := []string{st.netNS}
	if rest, ok := strings.CutPrefix(st.netNS, "/var/run/"); ok {
		candidates = append(candidates, "/run/"+rest) // where the agent sees it
	}
	for _, path := range candidates {
		if !filepath.IsAbs(path) {
			continue
		}
		if ns, err := netns.Open(path); err == nil {
			same := ns.ID() == id
			_ = ns.Close() // only looked at
			if same {
				return path
			}
		}
	}
	return filepath.Join(c.proc, strconv.Itoa(st.pid), "ns", "net")
}

// maxCgroupFile bounds /proc/PID/cgroup: one line for each hierarchy.
const maxCgroupFile = 64 << 10

// inspect returns the network namespace of a process and the UID of the pod in
// whose cgroup it is; the former also when the latter is not known. The process is held by its folder in /proc meanwhile: a
// number that another process gets cannot be taken for it.
func inspect(proc string, pid int) (id netns.ID, uid string, err error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	held, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return id, "", fmt.Errorf("process %d of the sandbox is not seen in %s: %w; remedy: give the agent the node's PID namespace (hostPID)", pid, proc, err)
	}
	defer unix.Close(held)
	ns, err := netns.Open(filepath.Join(dir, "ns", "net"))
	if err != nil {
		return id, "", err
	}
	defer ns.Close()
	// Last: that it can be read says that the process lives, and lived above.
	fd, err := unix.Openat(held, "cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return id, "", fmt.Errorf("read cgroup of process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "cgroup")
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCgroupFile))
	if err != nil {
		return id, "", fmt.Errorf("read cgroup of process %d: %w", pid, err)
	}
	if uid, err = cgroup.PodUID(string(text)); err != nil {
		return ns.ID(), "", fmt.Errorf("process %d: %w", pid, err)
	}
	return ns.ID(), uid, nil
}
