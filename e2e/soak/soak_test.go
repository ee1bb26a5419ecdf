package soak

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: soak.heddle.dev, clusterRanges: ["10.244.0.0/16", "fd00:244::/32"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {namespace: shop, name: strict}
spec: {mode: STRICT}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: client}
spec: {node: n1, addresses: ["10.244.1.10", "fd00:244:1::10"], networkNamespace: /run/netns/heddle-soak-client}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: near}
spec: {node: n1, addresses: ["10.244.1.11"], networkNamespace: /run/netns/heddle-soak-near}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: server}
spec: {node: n2, addresses: ["10.244.2.10", "fd00:244:2::10"], networkNamespace: /run/netns/heddle-soak-server}
`

const (
	// shortRun is the test that runs with all others, longRun from when the bounds
	// are tight.
	shortRun, longRun = 30 * time.Second, 5 * time.Minute
	// validity of the workloads' certificates, so that they rotate meanwhile.
	validity = 2 * time.Minute
	idleOnes = 40
	patience = 10 * time.Second
)

// counts are what the traffic came to.
type counts struct{ echoes, resets, bulks, bytes, failed atomic.Int64 }

// targets are what the traffic goes to.
func targets() []string {
	return []string{"10.244.2.10:7000", "[fd00:244:2::10]:7000", "10.244.1.11:7000"}
}

// TestSoak keeps a mesh of two nodes under churn: connections opened, used,
// ended in order or by a reset, large transfers with checksums, idle ones, and
// certificates that rotate; in long runs also a pod that comes and goes, a policy
// that does, and agents that hand over to the next. Nothing may fail, and nothing may grow.
func TestSoak(t *testing.T) {
	run := shortRun
	if text := os.Getenv("HEDDLE_SOAK"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("HEDDLE_SOAK: %v", err)
		}
		run = d
	}
	t.Setenv("HEDDLE_CERTIFICATE_TTL", validity.String()) // the operator's
	// The agents', so that what they keep of flows is full before the second third.
	t.Setenv("HEDDLE_FLOW_RECORDS", "1000")
	b := testbed.Up(t, "../..", "soak", meshYAML+guestYAML)
	for _, l := range []struct{ pod, address string }{{"shop/server", ":7000"}, {"shop/near", ":7000"}, {"shop/server", ":7001"}} {
		serve(b.Listen(t, l.pod, l.address))
	}
	targets := targets()
	p := programsOf(b)
	before := lookAtRest(t, p)

	var n counts
	var changed changes
	var idle []*net.TCPConn
	for i := range idleOnes {
		idle = append(idle, b.MustDial(t, "shop/client", targets[i%len(targets)]))
	}
	ctx, cancel := context.WithTimeout(t.Context(), run)
	defer cancel()
	var traffic sync.WaitGroup
	for i := range 6 {
		traffic.Go(func() { churn(ctx, t, b, targets[i%len(targets)], &n) })
	}
	for i := range 2 {
		traffic.Go(func() { bulk(ctx, t, b, targets[i%len(targets)], &n) })
	}
	if run > handOverEvery {
		traffic.Go(func() { changed = change(ctx, t, b, p) })
	}
	runs := watch(ctx, t, p, run)
	traffic.Wait()
	for i, c := range idle {
		if err := echo(c, []byte("after all this time")); err != nil {
			t.Errorf("idle connection %d: %v", i, err)
		}
		c.Close()
	}
	table, err := judge(runs, p.names, run >= longRun)
	t.Logf("%v: %d echoes, %d resets, %d transfers, %d MiB in all, %d failed; a pod came or went %d times, a policy %d, %d hand-overs\n%s",
		run, n.echoes.Load(), n.resets.Load(), n.bulks.Load(), n.bytes.Load()>>20, n.failed.Load(), changed.pods, changed.policies, changed.handOvers, table)
	if err != nil {
		t.Error(err)
	}
	settled(t, p, before)
	if turns := int(run / changeEvery); run > handOverEvery && (changed.pods < turns || changed.handOvers < 1) {
		t.Errorf("%+v in %d turns: too few changes to show anything", changed, turns)
	}
	if n.failed.Load() > 0 || n.echoes.Load() < int64(run.Seconds()) || n.resets.Load() == 0 || n.bulks.Load() == 0 {
		t.Error("connections failed, or there were too few to show anything")
	}
}

// watch samples the agents and the operator until ctx is done.
func watch(ctx context.Context, t *testing.T, p *programs, run time.Duration) map[string][]sample {
	t.Helper()
	every := min(5*time.Second, run/30)
	runs := map[string][]sample{}
	start := time.Now()
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return runs
		case <-ticks.C:
		}
		for _, name := range p.names {
			s, err := p.look(name)
			if errors.Is(err, errReplaced) {
				continue
			}
			if err != nil {
				t.Errorf("look at %s: %v", name, err)
				return runs
			}
			s.at = time.Since(start)
			runs[name] = append(runs[name], s)
		}
	}
}

// clientIn is an HTTP client whose connections are made in a network namespace.
func clientIn(path string) *http.Client {
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and the thread ends with the goroutine
			h, openErr := netns.GetFromPath(path)
			if err = openErr; err != nil {
				return
			}
			defer h.Close()
			if err = netns.Set(h); err != nil {
				return
			}
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		}()
		<-done
		return c, err
	}
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// serve answers what it gets with the same, for each connection until its end.
func serve(l *net.TCPListener) {
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the client checks what comes back
			}()
		}
	}()
}

// churn opens, uses and ends connections, in order or by a reset.
func churn(ctx context.Context, t *testing.T, b *testbed.Bed, address string, n *counts) {
	for ctx.Err() == nil {
		if err := short(ctx, b, address, n); err != nil {
			n.failed.Add(1)
			t.Errorf("%s: %v", address, err)
			return
		}
	}
}

func short(ctx context.Context, b *testbed.Bed, address string, n *counts) error {
	c, err := b.Dial("shop/client", address, patience)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer c.Close()
	for range 1 + rand.IntN(5) {
		message := bytes.Repeat([]byte{byte(rand.Uint32())}, 1+rand.IntN(20_000))
		if err := echo(c, message); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		n.echoes.Add(1)
		n.bytes.Add(int64(2 * len(message)))
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rand.IntN(60)) * time.Millisecond):
		}
	}
	if rand.IntN(3) == 0 {
		n.resets.Add(1)
		return c.SetLinger(0) // and Close resets
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

func echo(c *net.TCPConn, message []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, message) {
		return errors.New("other bytes came back")
	}
	return nil
}

// bulk sends megabytes there and back, with a pause after each.
func bulk(ctx context.Context, t *testing.T, b *testbed.Bed, address string, n *counts) {
	const size = 8 << 20
	for ctx.Err() == nil {
		c, err := b.Dial("shop/client", address, patience)
		if err == nil {
			err = transfer(c, size)
			c.Close()
		}
		if err != nil {
			n.failed.Add(1)
			t.Errorf("%s: transfer: %v", address, err)
			return
		}
		n.bulks.Add(1)
		n.bytes.Add(2 * size)
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

func transfer(c *net.TCPConn, size int64) error {
	if err := c.SetDeadline(time.Now().Add(6 * patience)); err != nil {
		return err
	}
	sent, got := sha256.New(), sha256.New()
	written := make(chan error, 1)
	go func() {
		source := rand.NewChaCha8([32]byte{byte(rand.Uint32())})
		_, err := io.Copy(io.MultiWriter(c, sent), io.LimitReader(source, size))
		written <- errors.Join(err, c.CloseWrite())
	}()
	n, err := io.Copy(got, c)
	if err := errors.Join(err, <-written); err != nil {
		return err
	}
	if n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d bytes of %d came back, or others", n, size)
	}
	return nil
}

// TestJudge: what the verdict is worth: it finds a leak, and a spike after
// warming up is none.
func TestJudge(t *testing.T) {
	flat := func(i int) float64 { return 100 + float64(i%3) }
	leak := func(i int) float64 { return 100 + 2*float64(i) }
	warm := func(i int) float64 { return min(100, 10*float64(i)) }
	for name, c := range map[string]struct {
		value func(int) float64
		good  bool
	}{"flat": {flat, true}, "leak": {leak, false}, "warming up": {warm, true}} {
		var samples []sample
		for i := range 60 {
			v := c.value(i)
			samples = append(samples, sample{at: time.Duration(i) * time.Second, value: [quantities]float64{v * (1 << 20), v, v, v * (1 << 20)}})
		}
		table, err := judge(map[string][]sample{"n1": samples}, []string{"n1"}, true)
		if c.good != (err == nil) {
			t.Errorf("%s: %v\n%s", name, err, table)
		}
		if err != nil && !strings.Contains(err.Error(), "RSS MiB grew") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := judge(map[string][]sample{"n1": nil}, []string{"n1"}, true); err == nil {
		t.Error("nothing was looked at, and all is well")
	}
}

// TestJudgeSlowLeaks: what grows too slowly for a third to show it, in runs that
// are long enough for that.
func TestJudgeSlowLeaks(t *testing.T) {
	for name, c := range map[string]struct {
		hourly [quantities]float64 // in units
		run    time.Duration
		says   string // empty: well
	}{
		"nothing":            {run: 30 * time.Minute},
		"a little":           {hourly: [quantities]float64{rss: 8, files: 20, goroutines: 10, heap: 8}, run: 30 * time.Minute},
		"RSS":                {hourly: [quantities]float64{rss: 40}, run: 30 * time.Minute, says: "RSS MiB grew by"},
		"RSS in ten minutes": {hourly: [quantities]float64{rss: 40}, run: 10 * time.Minute, says: "RSS MiB grew by"},
		"heap":               {hourly: [quantities]float64{heap: 40}, run: 30 * time.Minute, says: "heap goal MiB grew by"},
		"descriptors":        {hourly: [quantities]float64{files: 150}, run: 30 * time.Minute, says: "fds grew by"},
		"goroutines":         {hourly: [quantities]float64{goroutines: 60}, run: 30 * time.Minute, says: "goroutines grew by"},
		"too short to say":   {hourly: [quantities]float64{goroutines: 60}, run: 5 * time.Minute},
	} {
		var samples []sample
		level, noise := [quantities]float64{rss: 90, files: 300, goroutines: 150, heap: 30}, rand.New(rand.NewPCG(1, 2))
		for at := 5 * time.Second; at <= c.run; at += 5 * time.Second {
			s := sample{at: at}
			for q, limit := range bounds(true) {
				s.value[q] = limit.unit * (level[q] + c.hourly[q]*at.Hours() + 2*noise.Float64())
			}
			samples = append(samples, s)
		}
		table, err := judge(map[string][]sample{"n1": samples}, []string{"n1"}, true)
		if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v\n%s", name, err, table)
		}
	}
}

// TestJudgeFollowers: the slope is of one process. Of several that follow each other what one leaves to the next counts.
func TestJudgeFollowers(t *testing.T) {
	for name, c := range map[string]struct {
		left float64 // of each to the next, descriptors
		pids int
		says string // empty: well
	}{
		"each grows, and leaves nothing":  {pids: 6},
		"each leaves as much as it grows": {pids: 6, left: 200, says: "fds grew from"},
		"one grows":                       {pids: 1, says: "fds grew by"},
	} {
		const run = 30 * time.Minute
		var samples []sample
		for at := 5 * time.Second; at < run; at += 5 * time.Second {
			of := int(at * time.Duration(c.pids) / run)
			age := at - time.Duration(of)*run/time.Duration(c.pids)
			s := sample{at: at, pid: 100 + of}
			s.value[files] = 1000 + c.left*float64(of) + 40*age.Minutes()
			if c.pids == 1 {
				s.value[files] = 1000 + 2*age.Minutes() // too slowly for the thirds
			}
			samples = append(samples, s)
		}
		table, err := judge(map[string][]sample{"n2": samples}, []string{"n2"}, true)
		if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v\n%s", name, err, table)
		}
	}
}

// TestSettles: what is left when all has ended is judged in short runs, too.
func TestSettles(t *testing.T) {
	of := func(fds, gos float64) sample {
		return sample{value: [quantities]float64{files: fds, goroutines: gos}}
	}
	if err := settles(of(100, 50), of(130, 80)); err != nil {
		t.Error(err)
	}
	for _, after := range []sample{of(181, 50), of(100, 131)} {
		if err := settles(of(100, 50), after); err == nil {
			t.Errorf("%v are left of 100 and 50, and all is well", after.value)
		}
	}
}
