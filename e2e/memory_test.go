package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	// mostIdle is what an agent with ten pods and no connections may hold resident.
	mostIdle = 40 << 20
	// mostEach is what an idle connection may add to the resident memory of each of the two agents that carry it.
	mostEach = 12 << 10
)

// resident is an agent's VmRSS in bytes (proc(5)).
func resident(t *testing.T, b *testbed.Bed, node string) (bytes int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.Mesh.Agents[node].PID))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscanf(rest, "%d kB", &bytes); err != nil {
		t.Fatalf("no VmRSS of the agent of %s: %v", node, err)
	}
	return bytes << 10
}

// atRest waits until an agent that does nothing holds no more than most bytes: it gives its garbage back when it
// has been idle for some seconds.
func atRest(t *testing.T, b *testbed.Bed, node string, most int64) {
	t.Helper()
	var have int64
	defer func() { t.Logf("agent of %s: %.1f MB", node, float64(have)/1e6) }()
	testenv.Eventually(t, 30*time.Second, fmt.Sprintf("the agent of %s holds %d bytes or less", node, most), func() bool {
		have = resident(t, b, node)
		return have <= most
	})
}

// TestIdleMemory: an agent with ten pods that do nothing is small.
func TestIdleMemory(t *testing.T) {
	pods := shopPods()
	for i := range 8 {
		pods = append(pods, pod{"shop", fmt.Sprintf("idle%d", i), "n1", []string{fmt.Sprintf("10.244.1.%d", 100+i), fmt.Sprintf("fd00:244:1::%d", 100+i)}})
	}
	b := testbed.Up(t, "..", "e2e-mem", meshYAML("e2e-mem", pods...))
	for _, node := range []string{"n1", "n2"} {
		atRest(t, b, node, mostIdle)
	}
}
