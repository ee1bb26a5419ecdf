//go:build autobahn

package serve_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// verdicts is what the Autobahn suite says of a server: for each case, of what was said, and of how the connection ended.
type verdicts map[string]struct {
	Behavior      string `json:"behavior"`
	BehaviorClose string `json:"behaviorClose"`
}

// cases are all but most of 12 and 13: compression is between the two ends, in frames that the waypoint does not read, and
// the suite takes hours for those 216. One of each shows that the extension is agreed on through the waypoint.
var cases = []string{"1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.1.1", "12.1.10", "13.1.1", "13.7.1"}

// behind has the suite's server answer at the port of the waypoint, too, which is what its clients say in Host.
const behind = "import autobahn.websocket.protocol as p\n" +
	"was = p.WebSocketServerFactory.setSessionParameters\n" +
	"def anyPort(self, *args, **more):\n was(self, *args, **more)\n self.externalPort = None\n" +
	"p.WebSocketServerFactory.setSessionParameters = anyPort\n"

// TestAutobahn: the Autobahn suite's own client asks its own server directly and through the waypoint, and finds the
// same. HEDDLE_AUTOBAHN is where the report is kept, if it is set.
func TestAutobahn(t *testing.T) {
	out, err := exec.Command("./autobahn.sh").Output()
	if err != nil {
		t.Fatalf("autobahn.sh: %v", err)
	}
	python, lib, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	wstest := func(ctx context.Context, first string, args ...string) *exec.Cmd {
		run := "import site\nsite.addsitedir(" + strconv.Quote(lib) + ")\n" + first + "from autobahntestsuite.wstest import run\nrun()"
		cmd := exec.CommandContext(ctx, python, append([]string{"-W", "ignore", "-c", run}, args...)...)
		cmd.Dir = t.TempDir()
		return cmd
	}

	addr := workloadAddress()
	at := overLoopback(netip.AddrPortFrom(addr, uint16(testenv.FreePort(t))))
	ctx, stop := context.WithCancel(context.Background())
	server := wstest(ctx, behind, "-m", "testeeserver", "-w", "ws://"+at.String(), "-u", "0")
	said := &testenv.Log{}
	server.Stdout, server.Stderr = said, said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { _ = server.Wait() })
	defer all.Wait()
	defer stop()
	testenv.Eventually(t, time.Minute, "the server listens", func() bool {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})

	b := &backend{name: "cart", address: cartAddr, port: "http", workloads: []netip.Addr{addr}, target: at.Port(), mode: mesh.ModePermissive}
	w := newWorld(t, []*backend{b}, func(c *serve.Config) { c.Direct = netip.AddrPortFrom(cartAddr, servicePort) })
	folder := os.Getenv("HEDDLE_AUTOBAHN")
	if folder == "" {
		folder = t.TempDir()
	}
	spec, err := json.Marshal(map[string]any{"outdir": folder, "cases": cases, "exclude-cases": []string{}, "exclude-agent-cases": map[string]any{}, "servers": []map[string]string{
		{"agent": "direct", "url": fmt.Sprintf("ws://%s", at)}, {"agent": "waypoint", "url": fmt.Sprintf("ws://%s", w.at)}}})
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/spec.json"
	if err := os.WriteFile(file, spec, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := wstest(t.Context(), "", "-m", "fuzzingclient", "-s", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\nthe server: %s", err, out, said.String())
	}

	text, err := os.ReadFile(folder + "/index.json")
	if err != nil {
		t.Fatal(err)
	}
	var found struct{ Direct, Waypoint verdicts }
	if err := json.Unmarshal(text, &found); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for name, one := range found.Waypoint {
		counts[one.Behavior]++
		if direct := found.Direct[name]; one != direct || one.Behavior == "FAILED" {
			t.Errorf("case %s: %+v, directly %+v", name, one, direct)
		}
	}
	if t.Logf("%d cases: %v", len(found.Waypoint), counts); len(found.Waypoint) != len(found.Direct) || len(found.Waypoint) < 300 {
		t.Errorf("%d cases through the waypoint, %d directly: want the same, 300 at least", len(found.Waypoint), len(found.Direct))
	}
	if n := w.value("heddle_waypoint_requests_total", "backend", "shop/cart:80"); n < float64(len(found.Waypoint)) {
		t.Errorf("%v requests went through the waypoint", n)
	}
}
