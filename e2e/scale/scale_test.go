package scale

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	// small is what runs with all other tests.
	small = "30:300,100:1000"
	// mostMessage is what no message may exceed, in bytes.
	mostMessage = 4 << 20
	// spare is the number of nodes without pods, which connect a second time.
	spare = 20
	// patience bounds each wait: sizes are what this machine can bear.
	patience = 20 * time.Minute
)

// process is a running operator.
type process struct {
	t      *testing.T
	socket string
	stdin  io.WriteCloser
	stdout *bufio.Scanner
}

func startOperator(t *testing.T, size string) *process {
	t.Helper()
	p := &process{t: t, socket: filepath.Join(t.TempDir(), "operator.sock")}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asOperator+"="+p.socket, "HEDDLE_SCALE="+size)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.stdin.Close() // it ends by that
		if err := cmd.Wait(); err != nil {
			t.Errorf("operator: %v", err)
		}
	})
	if !p.stdout.Scan() || p.stdout.Text() != "ready" {
		t.Fatalf("the operator says %q", p.stdout.Text())
	}
	return p
}

func (p *process) ask(command string, answer any) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.stdin, command); err != nil {
		p.t.Fatal(err)
	}
	if !p.stdout.Scan() {
		p.t.Fatalf("the operator does not answer %q: %v", command, p.stdout.Err())
	}
	if answer != nil {
		if err := json.Unmarshal(p.stdout.Bytes(), answer); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *process) stats() (s stats) {
	p.t.Helper()
	p.ask("collect", nil)
	p.ask("stats", &s)
	return s
}

// all runs do for every node at once, and returns how long each took, sorted.
func all(t *testing.T, nodes []*node, do func(*node) (round, error)) (took []time.Duration, sum round) {
	t.Helper()
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	stop := every(30*time.Second, func() {
		mu.Lock()
		defer mu.Unlock()
		t.Logf("after %.0f s: %d of %d nodes, %.1f GB", time.Since(began).Seconds(), len(took), len(nodes), float64(sum.bytes)/1e9)
	})
	defer stop()
	for _, n := range nodes {
		wg.Go(func() {
			one, err := do(n)
			mu.Lock()
			defer mu.Unlock()
			failed = cmp.Or(failed, err)
			took = append(took, time.Since(began))
			sum.bytes, sum.resources, sum.messages = sum.bytes+one.bytes, sum.resources+one.resources, sum.messages+one.messages
			sum.largest = max(sum.largest, one.largest)
			if one.commit != "" {
				sum.commit = one.commit
			}
		})
	}
	wg.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	slices.Sort(took)
	return took, sum
}

// every says how far something is that may take long, until it is stopped.
func every(period time.Duration, say func()) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				say()
			}
		}
	}()
	return func() { close(done); <-ended }
}

// TestScale connects all nodes at once, then changes one pod and waits for all
// of them, then connects some again.
func TestScale(t *testing.T) {
	sizes := cmp.Or(os.Getenv("HEDDLE_SCALE"), small)
	rows := []string{"| nodes | pods | all in sync | operator CPU | operator heap | operator resident | to each node | largest message | change on all nodes, p50 / p99 | CPU of a change | change to each node |",
		"|---|---|---|---|---|---|---|---|---|---|---|"}
	for size := range strings.SplitSeq(sizes, ",") {
		var nodes, pods int
		if _, err := fmt.Sscanf(size, "%d:%d", &nodes, &pods); err != nil || nodes < 1 || pods < 10 {
			t.Fatalf("HEDDLE_SCALE: size %q: want NODES:PODS, such as 100:1000", size)
		}
		t.Run(size, func(t *testing.T) {
			row := run(t, nodes, pods)
			t.Log(row) // at once: larger ones take long
			rows = append(rows, row)
		})
	}
	t.Logf("\n%s", strings.Join(rows, "\n"))
}

func run(t *testing.T, count, pods int) string {
	p := startOperator(t, fmt.Sprintf("%d:%d", count, pods))
	idle := p.stats()
	var nodes []*node
	for i := range count + spare {
		name := nodeName(i)
		if i >= count {
			name = fmt.Sprintf("spare-%d", i-count)
		}
		n := &node{name: name}
		n.codec.record = i == count // one of those without pods: it has what all have
		nodes = append(nodes, n)
	}
	began := time.Now()
	_, first := all(t, nodes, func(n *node) (round, error) {
		opened, err := connect(p.socket, n.name, nil, n.codec.record)
		if err != nil {
			return round{}, err
		}
		*n = *opened
		r, err := n.next()
		n.commit = r.commit
		return r, err
	})
	defer func() {
		for _, n := range nodes {
			if err := n.close(nil); err != nil {
				t.Error(err)
			}
		}
	}()
	inSync := time.Since(began)
	synced := p.stats()
	if first.largest > mostMessage {
		t.Errorf("a message of %d bytes, more than %d", first.largest, mostMessage)
	}
	if want := (count + spare) * (pods + pods/10 + 1); first.resources < want {
		t.Errorf("%d resources to all nodes, want %d at least", first.resources, want)
	}
	again(t, p, nodes[count:])
	settled := p.stats()
	p.ask("change 0", nil)
	took, change := all(t, nodes, (*node).next)
	changed := p.stats()
	// The service's workload, for each node, and once more for its own.
	if change.resources > count+spare+1 {
		t.Errorf("%d resources to %d nodes for one pod that changed", change.resources, count+spare)
	}
	realClient(t, p, pods)
	total := count + spare
	return fmt.Sprintf("| %d | %d | %.1f s | %.1f s | %.0f MB | %.0f MB | %.2f MB | %.2f MB | %.2f / %.2f s | %.2f s | %.1f kB |", count, pods, inSync.Seconds(), (synced.CPU - idle.CPU).Seconds(),
		settled.HeapMB, settled.ResidentMB, float64(first.bytes)/float64(total)/1e6, float64(first.largest)/1e6,
		took[len(took)/2].Seconds(), took[len(took)*99/100].Seconds(), (changed.CPU - settled.CPU).Seconds(), float64(change.bytes)/float64(total)/1e3)
}

// again has nodes without pods connect a second time, with all that they have:
// nothing is sent but the word that it is the newest.
func again(t *testing.T, p *process, spares []*node) {
	t.Helper()
	shared := spares[0].held
	_, sum := all(t, spares, func(n *node) (round, error) {
		held := holdings{"Commit": {"Commit": n.commit}}
		for kind, versions := range shared {
			if kind != "Commit" {
				held[kind] = versions
			}
		}
		if err := n.close(nil); err != nil {
			return round{}, err
		}
		opened, err := connect(p.socket, n.name, held, false)
		if err != nil {
			return round{}, err
		}
		commit := n.commit
		*n = *opened
		n.commit = commit
		return n.next()
	})
	if sum.resources > 0 || sum.commit != "" || sum.messages != len(spares) {
		t.Errorf("%d reconnects with nothing changed: %d resources, commit %q, %d messages", len(spares), sum.resources, sum.commit, sum.messages)
	}
}

// realClient follows with the agents' own client: what counting nodes count, it
// applies; and it too is sent nothing when it comes back.
func realClient(t *testing.T, p *process, pods int) {
	t.Helper()
	store, lastGood := mesh.NewStore(), filepath.Join(t.TempDir(), "last-good")
	follow := func(resources *int) {
		c, err := discovery.NewClient(discovery.ClientConfig{Node: nodeName(0), Target: "unix:" + p.socket, Credentials: insecure.NewCredentials(), Store: store, LastGood: lastGood,
			Keys: func() []ed25519.PublicKey { return []ed25519.PublicKey{key().Public().(ed25519.PublicKey)} }, Logger: slog.New(slog.DiscardHandler),
			DialOptions: []grpc.DialOption{grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				s, err := open(metadata.AppendToOutgoingContext(ctx, nodeHeader, nodeName(0)), desc, cc, method, opts...)
				return counted{s, resources}, err
			})}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		testenv.Eventually(t, patience, "the real client is current", func() bool { return c.Status().Current })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var first, second int
	follow(&first)
	if got := store.View(); len(got.Workloads()) != pods || len(got.OnNode(nodeName(0))) == 0 {
		t.Errorf("the real client has %d workloads of %d", len(got.Workloads()), pods)
	}
	follow(&second)
	if first < pods || second != 0 {
		t.Errorf("the real client was sent %d resources, and %d when it came back", first, second)
	}
}

// counted counts the resources of a stream, commits left out.
type counted struct {
	grpc.ClientStream
	resources *int
}

// RecvMsg implements grpc.ClientStream.
func (c counted) RecvMsg(m any) error {
	err := c.ClientStream.RecvMsg(m)
	if msg, ok := m.(*discoveryv3.DeltaDiscoveryResponse); ok && err == nil && msg.TypeUrl != commitURL {
		*c.resources += len(msg.Resources) + len(msg.RemovedResources)
	}
	return err
}
