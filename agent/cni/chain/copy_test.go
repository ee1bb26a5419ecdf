package chain

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// held fails when a runtime that looked now would start a pod without heddle-cni.
func (n *node) held(t *testing.T, when string) {
	t.Helper()
	if file, types := n.chainOf(t); len(types) == 0 || types[len(types)-1] != "heddle-cni" {
		t.Fatalf("%s a runtime uses %q with %v", when, file, types)
	}
}

// replace writes a file as careful tools do.
func (n *node) replace(t *testing.T, name, text string) {
	t.Helper()
	n.write(t, ".theirs", text)
	if err := os.Rename(filepath.Join(n.conf, ".theirs"), filepath.Join(n.conf, name)); err != nil {
		t.Fatal(err)
	}
}

func (n *node) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(n.conf, name)); err != nil {
		t.Fatal(err)
	}
}

// TestRewritingOpensNoWindow: at no time, however another tool writes its file, does a
// runtime see a chain without heddle-cni; and the copy is its newest in the end.
func TestRewritingOpensNoWindow(t *testing.T) {
	for name, text := range map[string]string{"10-calico.conflist": calico, "00-br.conf": bridge} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, map[string]string{name: text})
			n.running(t)
			testenv.Eventually(t, 5*time.Second, "it is installed", func() bool { return n.File() != "" })
			version := func(i int) string {
				return strings.Replace(text, `"type":`, fmt.Sprintf(`"version":"v%d-","type":`, i), 1)
			}
			ways := []func(i int){
				func(i int) { n.replace(t, name, version(i)) },
				func(i int) { n.write(t, name, version(i)) }, // emptied first
				func(i int) {
					n.remove(t, name)
					n.held(t, "while the file is away")
					n.write(t, name, version(i))
				},
			}
			for i := range 60 {
				ways[i%len(ways)](i)
				for range 20 {
					n.held(t, fmt.Sprintf("after version %d", i))
					time.Sleep(time.Millisecond)
				}
			}
			testenv.Eventually(t, 5*time.Second, "the copy is the newest", func() bool {
				copied, err := os.ReadFile(filepath.Join(n.conf, Own))
				return err == nil && strings.Contains(string(copied), "v59-")
			})
			if got, err := os.ReadFile(filepath.Join(n.conf, name)); err != nil || string(got) != version(59) {
				t.Errorf("the cluster's own file is %q, %v", got, err)
			}
			if strings.Contains(n.logged(), "put back") {
				t.Errorf("it was out of the chain:\n%s", n.logged())
			}
			if n.changes.Load() < 2 {
				t.Errorf("told of %d changes", n.changes.Load())
			}
		})
	}
}

// TestCopyOutlivesTheAgent: after a reboot the CNI writes its file anew, changed even,
// before there is an agent. The next agent makes the copy the newest.
func TestCopyOutlivesTheAgent(t *testing.T) {
	n := newNode(t, map[string]string{"10-kindnet.conflist": kindnet})
	n.install(t)
	n.write(t, "10-kindnet.conflist", calico)
	n.held(t, "before there is an agent")
	next, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if change, err := next.Install(t.Context()); err != nil || change != Followed {
		t.Errorf("%v, %v", change, err)
	}
	if _, types := n.chainOf(t); !slices.Equal(types, []string{"calico", "heddle-cni"}) {
		t.Errorf("chain is %v", types)
	}
}

// TestNetworkIsTakenAway: a copy does not keep the network of a CNI that is gone, and
// stands in for one that is being written, or cannot be used.
func TestNetworkIsTakenAway(t *testing.T) {
	n := newNode(t, map[string]string{"10-kindnet.conflist": kindnet})
	n.running(t)
	n.eventually(t, Own, "ptp", "portmap", "heddle-cni")
	n.write(t, "10-kindnet.conflist", kindnet[:100])
	testenv.Eventually(t, 5*time.Second, "the problem is seen", func() bool { return n.Problem() != nil })
	time.Sleep(2 * linger)
	n.held(t, "while the cluster's own file cannot be used")
	if !strings.Contains(n.logged(), "out of date") {
		t.Errorf("the log does not say what that means:\n%s", n.logged())
	}
	n.write(t, "10-kindnet.conflist", strings.Replace(kindnet, "0.3.1", "9.0.0", 1))
	testenv.Eventually(t, 5*time.Second, "the version is refused", func() bool { return strings.Contains(fmt.Sprint(n.Problem()), "upgrade Heddle") })
	n.held(t, "while the cluster's own file is too new")
	n.write(t, "10-kindnet.conflist", calico)
	n.eventually(t, Own, "calico", "heddle-cni")
	began := time.Now()
	n.remove(t, "10-kindnet.conflist")
	n.gone(t, "the copy of a network that is gone")
	if took := time.Since(began); took < linger {
		t.Errorf("it was gone after %v, before another tool could write its file", took)
	}
	testenv.Eventually(t, 5*time.Second, "the loss is seen", func() bool { return n.Problem() != nil && n.File() == "" })
	n.write(t, "10-kindnet.conflist", kindnet)
	n.eventually(t, Own, "ptp", "portmap", "heddle-cni")
}

// TestCheck: the agent's status says where heddle-cni is, and what to do where pods may
// start without it.
func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		files          map[string]string
		meddle         func(n *node)
		ok, warning    bool
		detail, remedy string
	}{
		"copy":             {files: map[string]string{"10-calico.conflist": calico}, ok: true, detail: Own},
		"Multus":           {files: map[string]string{"00-multus.conf": meta, "10-calico.conflist": calico}, warning: true, detail: "00-multus.conflist itself", remedy: "kubectl drain"},
		"Cilium, chained":  {files: map[string]string{"10-calico.conflist": strings.Replace(calico, "\r\n\t]", ",{\"type\":\"cilium-cni\"}]", 1)}, warning: true, detail: "cilium-cni is chained", remedy: "kubectl drain"},
		"an early name":    {files: map[string]string{"0-calico.conflist": calico}, warning: true, detail: "its name comes before", remedy: "two digits"},
		"Cilium, alone":    {files: map[string]string{"05-cilium.conflist": calico}, meddle: func(n *node) { _ = os.Rename(n.own(), n.own()+".cilium_bak") }, warning: true, detail: "renamed the copy", remedy: "cni.exclusive=false"},
		"no network":       {detail: "new pods are not held back: ", remedy: "the agent tries again"},
		"half of its file": {files: map[string]string{"10-calico.conflist": calico}, meddle: func(n *node) { n.write(t, "10-calico.conflist", calico[:20]) }, detail: Own + " has, which may be out of date", remedy: "the agent tries again"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, test.files)
			if check := n.Check(); check.GetOk() {
				t.Errorf("before it is installed: %v", check)
			}
			_, err := n.Install(t.Context())
			if test.meddle != nil && err == nil {
				test.meddle(n)
				_, err = n.Install(t.Context())
			}
			check := n.Check()
			if check.GetOk() != test.ok || check.GetWarning() != test.warning || !strings.Contains(check.GetDetail(), test.detail) || !strings.Contains(check.GetRemedy(), test.remedy) {
				t.Errorf("%v, after %v", check, err)
			}
		})
	}
	n := newNode(t, map[string]string{"00-multus.conf": meta})
	n.install(t)
	n.remove(t, "00-multus.conflist")
	n.write(t, "10-calico.conflist", calico)
	n.install(t)
	if check := n.Check(); !check.GetOk() {
		t.Errorf("after a copy can be: %v", check)
	}
}

// TestExclusive: a CNI that renames what is not its own, as Cilium does
// (cni.exclusive), gets the plugin into its own file, and nothing is left.
func TestExclusive(t *testing.T) {
	n := newNode(t, map[string]string{"05-cilium.conflist": calico})
	before := n.files(t)
	stop := n.running(t)
	n.eventually(t, Own, "calico", "heddle-cni")
	own := filepath.Join(n.conf, Own)
	if err := os.Rename(own, own+".cilium_bak"); err != nil {
		t.Fatal(err)
	}
	n.eventually(t, "05-cilium.conflist", "calico", "heddle-cni")
	testenv.Eventually(t, 5*time.Second, "a word about it", func() bool {
		return strings.Contains(n.logged(), "cni.exclusive=false") && strings.Contains(n.logged(), "pods may start without")
	})
	n.write(t, "05-cilium.conflist", kindnet)
	n.eventually(t, "05-cilium.conflist", "ptp", "portmap", "heddle-cni")
	if _, err := os.Lstat(own); err == nil {
		t.Error("the copy is there all the same")
	}
	// Another agent tries again; renamed while none runs.
	n.write(t, "05-cilium.conflist", calico)
	n.eventually(t, "05-cilium.conflist", "calico", "heddle-cni")
	stop()
	n.write(t, Own+".cilium_bak", calico)
	next, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Install(t.Context()); err != nil || next.File() != filepath.Join(n.conf, "05-cilium.conflist") {
		t.Errorf("in %s, %v", next.File(), err)
	}
	n.write(t, Own+".cilium_bak", calico)
	if err := next.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, n.files(t)); diff != "" {
		t.Errorf("uninstalling left (-before +after):\n%s", diff)
	}
}

// TestMeddling: the copy is mended once; a tool that goes on has its way, and the
// plugin is in its file before the copy is gone.
func TestMeddling(t *testing.T) {
	other := strings.Replace(calico, "\r\n\t]", ",{\"type\":\"heddle-cni\"},{\"type\":\"other-mesh\"}]", 1)
	for name, meddle := range map[string]func(t *testing.T, n *node){
		"removes":       func(t *testing.T, n *node) { n.remove(t, Own) },
		"chains itself": func(t *testing.T, n *node) { n.replace(t, Own, other) },
		"takes us out":  func(t *testing.T, n *node) { n.replace(t, Own, calico) },
		"empties":       func(t *testing.T, n *node) { n.write(t, Own, "") },
		"makes it a link": func(t *testing.T, n *node) {
			n.remove(t, Own)
			_ = os.Symlink("10-calico.conflist", filepath.Join(n.conf, Own))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, map[string]string{"10-calico.conflist": calico})
			before := n.files(t)
			n.install(t)
			meddle(t, n)
			if change, err := n.Install(t.Context()); err != nil || change == Unchanged || n.File() != filepath.Join(n.conf, Own) {
				t.Fatalf("%v in %s, %v", change, n.File(), err)
			}
			n.held(t, "after it was mended")
			meddle(t, n)
			if _, err := n.Install(t.Context()); err != nil || n.File() != filepath.Join(n.conf, "10-calico.conflist") {
				t.Fatalf("in %s, %v", n.File(), err)
			}
			n.held(t, "after another tool has had its way")
			if !strings.Contains(n.logged(), "again and again") {
				t.Errorf("the log does not say it:\n%s", n.logged())
			}
			if err := n.Uninstall(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, n.files(t)); diff != "" {
				t.Errorf("uninstalling left (-before +after):\n%s", diff)
			}
		})
	}
}

// TestEarlierVersion: what one that edited in place has left is as it was, in the end.
func TestEarlierVersion(t *testing.T) {
	for name, text := range map[string]string{"10-calico.conflist": calico, "10-br.conf": bridge} {
		n := newNode(t, map[string]string{name: text})
		before := n.files(t)
		n.inPlace()
		n.install(t)
		next, err := New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if change, err := next.Install(t.Context()); err != nil || change != Put || next.File() != filepath.Join(n.conf, Own) {
			t.Errorf("%s: %v in %s, %v", name, change, next.File(), err)
		}
		if _, types := n.chainOf(t); len(types) != 2 || types[1] != "heddle-cni" {
			t.Errorf("%s: chain is %v", name, types)
		}
		if err := next.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, n.files(t)); diff != "" {
			t.Errorf("%s: uninstalling left (-before +after):\n%s", name, diff)
		}
	}
}

// TestRuntimesKeepTheirPods: a runtime (libcni, which containerd and CRI-O call) knows
// pods by the network's name: those of before the copy are deleted through it, those of
// the copy without it, each with the result of its ADD.
func TestRuntimesKeepTheirPods(t *testing.T) {
	n := newNode(t, map[string]string{"10-calico.conflist": calico})
	script := `#!/bin/sh
cat > "$0.$CNI_COMMAND.$CNI_CONTAINERID"
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}'
exit 0
`
	for _, plugin := range []string{"calico", "heddle-cni"} {
		if err := os.WriteFile(filepath.Join(n.bin, plugin), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.cfg.Program = filepath.Join(n.bin, "heddle-cni")
	cache := t.TempDir()
	runtime := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, cache, nil)
	list := func(file string) *libcni.NetworkConfigList {
		t.Helper()
		l, err := libcni.ConfListFromFile(filepath.Join(n.conf, file))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	sandbox := func(id string) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: id, NetNS: "/run/netns/" + id, IfName: "eth0"}
	}
	add := func(l *libcni.NetworkConfigList, id string) {
		t.Helper()
		if _, err := runtime.AddNetworkList(context.Background(), l, sandbox(id)); err != nil {
			t.Fatal(err)
		}
	}
	del := func(l *libcni.NetworkConfigList, id string) {
		t.Helper()
		if err := runtime.DelNetworkList(context.Background(), l, sandbox(id)); err != nil {
			t.Fatal(err)
		}
		var told struct {
			PrevResult struct{ IPs []struct{ Address string } }
		}
		text, err := os.ReadFile(filepath.Join(n.bin, "calico.DEL."+id))
		if err == nil {
			err = json.Unmarshal(text, &told)
		}
		if err != nil || len(told.PrevResult.IPs) != 1 {
			t.Errorf("the CNI's own plugin was told %s of %s, %v", text, id, err)
		}
	}
	theirs := list("10-calico.conflist")
	add(theirs, "before")
	n.install(t)
	ours := list(Own)
	if ours.Name != theirs.Name || ours.CNIVersion != theirs.CNIVersion || len(ours.Plugins) != len(theirs.Plugins)+1 {
		t.Errorf("the copy is of %s, %s, %d plugins", ours.Name, ours.CNIVersion, len(ours.Plugins))
	}
	add(ours, "within")
	if err := runtime.CheckNetworkList(context.Background(), ours, sandbox("before")); err != nil {
		t.Errorf("a pod of before: %v", err)
	}
	del(ours, "before")
	del(theirs, "within")
	left, err := filepath.Glob(filepath.Join(cache, "results", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the runtime still has %v, %v", left, err)
	}
}
