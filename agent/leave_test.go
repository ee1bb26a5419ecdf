package agent_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// leaver is a server that comes and goes while its pod stays.
type leaver struct {
	pod    *podNS
	served atomic.Int64

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]bool
	all   sync.WaitGroup
}

func (s *leaver) start(t *testing.T) {
	t.Helper()
	s.pod.ns.Must(t, func() (err error) {
		s.l, err = net.Listen("tcp", ":7002")
		return err
	})
	s.conns = map[net.Conn]bool{}
	s.all.Go(func() { s.accept(s.l) })
}

func (s *leaver) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.all.Go(func() {
			line, err := bufio.NewReader(c).ReadString('\n')
			if err == nil {
				_, err = fmt.Fprint(c, line)
			}
			if err == nil {
				s.served.Add(1)
			}
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// exit is what the end of the process does.
func (s *leaver) exit() {
	s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
}

// request makes one over a connection of its own.
func (p *podNS) request(to string) error {
	var c net.Conn
	err := p.ns.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", to)
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = fmt.Fprintln(c, "question"); err == nil {
		err = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	}
	if err != nil {
		return err
	}
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != "question\n" {
		return fmt.Errorf("answered %q, %w", got, err)
	}
	return nil
}

// TestServersLeave: of a service whose servers are gone a second after they get no
// new connections any more, one after the other, no request is lost, from their own
// node and from another.
func TestServersLeave(t *testing.T) {
	w := newWorld(t)
	servers := map[string]*leaver{"api": {pod: w.pods["api"]}, "db": {pod: w.pods["db"]}}
	homes := map[string]string{"api": "n1", "db": "n2"}
	ready := func(name string, is bool) {
		w.write(name+".yaml", fmt.Sprintf(`apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: %s, labels: {leaves: "yes", heddle.dev/mesh: enabled}}
spec: {node: %s, serviceAccount: %s, addresses: ["%s"], networkNamespace: %s, ready: %v}
`, name, homes[name], name, w.pods[name].v4, w.pods[name].ns.Path, is))
	}
	w.write("leaving.yaml", `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: leaving}
spec:
  selector: {leaves: "yes"}
  clusterIPs: ["10.96.0.9"]
  ports: [{port: 70, targetPort: 7002}]
`)
	for name, s := range servers {
		ready(name, true)
		s.start(t)
	}
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	testenv.Eventually(t, 10*time.Second, "the service answers", func() bool { return w.pods["web"].request("10.96.0.9:70") == nil })

	stop := make(chan struct{})
	var asking sync.WaitGroup
	var made atomic.Int64
	var mu sync.Mutex
	var lost []error
	for range 4 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				began := time.Now()
				if err := w.pods["web"].request("10.96.0.9:70"); err != nil {
					mu.Lock()
					lost = append(lost, fmt.Errorf("%s after %v: %w", began.Format("15:04:05.000"), time.Since(began), err))
					mu.Unlock()
				}
				made.Add(1)
			}
		})
	}
	serves := func(s *leaver, before int64) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, "the server that came back gets requests", func() bool { return s.served.Load() > before })
	}
	for n := range 6 {
		name := []string{"api", "db"}[n%2]
		s := servers[name]
		serves(s, s.served.Load())
		ready(name, false)
		time.Sleep(time.Second)
		s.exit()
		time.Sleep(200 * time.Millisecond)
		s.start(t)
		ready(name, true)
		serves(s, s.served.Load())
	}
	close(stop)
	asking.Wait()
	for _, s := range servers {
		s.exit()
	}
	t.Logf("%d requests, %d lost", made.Load(), len(lost))
	if len(lost) > 0 {
		var denied []string
		for _, r := range w.n1.flows(func(r *flow.Record) bool { return r.Verdict == mesh.VerdictDeny }) {
			denied = append(denied, fmt.Sprintf("%s %s %v %v %s", r.Start.Format("15:04:05.000"), r.Destination.Workload, r.Duration, r.Reason, r.Detail))
		}
		testenv.ForGood(t, "%d requests are lost: %v\n%s", len(lost), errors.Join(lost[:min(10, len(lost))]...), strings.Join(denied, "\n"))
	}
}
