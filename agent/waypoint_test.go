package agent_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/proxyheader"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// proxied is a waypoint that knows one service: it reads the header, and connects on.
type proxied struct {
	pod     *podNS
	to      string
	headers chan proxyheader.Header
}

func (p *proxied) carry(c *net.TCPConn) {
	var read []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
		read = append(read, b[0])
		h, _, err := proxyheader.Parse(read)
		if errors.Is(err, proxyheader.ErrMore) {
			continue
		}
		if err != nil {
			fmt.Fprintf(c, "no header: %v\n", err)
			return
		}
		p.headers <- h
		break
	}
	to, err := p.pod.dial(p.to)
	if err != nil {
		return
	}
	defer to.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(to, c)
		to.CloseWrite()
	})
	io.Copy(c, to)
	c.CloseWrite()
	wg.Wait()
}

// TestWaypoint has the whole way in the kernel's hands: a client on each node, the waypoint
// on n2, the service's workload on n1, all of them STRICT.
func TestWaypoint(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) { throughWaypoint(t, kind) })
	}
}

func throughWaypoint(t *testing.T, kind string) {
	w := newWorld(t)
	w.engine = kind
	w.pod(w.n2, "waypoint", "10.2.3", "fd02:0:3")
	w.workload("waypoint", "n2", "enabled")
	behind := func(bypass string) string {
		return `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {selector: {app: waypoint}, clusterIPs: ["10.96.0.9"], ports: [{port: 15009}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: behind, labels: {heddle.dev/waypoint: waypoint, heddle.dev/waypoint-bypass: "` + bypass + `"}}
spec: {selector: {app: api}, clusterIPs: ["10.96.0.10", "fd96::10"], ports: [{port: 70, targetPort: 7001}]}
`
	}
	w.write("behind.yaml", behind("false"))
	w.write("policy.yaml", `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: web-and-db}
spec: {selector: {matchLabels: {app: api}}, action: ALLOW, rules: [{from: [{serviceAccounts: [shop/web, shop/db]}]}]}
`)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	web, db, waypoint := w.pods["web"], w.pods["db"], w.pods["waypoint"]
	p := &proxied{pod: waypoint, to: net.JoinHostPort(w.pods["api"].v4, "7001"), headers: make(chan proxyheader.Header, 16)}
	waypoint.serve(mesh.WaypointPort, p.carry)
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")

	for _, c := range []struct {
		name, vip string
		from      *podNS
		at        *node
		way       flow.Transport
	}{
		{"across nodes", "10.96.0.10:70", web, w.n1, flow.TransportTunnel},
		{"across nodes, IPv6", "[fd96::10]:70", web, w.n1, flow.TransportTunnel},
		{"same node", "10.96.0.10:70", db, w.n2, flow.TransportSplice},
		{"same node, IPv6", "[fd96::10]:70", db, w.n2, flow.TransportSplice},
	} {
		t.Run(c.name, func(t *testing.T) {
			who := map[*podNS]string{web: "web", db: "db"}[c.from]
			conn, greeted := w.asks(t, c.from, c.vip)
			if host, _, err := net.SplitHostPort(greeted); err != nil || host != waypoint.v4 {
				t.Errorf("api greeted %q, want the waypoint", greeted)
			}
			h := <-p.headers
			if local := conn.LocalAddr().(*net.TCPAddr).AddrPort(); h.Client != local || h.Service.String() != c.vip || h.Identity != "spiffe://test.heddle.dev/ns/shop/sa/"+who {
				t.Errorf("header %+v, want client %v", h, local)
			}
			r := c.at.expectFlow(who+" to the waypoint", func(r *flow.Record) bool { return r.Source.Workload.Name == who && r.Waypoint.Name == "waypoint" })
			if r.Verdict != mesh.VerdictAllow || r.Transport != c.way || r.Service.Name != "behind" || r.Destination.Workload.Name != "waypoint" {
				t.Errorf("%+v", r)
			}
		})
	}
	r := w.n1.expectFlow("from the waypoint", func(r *flow.Record) bool {
		return r.Source.Workload.Name == "waypoint" && r.Direction == flow.DirectionInbound
	})
	if r.Reason != mesh.ReasonWaypoint || r.Destination.Workload.Name != "api" || r.Source.Identity.Path() != "/ns/shop/sa/waypoint" {
		t.Errorf("%+v", r)
	}
	t.Run("forged", func(t *testing.T) { w.forged(t, p) })
	t.Run("hand-over", func(t *testing.T) {
		if kind == engine.Reference {
			return // it gives no connections away
		}
		w.exchange(t, web, "10.96.0.1:70") // one without a waypoint, too
		w.n1.expectFlow("outbound to db", wasCarried(flow.DirectionOutbound, flow.TransportTunnel, "web", "db"))
		live := []*talk{w.talk(t, web, "10.96.0.10:70"), w.talk(t, db, "10.96.0.10:70")}
		for _, n := range []*node{w.n2, w.n1} {
			w.handOver(t, n)
			for _, k := range live {
				k.ask(t)
			}
		}
		w.asks(t, web, "10.96.0.10:70")
	})
	t.Run("left", func(t *testing.T) {
		live := []*talk{w.talk(t, web, "10.96.0.10:70"), w.talk(t, db, "10.96.0.10:70")}
		through := func(want bool) {
			t.Helper()
			testenv.Eventually(t, 10*time.Second, fmt.Sprint("new connections go through the waypoint: ", want), func() bool {
				there := 0
				for _, from := range []*podNS{web, db} {
					_, greeted := w.asks(t, from, "10.96.0.10:70") // none fails meanwhile
					if host, _, _ := net.SplitHostPort(greeted); host == waypoint.v4 {
						there++
					}
				}
				for _, k := range live { // what was there goes on
					k.ask(t)
				}
				for len(p.headers) > 0 {
					<-p.headers
				}
				return want && there == 2 || !want && there == 0
			})
		}
		w.write("behind.yaml", strings.Replace(behind("false"), "heddle.dev/waypoint: waypoint, ", "", 1))
		through(false)
		w.write("behind.yaml", behind("false"))
		through(true)
	})
	t.Run("gone", func(t *testing.T) {
		w.workload("waypoint", "n2", "disabled")
		testenv.Eventually(t, 10*time.Second, "the waypoint has left", func() bool { return !w.answers(web, "10.96.0.10:70") })
		for range 5 { // its own node may have heard of it first, and refused for another reason
			time.Sleep(200 * time.Millisecond)
			w.answers(web, "10.96.0.10:70")
		}
		w.n1.expectFlow("refused", func(r *flow.Record) bool {
			return r.Source.Workload.Name == "web" && r.Reason == mesh.ReasonNoEndpoint && r.Service.Name == "behind"
		})
		w.write("behind.yaml", behind("true"))
		testenv.Eventually(t, 10*time.Second, "it is bypassed", func() bool { return w.answers(web, "10.96.0.10:70") })
		w.exchange(t, web, "10.96.0.10:70")
	})
}

// asks connects and asks; it returns what it was greeted by.
func (w *world) asks(t *testing.T, from *podNS, to string) (c *net.TCPConn, greeted string) {
	t.Helper()
	c, err := from.dial(to)
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	if _, err := c.Write([]byte("question\n")); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	greeting, err := in.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: greeting: %v", to, err)
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(in); string(rest) != "question\n" || err != nil {
		t.Errorf("%s: read %q, %v", to, rest, err)
	}
	return c, strings.TrimSpace(strings.TrimPrefix(greeting, "hello "))
}

// answers reports whether somebody greets.
func (w *world) answers(from *podNS, to string) bool {
	c, err := from.dial(to)
	if err != nil {
		return false
	}
	defer c.Close()
	_, err = bufio.NewReader(c).ReadString('\n')
	return err == nil
}

// forged has everybody write a header of their own to the waypoint's port.
func (w *world) forged(t *testing.T, p *proxied) {
	outsider := testenv.NewNetNS(t, "outsider")
	testenv.Veth(t, w.n2.ns, "p-outsider", []string{"10.2.9.1/24"}, outsider, "eth0", []string{"10.2.9.2/24"})
	testenv.DefaultRoute(t, outsider, "10.2.9.1")
	w.pods["outsider"] = &podNS{w: w, ns: outsider, v4: "10.2.9.2"}
	for _, from := range []string{"web", "db", "outsider"} {
		for _, to := range []string{net.JoinHostPort(p.pod.v4, "15009"), "10.96.0.9:15009"} {
			c, err := w.pods[from].dial(to)
			if err != nil {
				continue
			}
			c.Write(proxyheader.Append(nil, proxyheader.Header{Client: c.LocalAddr().(*net.TCPAddr).AddrPort(), Service: c.RemoteAddr().(*net.TCPAddr).AddrPort(),
				Identity: "spiffe://test.heddle.dev/ns/shop/sa/web"}))
			if got, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				t.Errorf("%s reaches %s, and reads %q", from, to, got)
			}
		}
	}
	delete(w.pods, "outsider")
	select {
	case h := <-p.headers:
		t.Errorf("the waypoint was told of %+v", h)
	default:
	}
	for from, n := range map[string]*node{"web": w.n1, "db": w.n2} {
		w := n.expectFlow("refused", func(r *flow.Record) bool {
			return r.Source.Workload.Name == from && r.Reason == mesh.ReasonReservedPort
		})
		if w.Verdict != mesh.VerdictDeny || w.Destination.Addr.Port() != mesh.WaypointPort {
			t.Errorf("%+v", w)
		}
	}
}
