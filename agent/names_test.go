package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// nameserver is a dnsmasq that notes whom it was asked by.
type nameserver struct {
	cmd  *exec.Cmd
	file string
}

// nameserver runs in a namespace until the test ends.
func (w *world) nameserver(ns *testenv.NetNS, args ...string) *nameserver {
	w.t.Helper()
	s := &nameserver{file: filepath.Join(w.dir, fmt.Sprintf("dnsmasq-%s-%d.log", ns.Name, time.Now().UnixNano()))}
	s.cmd = exec.Command("dnsmasq", append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces", "--no-daemon",
		"--log-queries", "--log-facility=" + s.file,
	}, args...)...)
	s.cmd.Stderr = w.t.Output()
	ns.Must(w.t, s.cmd.Start)
	w.t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	testenv.Eventually(w.t, 5*time.Second, "dnsmasq has started", func() bool { return s.said("started") > 0 })
	return s
}

// said counts the lines of its log that have all words.
func (s *nameserver) said(words ...string) (n int) {
	log, _ := os.ReadFile(s.file) // not there yet: nothing was said
lines:
	for line := range strings.Lines(string(log)) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue lines
			}
		}
		n++
	}
	return n
}

// dig asks as dig does, from inside the pod.
func (p *podNS) dig(args ...string) string {
	p.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dig", append([]string{"+tries=1", "+time=7"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p.ns.Must(p.w.t, cmd.Start)
	err := cmd.Wait()
	if err != nil {
		fmt.Fprintln(&out, err)
	}
	return strings.TrimSpace(out.String())
}

func (p *podNS) wantDig(t *testing.T, want string, args ...string) {
	t.Helper()
	if got := p.dig(args...); !strings.Contains(got, want) {
		t.Errorf("dig %v: %q, want %q", args, got, want)
	}
}

const (
	upstream4, upstream6 = "@10.1.3.2", "@fd01:0:3::2"
	nodeLocal            = "169.254.20.10"
)

func captured(c *agent.Config) { c.Kernel.DNS = agent.DNSCapture }

// TestDNS: the programs that pods have ask a real server through a real agent.
func TestDNS(t *testing.T) {
	w := newWorld(t)
	w.pod(w.n1, "dns", "10.1.3", "fd01:0:3")
	w.n1.ns.Must(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(nodeLocal + "/32")
		return errors.Join(err, netlink.AddrAdd(lo, addr))
	})
	args := []string{"--local=/test/", "--local=/cluster.local/", "--local=/shop/", "--local-ttl=2", "--host-record=www.example.test,192.0.2.1,2001:db8::1", "--edns-packet-max=4096"}
	for i := range 200 {
		args = append(args, fmt.Sprintf("--host-record=big.example.test,192.0.2.%d", 1+i))
	}
	for i := range 20 {
		args = append(args, fmt.Sprintf("--host-record=n%d.example.test,192.0.2.%d", i, 100+i))
	}
	up := w.nameserver(w.pods["dns"].ns, append(args, "--listen-address=10.1.3.2,fd01:0:3::2")...)
	local := w.nameserver(w.n1.ns, append(args, "--listen-address="+nodeLocal)...)
	w.n1.start(captured)
	t.Cleanup(w.n1.leave)
	w.n1.await("enrolled")
	web, api := w.pods["web"], w.pods["api"]

	t.Run("mesh", func(t *testing.T) {
		for _, server := range []string{upstream4, upstream6} {
			for _, how := range []string{"+notcp", "+tcp", "+noedns"} {
				web.wantDig(t, "10.96.0.1", "+short", server, how, "db.shop.svc.cluster.local", "A")
				web.wantDig(t, "fd96::1", "+short", server, how, "db.shop.svc.cluster.local", "AAAA")
			}
		}
		web.wantDig(t, "ANSWER: 0", upstream4, "six.shop.svc.cluster.local", "A")
		if n := up.said("db.shop"); n != 0 {
			t.Errorf("the server was asked %d times for the mesh's services", n)
		}
		// What the model does not know is the server's to say.
		web.wantDig(t, "NXDOMAIN", upstream4, "new.shop.svc.cluster.local", "A")
	})
	t.Run("forwarded", func(t *testing.T) {
		for _, server := range []string{upstream4, upstream6} {
			web.wantDig(t, "192.0.2.1", "+short", server, "www.example.test", "A")
			web.wantDig(t, "2001:db8::1", "+short", server, "+tcp", "www.example.test", "AAAA")
		}
		web.wantDig(t, "NXDOMAIN", upstream4, "nothing.example.test")
		for _, from := range []string{web.v4, web.v6} {
			if up.said("www.example.test from "+from) == 0 {
				t.Errorf("the server was not asked by %s", from)
			}
		}
		web.wantDig(t, "192.0.2.1", "+short", "@"+nodeLocal, "www.example.test", "A")
		if local.said("www.example.test from "+web.v4) == 0 {
			t.Error("the server of the node was not asked")
		}
	})
	t.Run("no circles", func(t *testing.T) {
		for _, how := range []string{"+notcp", "+tcp"} {
			web.wantDig(t, "REFUSED", "@127.0.0.1", "-p", "15053", how, "www.example.test", "A")
		}
	})
	t.Run("large", func(t *testing.T) {
		for _, how := range []string{"+bufsize=4096", "+bufsize=1232", "+noedns", "+tcp"} {
			if n := strings.Count(web.dig("+short", upstream4, how, "big.example.test", "A"), "192.0.2."); n != 200 {
				t.Errorf("%s: %d addresses of 200", how, n)
			}
		}
		web.wantDig(t, "flags: qr tc rd", upstream4, "+bufsize=512", "+ignore", "big.example.test", "A")
	})
	t.Run("search list", func(t *testing.T) { w.searchList(t, web, up) })
	t.Run("own resolver", func(t *testing.T) {
		// A resolver in an enrolled pod, as CoreDNS is: its questions leave once.
		w.nameserver(api.ns, "--server=10.1.3.2", "--listen-address=127.0.0.1,"+api.v4, "--no-negcache", "--cache-size=0")
		api.wantDig(t, "192.0.2.105", "+short", "@127.0.0.1", "n5.example.test", "A")
		api.wantDig(t, "192.0.2.106", "+short", "@"+api.v4, "n6.example.test", "A")
		for _, name := range []string{"n5", "n6"} {
			if n := up.said("query[A] " + name + ".example.test from " + api.v4); n != 1 {
				t.Errorf("%s: the server was asked %d times", name, n)
			}
		}
	})
	t.Run("stale", func(t *testing.T) {
		web.wantDig(t, "192.0.2.107", "+short", upstream4, "n7.example.test", "A")
		if err := up.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2200 * time.Millisecond)
		got := web.dig(upstream4, "n7.example.test", "A")
		if err := up.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got, "192.0.2.107") || !strings.Contains(got, "EDE: 3 (Stale Answer)") {
			t.Errorf("while the server is stopped: %s", got)
		}
	})
	t.Run("forged", func(t *testing.T) {
		dropped := func() float64 { return w.n1.metric(t, `heddle_kernel_drops_total{reason="KernelUnstamped"}`) }
		before := dropped()
		w.forgeQueries(t, web, "-1")
		testenv.Eventually(t, 5*time.Second, "the gate has dropped them", func() bool { return dropped() >= before+3 })
		for _, how := range forgedBy {
			if up.said(how+"-1.example.test") != 0 {
				t.Errorf("the query by a %s arrived", how)
			}
		}
	})
	t.Run("flows", func(t *testing.T) {
		for what, reason := range map[string]mesh.Reason{"n7.example.test A: ": mesh.ReasonDNSStale, "www.example.test A: sent to the agent itself": mesh.ReasonReservedPort} {
			r := w.n1.expectFlow(what, func(r *flow.Record) bool {
				return r.Direction == flow.DirectionDNS && strings.HasPrefix(r.Detail, what)
			})
			if r.Reason != reason || r.Packets == 0 || r.Source.Workload.Name != "web" {
				t.Errorf("%s: %+v", what, r)
			}
		}
	})
	t.Run("metrics", func(t *testing.T) {
		for outcome, least := range map[string]float64{"mesh": 12, "cache": 1, "stale": 1, "upstream": 8} {
			if n := w.n1.metric(t, `heddle_dns_queries_total{outcome="`+outcome+`",transport="udp"}`); n < least {
				t.Errorf("%s: %v counted", outcome, n)
			}
		}
	})
	t.Run("hand-over", func(t *testing.T) { w.askAcrossHandOver(t, web) })
	t.Run("killed", func(t *testing.T) {
		if err := w.n1.end(syscall.SIGKILL); err == nil {
			t.Error("it ended in good order")
		}
		for _, how := range []string{"+notcp", "+tcp"} {
			if got := web.dig("+short", "+time=2", upstream4, how, "n8.example.test", "A"); strings.Contains(got, "192.0.2.108") {
				t.Errorf("answered without the agent: %s", got)
			}
		}
		if n := up.said("n8.example.test"); n != 0 {
			t.Errorf("%d queries left without the agent", n)
		}
		w.n1.start(captured)
		w.n1.await("enrolled")
		web.wantDig(t, "192.0.2.108", "+short", upstream4, "n8.example.test", "A")
	})
	t.Run("direct again", func(t *testing.T) {
		w.n1.end(syscall.SIGTERM)
		w.n1.start()
		w.n1.await("enrolled")
		web.wantDig(t, "192.0.2.109", "+short", upstream4, "n9.example.test", "A")
		web.wantDig(t, "NXDOMAIN", upstream4, "db.shop.svc.cluster.local", "A")
		w.forgeQueries(t, web, "-2")
		for _, how := range forgedBy {
			testenv.Eventually(t, 5*time.Second, "what forged queries could do before: "+how, func() bool { return up.said(how+"-2.example.test") > 0 })
		}
	})
	t.Run("the Mesh decides", func(t *testing.T) { w.switchByMesh(t, web) })
}

// TestDNSByDefault is the life of DNS for whoever sets nothing: queries are between the
// pod and its server, with the agent, without it, and with the next one.
func TestDNSByDefault(t *testing.T) {
	w := newWorld(t)
	w.pod(w.n1, "dns", "10.1.3", "fd01:0:3")
	w.workload("dns", "n1", "disabled") // as a cluster's own is: known, and not in the mesh
	up := w.nameserver(w.pods["dns"].ns, "--local=/test/", "--local=/cluster.local/", "--local-ttl=2", "--listen-address=10.1.3.2,fd01:0:3::2",
		"--host-record=www.example.test,192.0.2.1,2001:db8::1", "--host-record=later.example.test,192.0.2.2")
	w.n1.start()
	t.Cleanup(w.n1.leave)
	w.n1.await("enrolled")
	web := w.pods["web"]
	asked := func(from string) int { return up.said("query[A] www.example.test from " + from) }
	for _, server := range []string{upstream4, upstream6} {
		for _, how := range []string{"+notcp", "+tcp"} {
			web.wantDig(t, "192.0.2.1", "+short", server, how, "www.example.test", "A")
			web.wantDig(t, "192.0.2.1", "+short", server, how, "www.example.test", "A")
		}
	}
	if v4, v6 := asked(web.v4), asked(web.v6); v4 != 4 || v6 != 4 {
		t.Errorf("the server was asked %d and %d times of 4 by the pod's addresses", v4, v6)
	}
	web.wantDig(t, "NXDOMAIN", upstream4, "db.shop.svc.cluster.local", "A")
	for _, how := range []string{"+notcp", "+tcp"} {
		web.wantDig(t, "refused", "@127.0.0.1", "-p", "15053", "+time=2", how, "www.example.test", "A")
	}
	said := ""
	for _, check := range w.n1.status().GetChecks() {
		if check.GetName() == "DNS" && check.GetOk() {
			said = check.GetDetail()
		}
	}
	if said != "queries leave the pods unread" {
		t.Errorf("check says %q", said)
	}
	if err := w.n1.end(syscall.SIGKILL); err == nil {
		t.Error("it ended in good order")
	}
	web.wantDig(t, "192.0.2.2", "+short", upstream4, "later.example.test", "A")
	if got := web.dig("+short", "+time=2", upstream4, "+tcp", "later.example.test", "A"); strings.Contains(got, "192.0.2.2") {
		t.Errorf("over TCP, which the agent carries, without an agent: %s", got)
	}
	w.n1.start()
	w.n1.await("enrolled")
	for _, how := range []string{"+notcp", "+tcp"} {
		web.wantDig(t, "192.0.2.2", "+short", upstream4, how, "later.example.test", "A")
	}
	w.revokedIsNotHeard(web, up)
}

// revokedIsNotHeard: the queries of a pod whose identity is revoked reach no server, though
// those of others leave unread, and do again when it is no longer.
func (w *world) revokedIsNotHeard(p *podNS, up *nameserver) {
	t := w.t
	t.Helper()
	becomes := func(want string) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, "a query is answered "+want, func() bool {
			return strings.Contains(p.dig("+time=2", upstream4, "www.example.test", "A"), want)
		})
	}
	w.settings("  revokedIdentities: [\"spiffe://test.heddle.dev/ns/shop/sa/web\"]\n")
	becomes("REFUSED")
	heard := up.said("query[A]")
	for _, server := range []string{upstream4, upstream6} {
		p.wantDig(t, "REFUSED", server, "secret.example.test", "A")
		if got := p.dig("+tcp", "+time=2", server, "secret.example.test", "A"); strings.Contains(got, "NOERROR") || strings.Contains(got, "NXDOMAIN") {
			t.Errorf("over TCP: %s", got)
		}
	}
	if now := up.said("query[A]"); now != heard {
		t.Errorf("the server has heard %d queries of a revoked pod", now-heard)
	}
	w.settings("")
	becomes("192.0.2.1")
}

// switchByMesh switches capture on and off while the pod asks: no query is lost, or
// one is asked again at once, and the mesh's services are known when it is on.
func (w *world) switchByMesh(t *testing.T, p *podNS) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for slow := 0; ; {
			select {
			case <-stop:
				return
			default:
			}
			begun := time.Now()
			got := p.dig("+short", "+tries=3", "+time=2", upstream4, "www.example.test", "A")
			answer := got[strings.LastIndex(got, "\n")+1:] // dig says before it that it asked again
			if answer != "192.0.2.1" {
				t.Errorf("while capture is switched: %q after %v", got, time.Since(begun))
			}
			if slow++; time.Since(begun) < time.Second {
				slow--
			}
			if slow > 2 {
				t.Errorf("%d queries took more than a second", slow)
			}
		}
	})
	answers := func(name, want string) {
		t.Helper()
		last := ""
		defer func() { t.Logf("%s: %q", name, last) }()
		testenv.Eventually(t, 10*time.Second, name+" is answered "+want, func() bool {
			last = p.dig(upstream4, name, "A")
			return strings.Contains(last, want)
		})
	}
	const service = "db.shop.svc.cluster.local"
	for range 2 {
		w.settings("  dns: {mode: CAPTURE}\n")
		answers(service, "10.96.0.1")
		w.settings("  dns: {mode: CAPTURE, namespaces: [{namespace: shop, mode: DIRECT}]}\n")
		answers(service, "NXDOMAIN")
	}
}

// searchList resolves as programs do, by the C library and a resolv.conf as pods have.
func (w *world) searchList(t *testing.T, p *podNS, up *nameserver) {
	dir := filepath.Join("/etc/netns", p.ns.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.RemoveAll(dir)
		os.Remove("/etc/netns") // if it is empty
	})
	conf := "nameserver 10.1.3.2\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"db": "10.96.0.1", "db.shop": "10.96.0.1", "db.shop.svc.cluster.local": "10.96.0.1", "www.example.test": "192.0.2.1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		out, err := exec.CommandContext(ctx, "ip", "netns", "exec", p.ns.Name, "getent", "ahostsv4", name).CombinedOutput()
		cancel()
		if err != nil || !strings.HasPrefix(string(out), want+" ") {
			t.Errorf("getent %s: %v %q, want %s", name, err, out, want)
		}
	}
	if up.said("www.example.test.shop.svc.cluster.local") == 0 {
		t.Error("the search list was not walked")
	}
}

// forgedBy are the ways past the agent: a socket that has found out the mark, a raw
// socket, a packet socket.
var forgedBy = []string{"marked", "raw", "frame"}

// forgeQueries sends a query past the agent in each way, for names that end in
// suffix.
func (w *world) forgeQueries(t *testing.T, p *podNS, suffix string) {
	t.Helper()
	query := func(name string) []byte {
		b := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(name))}
		return append(append(b, name...), "\x07example\x04test\x00\x00\x01\x00\x01"...)
	}
	send := func(kind, protocol int, what []byte, to unix.Sockaddr, options ...func(fd int) error) {
		t.Helper()
		p.ns.Must(t, func() error {
			domain := unix.AF_INET
			if _, ok := to.(*unix.SockaddrLinklayer); ok {
				domain = unix.AF_PACKET
			}
			fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for _, o := range options {
				if err := o(fd); err != nil {
					return err
				}
			}
			err = unix.Sendto(fd, what, 0, to)
			if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EPERM) {
				return nil // dropped, and told so
			}
			return err
		})
	}
	marked := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x4d00000) }
	server := [4]byte{10, 1, 3, 2}
	datagram := func(name string) []byte {
		q := query(name)
		n := len(q) + 8
		return append([]byte{0x30, 0x39, 0, 53, byte(n >> 8), byte(n), 0, 0}, q...)
	}
	send(unix.SOCK_DGRAM, 0, query("marked"+suffix), &unix.SockaddrInet4{Addr: server, Port: 53}, marked)
	send(unix.SOCK_RAW, unix.IPPROTO_UDP, datagram("raw"+suffix), &unix.SockaddrInet4{Addr: server}, marked)
	var link int
	var hardware net.HardwareAddr
	p.ns.Must(t, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		link = l.Attrs().Index
		return nil
	})
	w.n1.ns.Must(t, func() error {
		l, err := netlink.LinkByName("p-web")
		if err == nil {
			hardware = l.Attrs().HardwareAddr
		}
		return err
	})
	udp := datagram("frame" + suffix)
	n := 20 + len(udp)
	header := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 1, 1, 2, 10, 1, 3, 2}
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(header[i])<<8 | uint32(header[i+1])
	}
	sum = sum>>16 + sum&0xffff
	header[10], header[11] = byte(^sum>>8), byte(^sum)
	to := &unix.SockaddrLinklayer{Protocol: 8, Ifindex: link, Halen: 6} // ETH_P_IP in network order
	copy(to.Addr[:], hardware)
	send(unix.SOCK_DGRAM, 0, append(header, udp...), to)
}

// metric reads one series of the agent's.
func (n *node) metric(t *testing.T, series string) (value float64) {
	t.Helper()
	var c net.Conn
	n.ns.Must(t, func() (err error) { c, err = net.DialTimeout("tcp", "127.0.0.1:15020", 5*time.Second); return err })
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			if value, err = strconv.ParseFloat(strings.TrimSpace(rest), 64); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	return 0
}

// askAcrossHandOver asks all the time while a new agent takes over: each query is
// answered, if not by the one that ends then by the one that begins, asked again at
// most once as any resolver does.
func (w *world) askAcrossHandOver(t *testing.T, p *podNS) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var asked atomic.Int64
	again := 0
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name, want := "db.shop.svc.cluster.local", "10.96.0.1"
			if i%2 == 1 {
				name, want = "www.example.test", "192.0.2.1"
			}
			asked.Add(1)
			got := p.dig("+short", "+time=1", upstream4, name, "A")
			if !strings.Contains(got, want) {
				again++
				got = p.dig("+short", "+time=5", upstream4, name, "A")
			}
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q", name, got)
				return
			}
		}
	})
	for range 2 {
		old := w.n1.cmd
		w.n1.start(captured, func(c *agent.Config) { c.Version, c.TakeOver = "next", agent.TakeOverRequire })
		if err := ended(t, old); err != nil {
			log, _ := os.ReadFile(w.n1.log)
			t.Fatalf("the donor: %v\n%s", err, log)
		}
		w.n1.await("enrolled")
		// However slow the machine, some are asked before, between and after.
		for since := asked.Load(); asked.Load() < since+4 && !t.Failed(); {
			time.Sleep(20 * time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("asked %d times, %d of them twice", asked.Load(), again)
	if again > 4 {
		t.Errorf("asked %d times, %d of them twice", asked.Load(), again)
	}
}
