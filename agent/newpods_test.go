package agent_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/agent/cni/chain"
	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestChainIsTheAgents: an agent puts heddle-cni into the node's CNI, answers it,
// leaves it there when it stops, and takes it out when it leaves the node for good.
func TestChainIsTheAgents(t *testing.T) {
	w := newWorld(t)
	const before = `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge"}]}`
	conf, socket, program := filepath.Join(w.dir, "net.d", "10-x.conflist"), filepath.Join(w.dir, "cni.sock"), filepath.Join(w.dir, "heddle-cni")
	installed, own := filepath.Join(w.dir, "bin", "heddle-cni"), filepath.Join(w.dir, "net.d", chain.Own)
	for _, d := range []string{filepath.Dir(conf), filepath.Dir(installed)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{conf: before, program: "program"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = w.n1.end(syscall.SIGKILL) // it has ended, unless the test failed
		if log, err := os.ReadFile(w.n1.log); err == nil && t.Failed() {
			t.Logf("log of n1:\n%s", log)
		}
		if err := os.RemoveAll("/sys/fs/bpf/" + w.n1.ns.Name); err != nil {
			t.Error(err)
		}
		if err := syscall.Unmount(filepath.Join(w.dir, "n1", "keys"), 0); err != nil {
			t.Errorf("unmount the keys: %v", err)
		}
	})
	start := func(forGood bool) {
		t.Helper()
		w.n1.start(func(c *agent.Config) {
			c.End.Unenroll = forGood
			c.CNI = agent.CNIConfig{
				Socket: socket, Runtime: filepath.Join(w.dir, "no-runtime.sock"), ConfDir: filepath.Dir(conf), BinDir: filepath.Dir(installed), Program: program,
			}
		})
		testenv.Eventually(t, 20*time.Second, "heddle-cni is in the chain and answered", func() bool {
			text, err := os.ReadFile(own)
			if err != nil || !strings.Contains(string(text), `"type":"heddle-cni"`) {
				return false
			}
			conn, err := net.Dial("unix", socket)
			if err != nil {
				return false
			}
			defer conn.Close()
			var r cniwire.Response
			return cniwire.Write(conn, cniwire.Request{Version: 1, Op: cniwire.OpGC}) == nil && cniwire.Read(conn, &r) == nil && r.Verdict == cniwire.Outside
		})
	}
	start(false)
	list := filepath.Join(w.dir, "n1", "state", "cni", "namespaces.json")
	testenv.Eventually(t, 20*time.Second, "the list is on disk", func() bool {
		n, err := cniwire.LoadNamespaces(list)
		return err == nil && n.Standing("shop") == cniwire.Enrolled
	})
	testenv.Eventually(t, 20*time.Second, "the status says where heddle-cni is", func() bool {
		said := map[string]string{}
		for _, check := range w.n1.status().GetChecks() {
			if check.GetOk() {
				said[check.GetName()] = check.GetDetail()
			}
		}
		return said["CNI configuration"] == "heddle-cni is in "+own && said["list of namespaces"] == "on disk"
	})
	if err := w.n1.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(own); err != nil || !strings.Contains(string(text), "heddle-cni") {
		t.Errorf("new pods would not wait for the next agent: %q, %v", text, err)
	}
	start(true)
	if err := w.n1.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(conf); err != nil || string(text) != before {
		t.Errorf("the node is not as it was: %q, %v", text, err)
	}
	for _, path := range []string{installed, list, own} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left behind", path)
		}
	}
}
