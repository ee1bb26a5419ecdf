package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	// changeEvery is how often a pod goes and comes back and a policy changes, handOverEvery how often an
	// agent is replaced; runs that are not longer than that have neither.
	changeEvery, handOverEvery = time.Minute, 5 * time.Minute
	// replaced is the node whose agents follow each other. The other's is one process throughout, so that
	// what grows slowly in a process has all of the run to show it.
	replaced = "n2"
	guest    = "shop/guest"
	// policed is of a port that a policy forbids now and then.
	policed = "10.244.2.10:7001"
)

const guestYAML = `---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: guest}
spec: {node: n1, addresses: ["10.244.1.12"], networkNamespace: /run/netns/heddle-soak-guest}
`

const forbiddenYAML = `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: shut}
spec: {action: DENY, rules: [{to: [{ports: [7001]}]}]}
`

// programs are the processes that are looked at, by node or role. It is safe for concurrent use.
type programs struct {
	names   []string                // in the order in which they are shown
	clients map[string]*http.Client // of what has metrics that tell more

	mu  sync.Mutex
	pid map[string]int // 0 while one follows another
}

func programsOf(b *testbed.Bed) *programs {
	p := &programs{clients: map[string]*http.Client{}, pid: map[string]int{"operator": b.Mesh.Operator.PID}}
	for _, node := range b.Mesh.Plan.Nodes {
		p.names = append(p.names, node.Name)
		p.pid[node.Name] = b.Mesh.Agents[node.Name].PID
		p.clients[node.Name] = clientIn(filepath.Join("/run/netns", node.NetNS))
	}
	p.names = append(p.names, "operator")
	return p
}

// errReplaced is of a process that has just been, or is about to be, another.
var errReplaced = errors.New("it is being replaced")

func (p *programs) look(name string) (sample, error) {
	pid := p.of(name)
	if pid == 0 {
		return sample{}, errReplaced
	}
	s, err := look(pid, p.clients[name], "http://127.0.0.1:15020/metrics")
	if p.of(name) != pid {
		return sample{}, errReplaced
	}
	return s, err
}

func lookAtAll(t *testing.T, p *programs) map[string]sample {
	t.Helper()
	all := map[string]sample{}
	for _, name := range p.names {
		s, err := p.look(name)
		if err != nil {
			t.Fatalf("look at %s: %v", name, err)
		}
		all[name] = s
	}
	return all
}

// lookAtRest is lookAtAll as soon as nothing comes any more: an agent loads the next pods' programs
// ahead (bpf.Spares) while nothing else is to do.
func lookAtRest(t *testing.T, p *programs) map[string]sample {
	t.Helper()
	const rest = 3 // looks, a second apart, by which nothing has come
	before, same := lookAtAll(t, p), 0
	for deadline := time.Now().Add(4 * patience); time.Now().Before(deadline) && same < rest; {
		time.Sleep(time.Second)
		now := lookAtAll(t, p)
		same++
		for name, s := range now {
			if s.value[files] > before[name].value[files] {
				same = 0
			}
		}
		before = now
	}
	if same < rest {
		t.Fatalf("descriptors still come after %v without traffic: %v", 4*patience, before)
	}
	return before
}

func (p *programs) of(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid[name]
}

func (p *programs) set(name string, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid[name] = pid
}

// changes counts what has changed.
type changes struct{ pods, policies, handOvers int }

// change has a pod leave the mesh and come back, a policy come and go, and an agent hand over to the next, until ctx is done.
func change(ctx context.Context, t *testing.T, b *testbed.Bed, p *programs) (n changes) {
	minutes := time.NewTicker(changeEvery)
	defer minutes.Stop()
	for turn := 1; ; turn++ {
		select {
		case <-ctx.Done():
			return n
		case <-minutes.C:
		}
		steps := []step{
			{"the pod has left", &n.pods, func() error { b.Write(t, "mesh.yaml", meshYAML); return becomes(ctx, b, guest, targets()[0], false) }},
			{"the pod is back", &n.pods, func() error {
				b.Write(t, "mesh.yaml", meshYAML+guestYAML)
				return becomes(ctx, b, guest, targets()[0], true)
			}},
			{"the policy forbids", &n.policies, func() error {
				b.Write(t, "shut.yaml", forbiddenYAML)
				return becomes(ctx, b, "shop/client", policed, false)
			}},
			{"the policy is gone", &n.policies, func() error { b.Remove(t, "shut.yaml"); return becomes(ctx, b, "shop/client", policed, true) }},
		}
		if turn%int(handOverEvery/changeEvery) == 0 {
			steps = append(steps, step{"hand-over", &n.handOvers, func() error { return handOver(t, b, p) }})
		}
		for _, s := range steps {
			if err := s.do(); ctx.Err() != nil && err != nil {
				return n // it was cut short
			} else if err != nil {
				t.Errorf("turn %d: %s: %v", turn, s.what, err)
				return n
			}
			*s.count++
		}
	}
}

type step struct {
	what  string
	count *int
	do    func() error
}

// becomes waits until an echo of a pod at an address passes, or until none does.
func becomes(ctx context.Context, b *testbed.Bed, pod, address string, passes bool) error {
	var err error
	for deadline := time.Now().Add(2 * patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = once(b, pod, address); (err == nil) == passes {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("from %s to %s it is to pass: %v; the last: %v", pod, address, passes, err)
}

func once(b *testbed.Bed, pod, address string) error {
	c, err := b.Dial(pod, address, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c, []byte("is it let in?"))
}

// handOver replaces an agent under all connections, none of which may be lost.
func handOver(t *testing.T, b *testbed.Bed, p *programs) error {
	p.set(replaced, 0)
	out, err := b.Heddle("local", "upgrade", "--name", "soak", "--node", replaced, "-o", "json")
	if err != nil {
		return err
	}
	var said struct{ Upgraded []local.Upgraded }
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		return err
	}
	if len(said.Upgraded) != 1 {
		return fmt.Errorf("not one agent was replaced: %s", out)
	}
	u := said.Upgraded[0]
	p.set(replaced, u.PID)
	t.Logf("process %d took over from %d: %d connections, at rest for %v", u.PID, u.FromPID, u.Connections, u.Pause)
	if u.Failed != 0 || u.Left != 0 || u.Connections == 0 {
		return fmt.Errorf("connections did not move: %s", strings.TrimSpace(out))
	}
	return nil
}

// settled waits until each process has settled after all connections have ended.
func settled(t *testing.T, p *programs, before map[string]sample) {
	t.Helper()
	for _, name := range p.names {
		var err error
		for deadline := time.Now().Add(2 * patience); time.Now().Before(deadline); time.Sleep(time.Second) {
			var s sample
			if s, err = p.look(name); err != nil {
				break
			}
			if err = settles(before[name], s); err == nil {
				t.Logf("%s: %.0f descriptors and %.0f goroutines, %.0f and %.0f before", name, s.value[files], s.value[goroutines], before[name].value[files], before[name].value[goroutines])
				break
			}
		}
		switch {
		case err != nil && testenv.Overloaded(t):
			t.Logf("%s: inconclusive, as the machine is overloaded: %v", name, err)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		}
	}
}

// settles wants agents to be left with about as many descriptors and goroutines as before the traffic, when all
// connections have ended. What is kept are tunnels for the next ones.
func settles(before, after sample) error {
	const kept = 80 // about 35 are, after half a minute as after six; one leaked by each twentieth connection of the short run would be more
	for _, q := range []int{files, goroutines} {
		if most := before.value[q] + kept; after.value[q] > most {
			return fmt.Errorf("%.0f %s when all connections have ended, want at most %.0f, with the %.0f before the first", after.value[q], bounds(true)[q].name, most, before.value[q])
		}
	}
	return nil
}
