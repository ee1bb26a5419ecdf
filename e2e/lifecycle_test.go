package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// kernelState is what enrolment may change in a namespace: rules, routes of
// every table, links with their programs, and the sysctls of the network.
func kernelState(t *testing.T, b *testbed.Bed, pod string) string {
	t.Helper()
	script := `ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v ' expires '; ip -o -d link | grep -o 'eth0.*xdp.*' ; tc qdisc; tc filter show dev eth0 ingress; tc filter show dev eth0 egress
for f in /proc/sys/net/ipv4/conf/*/* /proc/sys/net/ipv6/conf/*/* /proc/sys/net/ipv4/*; do case $f in *stable_secret|*/tcp_fastopen_key|*flush) ;; *) [ -f $f ] && echo "$f $(cat $f 2>/dev/null)";; esac; done`
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := b.Command(ctx, pod, "bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("read the state of %s: %v: %s", pod, err, out)
	}
	return string(out)
}

// TestEnrollment enrolls pods with open connections, by a label, and takes them
// out again: connections live on, and the pods' kernel state is as before.
func TestEnrollment(t *testing.T) {
	const name = "e2e-enroll"
	late := []pod{
		{"late", "a", "n1", []string{"10.244.1.40", "fd00:244:1::40"}},
		{"late", "b", "n2", []string{"10.244.2.40", "fd00:244:2::40"}},
	}
	yaml := func(label string) string {
		return meshYAML(name, append(shopPods(), late...)...) + fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: late, labels: {heddle.dev/mesh: %s}}\n", label)
	}
	b := testbed.Up(t, "..", name, yaml("disabled"))
	before := kernelState(t, b, "late/a") + kernelState(t, b, "late/b")

	old4 := exchange(t, b, "late/a", "late/b", "10.244.2.40:7000")
	old6 := exchange(t, b, "late/a", "late/b", "[fd00:244:2::40]:7001")
	capture := b.Capture(t)

	b.Write(t, "mesh.yaml", yaml("enabled"))
	waitPods(t, b, "late/", 2)
	for _, c := range []net.Conn{old4, old6} {
		roundTrip(t, c, []byte("still here"))
	}
	fresh := exchange(t, b, "late/a", "late/b", "10.244.2.40:7002")
	out, err := b.Heddle("prove", "--name", name, "late/a")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.ToLower(out), "grandfathered") {
		t.Errorf("prove does not show the grandfathered connections:\n%s", out)
	}
	// What was open before goes on in plaintext, what is new does not.
	found := capture.Stop(t, secret, func(a netip.Addr) bool { return a.String() == "10.244.2.40" })
	if found.Markers != 0 || found.TLSBytes == 0 || found.PlaintextBytes == 0 {
		t.Errorf("after enrolment: %s: want the old connection's few bytes in plaintext, the new one's in TLS", found)
	}

	b.Write(t, "mesh.yaml", yaml("disabled"))
	testenv.Eventually(t, 20*time.Second, "late/a is no longer enrolled", func() bool {
		out, err := b.Heddle("check", "--name", name)
		return err == nil && !strings.Contains(out, "pod late/")
	})
	for _, c := range []net.Conn{old4, old6} {
		roundTrip(t, c, []byte("and still"))
	}
	fresh.Close()
	exchange(t, b, "late/a", "late/b", "10.244.2.40:7003")
	if after := kernelState(t, b, "late/a") + kernelState(t, b, "late/b"); after != before {
		t.Errorf("unenrolment left something behind:\n%s", difference(before, after))
	}
}

// waitPods waits until the mesh is healthy and lists n enrolled pods of a prefix.
func waitPods(t *testing.T, b *testbed.Bed, prefix string, n int) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, "pods "+prefix+" are enrolled", func() bool {
		out, err := b.Heddle("check", "--name", b.Mesh.Plan.Name)
		return err == nil && strings.Count(out, "pod "+prefix) == n
	})
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var out strings.Builder
	lines := func(text string) map[string]bool {
		m := map[string]bool{}
		for line := range strings.Lines(text) {
			m[line] = true
		}
		return m
	}
	a, b := lines(before), lines(after)
	for line := range a {
		if !b[line] {
			out.WriteString("- " + line)
		}
	}
	for line := range b {
		if !a[line] {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}

// TestRotation rotates SVIDs many times a minute under traffic: no connection
// fails, neither those that were open nor new ones.
func TestRotation(t *testing.T) {
	t.Setenv("HEDDLE_CERTIFICATE_TTL", "16s") // the operator inherits it
	b := up(t, "e2e-rotate")
	long := []*net.TCPConn{
		exchange(t, b, "shop/client", "shop/server", "10.244.2.10:7000"),
		exchange(t, b, "shop/client", "shop/server", "[fd00:244:2::10]:7001"),
		exchange(t, b, "shop/client", "shop/near", "10.244.1.11:7002"),
	}
	var opened, failed atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := b.Dial("shop/client", "10.244.2.10:7000", 5*time.Second)
				if err == nil {
					err = askOnce(c)
					c.Close()
				}
				if err != nil {
					t.Errorf("a new connection during rotation: %v", err)
					failed.Add(1)
				}
				opened.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for ctx.Err() == nil {
		for _, c := range long {
			roundTrip(t, c, []byte("still here"))
		}
		time.Sleep(100 * time.Millisecond)
	}
	wg.Wait()
	path, err := b.Mesh.Logs("operator")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := exec.Command("grep", "-c", "ns/shop/sa/client", path).Output()
	if err != nil {
		t.Fatalf("count what was issued: %v", err)
	}
	if n := strings.TrimSpace(string(issued)); len(n) < 1 || n < "4" && len(n) == 1 {
		t.Errorf("the client's SVID was issued %s times in 45 s, want 4 or more: nothing was shown", n)
	}
	t.Logf("%d connections opened while the client's SVID was issued %s times, %d failed", opened.Load(), strings.TrimSpace(string(issued)), failed.Load())
}

func askOnce(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, secret); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(secret)))
	return err
}

// TestOperatorGone: without the operator traffic goes on, also when an agent
// restarts: it has its last good configuration and its SVIDs.
func TestOperatorGone(t *testing.T) {
	b := up(t, "e2e-alone")
	c := exchange(t, b, "shop/client", "shop/server", "10.244.2.10:7000")
	if err := syscall.Kill(b.Mesh.Operator.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(b.Mesh.Operator.PID, syscall.SIGCONT) }) // so that it can be stopped
	roundTrip(t, c, []byte("still here"))
	b.Kill(t, "n1")
	b.StartAgentAlone(t, "n1")
	testenv.Eventually(t, 20*time.Second, "the agent carries connections without the operator", func() bool {
		c, err := b.Dial("shop/client", "10.244.2.10:7000", time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		return askOnce(c) == nil
	})
	out, err := b.Heddle("check", "--name", "e2e-alone")
	if err == nil {
		t.Errorf("check is content although the operator does not answer:\n%s", out)
	}
}
