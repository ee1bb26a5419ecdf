package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// What cluster CNIs write: kindnet's, Calico's (tabs, a link's target), and a
// single configuration of the bridge plugin.
const (
	kindnet = `
{
  "cniVersion": "0.3.1",
  "name": "kindnet",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}
    },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }
  ]
}
`
	calico  = "{\r\n\t\"plugins\":[{\"type\":\"calico\",\"x\":[1,2,{\"plugins\":[]}]}\r\n\t]\t,\"name\":\"k8s-pod-network\",\"cniVersion\":\"1.1.0\"}"
	bridge  = "{\n \"cniVersion\": \"1.0.0\", \"name\": \"br\", \"type\": \"bridge\"\n}\n\n"
	program = "#!/bin/true\n"
)

// meta calls whatever comes first in the folder: it gets no copy.
const meta = `{"cniVersion":"1.0.0","name":"multus-cni-network","type":"multus-shim"}`

// node is a folder like a node's, and an Installer for it.
type node struct {
	conf, bin string
	*Installer
	log     testenv.Log
	changes atomic.Int64 // that Run has told of
}

func (n *node) logged() string { return n.log.String() }

// linger is how long a copy outlives its original in tests.
const linger = 300 * time.Millisecond

func newNode(t *testing.T, files map[string]string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{conf: filepath.Join(dir, "net.d"), bin: filepath.Join(dir, "bin")}
	for _, d := range []string{n.conf, n.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		n.write(t, name, text)
	}
	source := filepath.Join(dir, "heddle-cni")
	if err := os.WriteFile(source, []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	n.Installer, err = New(Config{
		ConfDir: n.conf, BinDir: n.bin, Program: source, Socket: "/run/heddle/cni.sock", List: "/var/lib/heddle/cni/namespaces.json",
		Pass: []string{"heddle-system", "kube-system"}, Every: time.Hour, Linger: linger, MinPause: 10 * time.Millisecond, MaxPause: 200 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(&n.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// write writes as other tools do: some in place, which is the harder case.
func (n *node) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.conf, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// files returns every file of the node, with its mode.
func (n *node) files(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(filepath.Dir(n.conf), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		rel, _ := filepath.Rel(filepath.Dir(n.conf), path)
		all[rel] = fmt.Sprintf("%v %q", info.Mode(), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// chainOf returns the plugins of the configuration that a runtime uses.
func (n *node) chainOf(t *testing.T) (file string, types []string) {
	t.Helper()
	paths, err := configPaths(n.conf)
	if err != nil {
		return "", nil
	}
	for _, path := range paths {
		if config, err := readConfig(path); err == nil && config.check() == nil {
			return config.name, config.types()
		}
	}
	return "", nil
}

func (n *node) install(t *testing.T) bool {
	t.Helper()
	change, err := n.Install(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return change == Put
}

// inPlace has the cluster's own file edited, as where another tool does not let the
// copy be.
func (n *node) inPlace() { n.copied.inPlace = inPlace{"the test says so", "end the test"} }

// TestUninstallLeavesNothing installs and uninstalls over every kind of folder:
// the difference must be empty, byte for byte.
func TestUninstallLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		file  string
		types []string
	}{
		"list":            {map[string]string{"10-kindnet.conflist": kindnet}, Own, []string{"ptp", "portmap", "heddle-cni"}},
		"list in a line":  {map[string]string{"10-calico.conflist": calico}, Own, []string{"calico", "heddle-cni"}},
		"single":          {map[string]string{"10-br.conf": bridge}, Own, []string{"bridge", "heddle-cni"}},
		"single, by json": {map[string]string{"10-br.json": bridge}, Own, []string{"bridge", "heddle-cni"}},
		"several":         {map[string]string{"87-podman.conflist": kindnet, "00-cilium.conflist": calico, "10-br.conf": bridge, "README": "x"}, Own, []string{"calico", "heddle-cni"}},
		"spoiled first":   {map[string]string{"00-half.conflist": kindnet[:90], "10-kindnet.conflist": kindnet}, Own, []string{"ptp", "portmap", "heddle-cni"}},
		"before any":      {map[string]string{"-kindnet.conflist": kindnet}, "-kindnet.conflist", []string{"ptp", "portmap", "heddle-cni"}},
		"meta":            {map[string]string{"00-multus.conf": meta, "10-calico.conflist": calico}, "00-multus.conflist", []string{"multus-shim", "heddle-cni"}},
		"cilium chained": {map[string]string{"05-cilium.conflist": strings.Replace(calico, "\r\n\t]", ",{\"type\":\"cilium-cni\"}]", 1)}, "05-cilium.conflist",
			[]string{"calico", "cilium-cni", "heddle-cni"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, c.files)
			before := n.files(t)
			if !n.install(t) {
				t.Error("nothing was changed")
			}
			file, types := n.chainOf(t)
			if file != c.file || !slices.Equal(types, c.types) {
				t.Errorf("chain of %s is %v, want %v in %s", file, types, c.types, c.file)
			}
			if n.File() != filepath.Join(n.conf, c.file) || n.Problem() != nil {
				t.Errorf("in %q, problem %v", n.File(), n.Problem())
			}
			if got, err := os.ReadFile(filepath.Join(n.bin, "heddle-cni")); err != nil || string(got) != program {
				t.Errorf("program: %q, %v", got, err)
			}
			installed := n.files(t)
			if c.file == Own {
				for name, was := range before {
					if installed[name] != was {
						t.Errorf("%s was %s, and is %s", name, was, installed[name])
					}
				}
			}
			if n.install(t) {
				t.Error("changed again what is in place")
			}
			if diff := cmp.Diff(installed, n.files(t)); diff != "" {
				t.Error(diff)
			}
			for range 2 { // it may be repeated
				if err := n.Uninstall(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, n.files(t)); diff != "" {
					t.Errorf("uninstalling left (-before +after):\n%s", diff)
				}
			}
			if n.Problem() == nil {
				t.Error("no problem seen in being uninstalled")
			}
		})
	}
}

// TestLinkAndModeStay: of the cluster's own file, and the copy has them, too: what is
// in it may be secret.
func TestLinkAndModeStay(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		n := newNode(t, nil)
		target := filepath.Join(filepath.Dir(n.conf), "shared.conflist")
		link, holds := filepath.Join(n.conf, "10-link.conflist"), filepath.Join(n.conf, Own)
		for _, err := range []error{os.WriteFile(target, []byte(kindnet), 0o600), os.Chown(target, 12, 34), os.Symlink(target, link)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if inPlace {
			n.inPlace()
			holds = target
		}
		n.install(t)
		info, err := os.Lstat(link)
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			t.Errorf("the link is %v, %v", info.Mode(), err)
		}
		var st unix.Stat_t
		if err := unix.Stat(holds, &st); err != nil || st.Uid != 12 || st.Gid != 34 || st.Mode&0o777 != 0o600 {
			t.Errorf("owner and mode of %s are %d:%d %o, %v", holds, st.Uid, st.Gid, st.Mode, err)
		}
		if _, types := n.chainOf(t); !slices.Contains(types, "heddle-cni") {
			t.Errorf("chain is %v", types)
		}
	}
}

func TestRefusesWhatCannotBeChained(t *testing.T) {
	for name, c := range map[string]struct{ file, text, says string }{
		"old version":   {"10-a.conflist", strings.Replace(kindnet, "0.3.1", "0.2.0", 1), "raise it to 0.3.1"},
		"no version":    {"10-a.conf", `{"name":"x","type":"bridge"}`, "raise it to 0.3.1"},
		"newer version": {"10-a.conflist", strings.Replace(kindnet, "0.3.1", "1.2.0", 1), "upgrade Heddle"},
		"spoiled":       {"10-a.conflist", kindnet[:100], "write it anew"},
		"no plugins":    {"10-a.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`, "there is none"},
		"nothing":       {"README", "", "waiting for its file"},
	} {
		n := newNode(t, map[string]string{c.file: c.text})
		_, err := n.Install(context.Background())
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), n.conf) {
			t.Errorf("%s: %v, want %q and the file", name, err, c.says)
		}
		if got, _ := os.ReadFile(filepath.Join(n.conf, c.file)); string(got) != c.text {
			t.Errorf("%s: %s was changed", name, c.file)
		}
	}
}

// running runs the Installer until the test ends, or stop is called.
func (n *node) running(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, func() { n.changes.Add(1) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func (n *node) eventually(t *testing.T, file string, want ...string) {
	t.Helper()
	testenv.Eventually(t, 5*time.Second, fmt.Sprintf("%s with %v", file, want), func() bool {
		got, types := n.chainOf(t)
		return got == file && slices.Equal(types, want)
	})
}

func TestConfigurationAppearsLate(t *testing.T) {
	n := newNode(t, nil)
	n.running(t)
	testenv.Eventually(t, 5*time.Second, "a word about it", func() bool { return strings.Contains(n.logged(), "waiting for its file") })
	n.write(t, "10-kindnet.conflist", kindnet)
	n.eventually(t, Own, "ptp", "portmap", "heddle-cni")
	// Another CNI is installed, which comes first from now on.
	n.write(t, "05-cilium.conflist", calico)
	n.eventually(t, Own, "calico", "heddle-cni")
	n.write(t, "00-br.conf", bridge)
	n.eventually(t, Own, "bridge", "heddle-cni")
	// The tool of the single one writes it anew.
	n.write(t, "00-br.conf", strings.Replace(bridge, "br", "br2", 1))
	testenv.Eventually(t, 5*time.Second, "the copy follows", func() bool {
		text, _ := os.ReadFile(filepath.Join(n.conf, Own))
		return strings.Contains(string(text), "br2")
	})
	// Later a tool comes that calls whatever comes first.
	n.write(t, "00-amultus.conf", meta)
	n.eventually(t, "00-amultus.conflist", "multus-shim", "heddle-cni")
	n.gone(t, "the copy is not called by what it calls")
}

// gone waits until there is no copy.
func (n *node) gone(t *testing.T, why string) {
	t.Helper()
	testenv.Eventually(t, 5*time.Second, why, func() bool {
		_, err := os.Lstat(filepath.Join(n.conf, Own))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// TestPutBack where the cluster's own file has the plugin.
func TestPutBack(t *testing.T) {
	n := newNode(t, map[string]string{"10-calico.conflist": calico})
	n.inPlace()
	n.running(t)
	n.eventually(t, "10-calico.conflist", "calico", "heddle-cni")
	n.write(t, "10-calico.conflist", kindnet)
	n.eventually(t, "10-calico.conflist", "ptp", "portmap", "heddle-cni")
	// Its line is written behind the file.
	for _, want := range []string{"another tool has taken heddle-cni out", filepath.Join(n.conf, "10-calico.conflist"), "ptp,portmap", "cni.exclusive"} {
		testenv.Eventually(t, 5*time.Second, fmt.Sprintf("a log that names %q", want), func() bool { return strings.Contains(n.logged(), want) })
	}
	// The program belongs to it.
	if err := os.Remove(filepath.Join(n.bin, "heddle-cni")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "the program is back", func() bool {
		_, err := os.Stat(filepath.Join(n.bin, "heddle-cni"))
		return err == nil
	})
	// A folder that is made anew is another one to the kernel.
	if err := os.RemoveAll(n.conf); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "the loss is seen", func() bool { return n.Problem() != nil })
	if err := os.Mkdir(n.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write(t, "10-calico.conflist", calico)
	n.eventually(t, "10-calico.conflist", "calico", "heddle-cni")
}

// TestFightIsSlow: with a tool that takes the plugin out at once, the file is
// written ever less often.
func TestFightIsSlow(t *testing.T) {
	n := newNode(t, map[string]string{"10-calico.conflist": calico})
	n.inPlace()
	n.running(t)
	fought := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, types := n.chainOf(t); slices.Contains(types, "heddle-cni") {
			n.write(t, "10-calico.conflist", calico)
			fought++
		}
	}
	// 10 ms, doubling to 200 ms: five to get there, at most ten a second later on.
	if fought < 3 || fought > 20 {
		t.Errorf("put back %d times in two seconds", fought)
	}
	n.eventually(t, "10-calico.conflist", "calico", "heddle-cni")
}

// onDisk gives the node a file system of its own.
func onDisk(t *testing.T, n *node, options string) {
	t.Helper()
	testenv.NeedRoot(t)
	if err := unix.Mount("heddle-test", n.conf, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.conf, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n.write(t, "10-kindnet.conflist", kindnet)
}

func TestReadOnly(t *testing.T) {
	n := newNode(t, nil)
	onDisk(t, n, "")
	if err := unix.Mount("", n.conf, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	n.running(t)
	testenv.Eventually(t, 5*time.Second, "a word about it", func() bool {
		return strings.Contains(n.logged(), "mount the node's folder into the agent for writing")
	})
	if n.Problem() == nil {
		t.Error("no problem seen")
	}
	if err := unix.Mount("", n.conf, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	n.eventually(t, Own, "ptp", "portmap", "heddle-cni")
	if strings.Count(n.logged(), "mount the node's folder") != 1 {
		t.Errorf("said more than once:\n%s", n.logged())
	}
}

func TestFullDisk(t *testing.T) {
	n := newNode(t, nil)
	onDisk(t, n, "size=16k")
	if err := os.WriteFile(filepath.Join(n.conf, "filler"), make([]byte, 12<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	n.running(t)
	testenv.Eventually(t, 5*time.Second, "a word about it", func() bool { return strings.Contains(n.logged(), "make room") })
	if text, err := os.ReadFile(filepath.Join(n.conf, "10-kindnet.conflist")); err != nil || string(text) != kindnet {
		t.Errorf("what was there did not stay: %q, %v", text, err)
	}
	if left, _ := filepath.Glob(filepath.Join(n.conf, ".heddle*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	free := func() {
		t.Helper()
		if err := os.Remove(filepath.Join(n.conf, "filler")); err != nil {
			t.Fatal(err)
		}
	}
	free()
	n.eventually(t, Own, "ptp", "portmap", "heddle-cni")
	// The next time, the copy of before holds new pods back.
	n.write(t, "10-kindnet.conflist", strings.Replace(kindnet, "ptp", "pt2", 1))
	n.eventually(t, Own, "pt2", "portmap", "heddle-cni")
	if err := os.WriteFile(filepath.Join(n.conf, "filler"), make([]byte, 8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	n.write(t, "10-kindnet.conflist", kindnet)
	testenv.Eventually(t, 5*time.Second, "a word about it", func() bool { return strings.Contains(n.logged(), "new pods are held back") })
	if _, types := n.chainOf(t); n.Problem() == nil || !slices.Contains(types, "heddle-cni") {
		t.Errorf("with a full disk the chain is %v, problem %v", types, n.Problem())
	}
	free()
	n.eventually(t, Own, "ptp", "portmap", "heddle-cni")
}

func FuzzSplice(f *testing.F) {
	for _, text := range []string{kindnet, calico, bridge, `{"plugins":[{"type":"heddle-cni"},{"type":"x"}]}`} {
		f.Add([]byte(text))
	}
	plugin := []byte(`{"type":"heddle-cni","x":"]}"}`)
	f.Fuzz(func(t *testing.T, text []byte) {
		with, err := withPlugin(text, plugin)
		if err != nil {
			return
		}
		without, was, err := withoutPlugin(text)
		if err != nil {
			t.Fatalf("could be put in, not taken out: %v", err)
		}
		if !was && !bytes.Equal(without, text) {
			t.Fatalf("%q was changed to %q", text, without)
		}
		back, was, err := withoutPlugin(with)
		if err != nil || !was || !bytes.Equal(back, without) {
			t.Fatalf("%q, put in %q, taken out %q (%v)", without, with, back, err)
		}
		again, err := withPlugin(with, plugin)
		if err != nil || !bytes.Equal(again, with) {
			t.Fatalf("put in twice: %q, then %q (%v)", with, again, err)
		}
		l, err := parseList(with)
		if err != nil || l.types[len(l.types)-1] != "heddle-cni" {
			t.Fatalf("%q: not last: %v", with, err)
		}
	})
}

// TestNothingIsLostOfAnotherToolsWriting: what another tool wrote last is what
// counts in the end, however close to the plugin's it wrote.
func TestNothingIsLostOfAnotherToolsWriting(t *testing.T) {
	for name, text := range map[string]string{"10-calico.conflist": calico, "00-br.conf": bridge} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, map[string]string{name: text})
			n.inPlace()
			version := func(i int) string {
				return regexp.MustCompile(`"name": *"`).ReplaceAllString(text, fmt.Sprintf(`"name":"v%d-`, i))
			}
			if version(1) == text {
				t.Fatal("the configuration has no name to change")
			}
			list := strings.TrimSuffix(name, filepath.Ext(name)) + ".conflist"
			theirs := func(i int) {
				n.write(t, ".theirs", version(i))
				if err := os.Rename(filepath.Join(n.conf, ".theirs"), filepath.Join(n.conf, name)); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			n.install(t)
			takes := time.Since(began)
			for i := range 200 {
				theirs(0)
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_, _ = n.Install(t.Context()) // what came of it is in the file
				}()
				time.Sleep(takes * time.Duration(i%20) / 20)
				theirs(i)
				<-ended
				n.install(t)
				got, err := os.ReadFile(filepath.Join(n.conf, list))
				if err != nil || !strings.Contains(string(got), fmt.Sprintf("v%d-", i)) || !strings.Contains(string(got), "heddle-cni") {
					t.Fatalf("after version %d: %v\n%s", i, err, got)
				}
			}
		})
	}
}
