package agent_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// echo speaks first: it greets with the client's address, then echoes, and
// ends its half only after the client has ended its own.
func echo(c *net.TCPConn) {
	fmt.Fprintf(c, "hello %s\n", c.RemoteAddr())
	// Hidden, so that io.Copy takes a buffer and not a pipe's two descriptors.
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	c.CloseWrite()
	io.Copy(io.Discard, c)
}

func TestTwoNodes(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) { twoNodes(t, kind) })
	}
}

func twoNodes(t *testing.T, kind string) {
	w := newWorld(t)
	w.engine = kind
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	web, api, db := w.pods["web"], w.pods["api"], w.pods["db"]

	t.Run("tunnel", func(t *testing.T) {
		for _, vip := range []string{"10.96.0.1:70", "[fd96::1]:70"} {
			w.exchange(t, web, vip)
			w.n1.expectFlow("outbound to db", wasCarried(flow.DirectionOutbound, flow.TransportTunnel, "web", "db"))
			r := w.n2.expectFlow("inbound from web", wasCarried(flow.DirectionInbound, flow.TransportTunnel, "web", "db"))
			if r.Source.Identity.String() != "spiffe://test.heddle.dev/ns/shop/sa/web" || r.Timing.RTT <= 0 {
				t.Errorf("%+v", r)
			}
		}
		w.exchange(t, web, net.JoinHostPort(db.v4, "7001"))
		w.exchange(t, web, net.JoinHostPort(db.v6, "7001"))
	})
	t.Run("splice", func(t *testing.T) {
		w.exchange(t, web, "10.96.0.2:70")
		w.exchange(t, web, net.JoinHostPort(api.v6, "7001"))
		w.n1.expectFlow("local", wasCarried(flow.DirectionLocal, flow.TransportSplice, "web", "api"))
		w.exchange(t, api, "10.96.0.2:70") // to itself, through its service
	})
	t.Run("IPv6 only", func(t *testing.T) {
		w.exchange(t, web, "[fd96::3]:70")
		w.exchange(t, w.pods["six"], "[fd96::2]:70")
	})
	t.Run("one family", func(t *testing.T) { w.oneFamily(t, web, api, db) })
	t.Run("bulk", func(t *testing.T) { w.bulk(t, web, "10.96.0.1:70"); w.bulk(t, web, "10.96.0.2:70") })
	t.Run("plaintext is refused", func(t *testing.T) { w.plaintextRefused(t) })
	t.Run("reset", func(t *testing.T) { w.reset(t) })
	t.Run("no endpoint", func(t *testing.T) { w.noEndpoint(t) })
	t.Run("policy", func(t *testing.T) { w.policy(t) })
	t.Run("metrics", func(t *testing.T) { w.metrics(t) })
	t.Run("proof", func(t *testing.T) { w.proof(t) })
	t.Run("agent killed", func(t *testing.T) { w.killed(t) })
	t.Run("unenrolled", func(t *testing.T) { w.unenrolled(t) })
	t.Run("operator gone", func(t *testing.T) { w.operatorGone(t) })
}

// oneFamily has servers listen at addresses of one family, on both nodes, and asks at the other: the
// application sees the client's address in its own.
func (w *world) oneFamily(t *testing.T, web, api, db *podNS) {
	for _, server := range []*podNS{api, db} {
		server.serveOn("tcp4", 7012, echo)
		server.serveOn("tcp6", 7013, echo)
		for to, own := range map[string]string{net.JoinHostPort(server.v6, "7012"): web.v4, net.JoinHostPort(server.v4, "7013"): web.v6} {
			c, err := web.dial(to)
			if err != nil {
				t.Fatal(err)
			}
			greeting, err := bufio.NewReader(c).ReadString('\n')
			// Of what is no address the host is "", which is nobody's.
			if host, _, _ := net.SplitHostPort(strings.TrimSpace(strings.TrimPrefix(greeting, "hello "))); err != nil || host != own {
				t.Errorf("%s: greeted %q, %v, want the client's address %s", to, greeting, err, own)
			}
			c.Close()
		}
	}
	c, err := web.dial(net.JoinHostPort(db.v6, "7014")) // where nobody listens
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("nobody listens: %v, want a reset", err)
	}
}

func wasCarried(d flow.Direction, via flow.Transport, from, to string) func(*flow.Record) bool {
	return func(r *flow.Record) bool {
		return r.Direction == d && r.Transport == via && r.Source.Workload.Name == from && r.Destination.Workload.Name == to &&
			r.Verdict == mesh.VerdictAllow && r.BytesSent > 0 && r.BytesReceived > r.BytesSent
	}
}

// exchange greets, asks, ends its half and reads the rest. The application must
// have seen the client's own address.
func (w *world) exchange(t *testing.T, from *podNS, to string) {
	t.Helper()
	c, err := from.dial(to)
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	greeting, err := in.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: greeting: %v", to, err)
	}
	own := from.v6
	if from.v4 != "" && !strings.Contains(to, "[") && !strings.Contains(to, "::") {
		own = from.v4
	}
	host, _, err := net.SplitHostPort(strings.TrimSpace(strings.TrimPrefix(greeting, "hello ")))
	if err != nil || host != own {
		t.Errorf("%s: greeted %q, want the client's address %s", to, greeting, own)
	}
	if _, err := c.Write([]byte("question\n")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(in); string(rest) != "question\n" || err != nil {
		t.Errorf("%s: read %q, %v", to, rest, err)
	}
}

func (w *world) bulk(t *testing.T, from *podNS, to string) {
	t.Helper()
	c, err := from.dial(to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	const total = 64 << 20
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	sent, got := sha256.New(), sha256.New()
	go func() {
		for range total / len(chunk) {
			sent.Write(chunk)
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
		c.CloseWrite()
	}()
	start := time.Now()
	n, err := io.Copy(got, in)
	if err != nil || n != total || string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("%s: %d bytes, %v", to, n, err)
	}
	t.Logf("%s: %d MB there and back in %v", to, total>>20, time.Since(start))
}

// plaintextRefused: what comes to a STRICT pod outside the tunnel gets nowhere.
func (w *world) plaintextRefused(t *testing.T) {
	var c net.Conn
	err := w.n1.ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(w.pods["db"].v4, "7001"), time.Second)
		return err
	})
	if err == nil {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			t.Error("a plaintext client was answered")
		}
		c.Close()
	}
	w.n2.expectFlow("dropped plaintext", func(r *flow.Record) bool {
		return r.Direction == flow.DirectionKernel && r.Reason == mesh.ReasonKernelPlaintextInbound && r.Destination.Workload.Name == "db" ||
			r.Direction == flow.DirectionInbound && r.Reason == mesh.ReasonStrictPlaintext
	})
}

func (w *world) reset(t *testing.T) {
	ended := make(chan error, 1)
	w.pods["db"].serve(7002, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c, err := w.pods["web"].dial(net.JoinHostPort(w.pods["db"].v4, "7002"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.SetLinger(0)
	c.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the application saw %v, want a reset", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the application saw no reset")
	}
}

// policy: a live connection ends when policy changes, a new one is refused, and
// both say why; a caller that is still allowed notices nothing.
func (w *world) policy(t *testing.T) {
	live := map[string]*net.TCPConn{}
	for name, from := range map[string]*podNS{"web": w.pods["web"], "six": w.pods["six"]} {
		c, err := from.dial(net.JoinHostPort(w.pods["api"].v6, "7001"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		live[name] = c
	}
	w.write("policy.yaml", `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: no-web}
spec:
  selector: {matchLabels: {app: api}}
  action: DENY
  rules: [{from: [{identities: ["spiffe://test.heddle.dev/ns/shop/sa/web"]}]}]
`)
	if _, err := io.ReadAll(live["web"]); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the live connection ended with %v, want a reset", err)
	}
	w.n1.expectFlow("ended by policy", func(r *flow.Record) bool {
		return r.Reason == mesh.ReasonPolicyChanged && r.Verdict == mesh.VerdictDeny && r.Source.Workload.Name == "web"
	})
	if c, err := w.pods["web"].dial("10.96.0.2:70"); err == nil {
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a refused connection read %v", err)
		}
	}
	r := w.n1.expectFlow("denied", func(r *flow.Record) bool { return r.Reason == mesh.ReasonPolicyDeny })
	if r.Policy.String() != "shop/no-web" || r.Rule != 0 {
		t.Errorf("decided by %v rule %d", r.Policy, r.Rule)
	}
	if _, err := live["six"].Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(live["six"], make([]byte, 1)); err != nil {
		t.Errorf("the allowed connection: %v", err)
	}
	w.exchange(t, w.pods["six"], "[fd96::2]:70")
}

func (w *world) metrics(t *testing.T) {
	for _, path := range []string{"/metrics", "/readyz"} {
		var body []byte
		w.n1.ns.Must(t, func() error {
			c, err := net.Dial("tcp", "127.0.0.1:15020")
			if err != nil {
				return err
			}
			defer c.Close()
			fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path)
			body, err = io.ReadAll(c)
			return err
		})
		if !strings.Contains(string(body), "200 OK") || path == "/metrics" && !strings.Contains(string(body), "heddle_connections_total") {
			t.Errorf("%s: %.300s", path, body)
		}
	}
}

// killed: with the agent gone nothing passes; with it back, everything does.
func (w *world) killed(t *testing.T) {
	if err := w.n1.end(syscall.SIGKILL); err == nil {
		t.Error("killed, and ended well")
	}
	if c, err := w.pods["web"].dial("10.96.0.1:70"); err == nil {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			t.Error("something answered without an agent")
		}
	}
	start := time.Now()
	w.n1.start()
	w.n1.await("enrolled")
	testenv.Eventually(t, 10*time.Second, "it works again", func() bool {
		c, err := w.pods["web"].dial("10.96.0.1:70")
		if err != nil {
			return false
		}
		_, err = bufio.NewReader(c).ReadString('\n')
		return err == nil
	})
	t.Logf("carrying again %v after the start", time.Since(start))
	if err := w.n1.end(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	w.n1.start()
	w.n1.await("enrolled")
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
}

// proof: the admin socket says what the kernel counted and that all is well.
func (w *world) proof(t *testing.T) {
	err := w.n2.ask(func(ctx context.Context, c *admin.Client) error {
		proof, err := c.Admin.Prove(ctx, &meshpb.ProveRequest{Workload: "shop/db"})
		if err != nil {
			return err
		}
		classes := map[string]uint64{}
		for _, p := range proof.GetPods() {
			if p.GetError() != "" {
				t.Errorf("%s: %s", p.GetWorkload(), p.GetError())
			}
			for _, counter := range p.GetCounters() {
				classes[counter.GetClass()] += counter.GetBytes()
			}
		}
		if len(proof.GetPods()) != 1 || classes["tunnel"] == 0 || classes["dropped"] == 0 || classes["egress"]+classes["permissive"] != 0 {
			t.Errorf("bytes by class: %v", classes)
		}
		if _, err := c.Admin.Prove(ctx, &meshpb.ProveRequest{Workload: "shop/nobody"}); status.Code(err) != codes.NotFound {
			t.Errorf("a pod that is not there: %v", err)
		}
		s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
		if err != nil {
			return err
		}
		details := map[string]string{}
		for _, check := range s.GetChecks() {
			details[check.GetName()] = check.GetDetail()
			if !check.GetOk() {
				t.Errorf("%s: %s", check.GetName(), check.GetDetail())
			}
		}
		if !strings.HasPrefix(details["engine"], s.GetEngine()+"; AES-GCM is ") {
			t.Errorf("engine: %q", details["engine"])
		}
		if s.GetConfiguration().GetSource() != "operator" || !s.GetOperator().GetConnected() || len(s.GetCertificates()) != 3 {
			t.Errorf("status: %v", s)
		}
		live, err := c.Admin.Connections(ctx, &meshpb.ConnectionsRequest{})
		if err == nil && len(live.GetConnections()) == 0 {
			t.Error("the live connections of the policy test are not listed")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// unenrolled: a pod that leaves the mesh is as if it had never been in it, and
// comes back when it joins again.
func (w *world) unenrolled(t *testing.T) {
	w.workload("web", "n1", "disabled")
	testenv.Eventually(t, 15*time.Second, "web has left", func() bool {
		left := false
		err := w.n1.ask(func(ctx context.Context, c *admin.Client) error {
			s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
			left = err == nil && len(s.GetPods()) == 1
			return err
		})
		return err == nil && left
	})
	var rules []netlink.Rule
	w.pods["web"].ns.Must(t, func() (err error) { rules, err = netlink.RuleList(netlink.FAMILY_ALL); return err })
	for _, r := range rules {
		if r.Priority != 0 && r.Priority < 32000 {
			t.Errorf("left in the pod: %v", r)
		}
	}
	// It is in plaintext now, which STRICT workloads refuse, and others do not.
	if c, err := w.pods["web"].dial(net.JoinHostPort(w.pods["db"].v4, "7001")); err == nil {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			t.Error("plaintext reached a STRICT workload")
		}
	}
	c, err := (&podNS{w: w, ns: w.n1.ns}).dial(net.JoinHostPort(w.pods["web"].v4, "7001"))
	if err != nil {
		t.Fatalf("plaintext to a pod outside the mesh: %v", err)
	}
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Error(err)
	}
	w.workload("web", "n1", "enabled")
	testenv.Eventually(t, 15*time.Second, "web is back", func() bool {
		c, err := w.pods["web"].dial("10.96.0.1:70")
		if err != nil {
			return false
		}
		_, err = bufio.NewReader(c).ReadString('\n')
		return err == nil
	})
}

// operatorGone: agents run and restart on what they have.
func (w *world) operatorGone(t *testing.T) {
	w.stopOperator()
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	if err := w.n1.end(syscall.SIGKILL); err == nil {
		t.Error("killed, and ended well")
	}
	w.n1.start()
	w.n1.await("enrolled")
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	err := w.n1.ask(func(ctx context.Context, c *admin.Client) error {
		s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
		if err == nil && (s.GetConfiguration().GetSource() != "last-good" || s.GetOperator().GetConnected()) {
			t.Errorf("status: %v", s)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestFiveThousandConnections holds 5,000 connections through the tunnel, and
// 2,000 spliced, at once; each answers, and each leaves one record on each node
// that it touches.
func TestFiveThousandConnections(t *testing.T) {
	const tunnelled, spliced = 5000, 2000
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	for _, n := range []*node{w.n1, w.n2} {
		n.start(func(c *agent.Config) { c.Flows.Records = 4 * tunnelled })
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	start := time.Now()
	conns := append(w.dialMany(t, "10.96.0.1:70", tunnelled), w.dialMany(t, "10.96.0.2:70", spliced)...)
	t.Logf("%d connections in %v", len(conns), time.Since(start))
	for _, c := range conns {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*node{w.n1, w.n2} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "FDSize") {
				t.Logf("%s: %s", n.name, strings.TrimSpace(line))
			}
		}
	}
	for _, c := range conns {
		c.Close()
	}
	carried := func(r *flow.Record) bool { return r.Verdict == mesh.VerdictAllow && r.BytesSent == 1 }
	for n, want := range map[*node]int{w.n1: tunnelled + spliced, w.n2: tunnelled} {
		testenv.Eventually(t, 20*time.Second, n.name+": every connection's record", func() bool { return len(n.flows(carried)) >= want })
		if got := len(n.flows(carried)); got != want {
			t.Errorf("%s: %d records, want %d", n.name, got, want)
		}
	}
}

// dialMany opens connections from web, 50 at a time, and reads each's greeting.
func (w *world) dialMany(t *testing.T, to string, n int) []*net.TCPConn {
	t.Helper()
	conns := make([]*net.TCPConn, n)
	var group errgroup.Group
	group.SetLimit(50)
	for i := range conns {
		group.Go(func() (err error) {
			if conns[i], err = w.pods["web"].dial(to); err != nil {
				return err
			}
			for b := make([]byte, 1); b[0] != '\n'; {
				if _, err := conns[i].Read(b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return conns
}
