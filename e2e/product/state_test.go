package product

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/kernelstate"
)

// What Heddle may change on a node and in its pods: rules, routes, links, traffic
// control, sysctls, pins, its folders, programs of cgroups, and the CNI's files.
const (
	netState = `ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v ' expires '; ip -o link | sed 's/^[0-9]*: //; s/qlen.*//'
for link in $(ls /sys/class/net); do tc qdisc show dev $link; tc filter show dev $link ingress; tc filter show dev $link egress; done 2>/dev/null
for f in /proc/sys/net/ipv4/conf/*/* /proc/sys/net/ipv6/conf/*/* /proc/sys/net/ipv4/*; do case $f in *stable_secret|*/tcp_fastopen_key|*flush|*/ip_local_reserved_ports) ;; *) [ -f $f ] && echo "$f $(cat $f 2>/dev/null)";; esac; done`
	files = `find /sys/fs/bpf /run/heddle /var/lib/heddle -mindepth 0 2>/dev/null | sort
for f in /etc/cni/net.d/* /opt/cni/bin/*; do sha256sum $f; done
mount | grep -i heddle
find /sys/fs/cgroup -type d -name 'heddle-agent-*'`
)

// nodeState is the state of a node and of the pods on it whose network
// namespaces are there.
func nodeState(t *testing.T, n *cluster.Node) string {
	t.Helper()
	net, err := n.Exec(t.Context(), "bash", "-c", netState)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	out.WriteString(net)
	if err := n.InNetns(func() error { return attached(&out, "node") }); err != nil {
		t.Fatal(err)
	}
	return fileState(t, n) + prefixed(n.Name(), out.String())
}

// fileState is the part of it that does not depend on which pods there are.
func fileState(t *testing.T, n *cluster.Node) string {
	t.Helper()
	out, err := n.Exec(t.Context(), "sh", "-c", "("+files+") || true")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := kernelstate.CgroupPrograms(filepath.Join(root(t, n), "sys/fs/cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range programs {
		out += "cgroup " + line + "\n"
	}
	return prefixed(n.Name(), out)
}

func root(t *testing.T, n *cluster.Node) string {
	t.Helper()
	dir, err := n.Root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// kernelObjects are the BPF objects that agents have pinned on a node: they must be
// gone with the pins. IDs are not given twice, so that other clusters do not matter.
func kernelObjects(t *testing.T, n *cluster.Node) []kernelstate.Object {
	t.Helper()
	objects, err := kernelstate.Pinned(filepath.Join(root(t, n), "sys/fs/bpf"))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// linesOf are the lines of a text that are about one node or pod.
func linesOf(text, who string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, who+": ") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// podState is the state inside a pod's network namespace.
func podState(t *testing.T, n *cluster.Node, pod string) string {
	t.Helper()
	var out strings.Builder
	file := podNetNS(t, n, pod)
	if err := inNetNS(file, func() error { return attached(&out, "pod") }); err != nil {
		t.Fatal(err)
	}
	net, err := n.Exec(t.Context(), "nsenter", "--net="+podNetNSOnNode(t, n, pod), "bash", "-c", netState)
	if err != nil {
		t.Fatal(err)
	}
	out.WriteString(net)
	return prefixed(pod, out.String())
}

func prefixed(who, text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			out.WriteString(who + ": " + line)
		}
	}
	return out.String()
}

// attached lists the BPF programs on the links of this thread's network namespace,
// and on the namespace itself.
func attached(out *strings.Builder, where string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		for name, attach := range map[string]ebpf.AttachType{"tcx ingress": ebpf.AttachTCXIngress, "tcx egress": ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: attach})
			if err != nil {
				return fmt.Errorf("query %s of %s: %w", name, l.Attrs().Name, err)
			}
			if len(found.Programs) > 0 {
				fmt.Fprintf(out, "%d programs at %s of %s\n", len(found.Programs), name, l.Attrs().Name)
			}
		}
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(own.Fd()), Attach: ebpf.AttachSkLookup})
	if err != nil {
		return fmt.Errorf("query sk_lookup: %w", err)
	}
	if len(found.Programs) > 0 {
		fmt.Fprintf(out, "%d programs at sk_lookup of the %s\n", len(found.Programs), where)
	}
	return nil
}

// podNetNSOnNode finds the network namespace of a pod by its address, as the node
// names it.
func podNetNSOnNode(t *testing.T, n *cluster.Node, pod string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), "sh", "-c", `for ns in /run/netns/*; do nsenter --net=$ns ip -o -4 addr show | grep -q " `+pod+`/" && echo $ns; done; true`)
	if paths := strings.Fields(out); err == nil && len(paths) == 1 {
		return paths[0]
	}
	t.Fatalf("network namespace of the pod at %s on %s: %q, %v", pod, n.Name(), out, err)
	return ""
}

// podNetNS opens it from the host, through a process that is in it.
func podNetNS(t *testing.T, n *cluster.Node, pod string) string {
	t.Helper()
	inode, err := n.Exec(t.Context(), "stat", "-L", "-c", "net:[%i]", podNetNSOnNode(t, n, pod))
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(path string) bool {
		at, err := os.Readlink(path)
		return err == nil && at == strings.TrimSpace(inode)
	})
	if i < 0 {
		t.Fatalf("no process is in the network namespace %s of %s", inode, pod)
	}
	return all[i]
}

// inNetNS runs fn on a thread in a network namespace, which ends with it.
func inNetNS(path string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var out []string
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "\n")
}
