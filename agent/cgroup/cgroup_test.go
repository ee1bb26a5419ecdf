package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// roleCgroup is the argument of a child process that moves itself.
const roleCgroup = "cgroup-test-child"

// roleView is that of one which says where it sees itself.
const roleView = "cgroup-test-view"

func TestMain(m *testing.M) {
	if os.Args[len(os.Args)-1] == roleView {
		_, folder, err := Of(os.Getpid())
		fmt.Println(folder, err)
		os.Exit(0)
	}
	if os.Args[len(os.Args)-1] != roleCgroup {
		testenv.Main(m)
	}
	if err := tryCgroup(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// tryCgroup is what the child process of TestEnterCgroup does.
func tryCgroup() error {
	own, err := Enter("test-child", "")
	if err != nil {
		return err
	}
	now, err := ownCgroup("/proc/self/cgroup")
	if err != nil {
		return err
	}
	again, err := Enter("test-child", "")
	if err != nil {
		return err
	}
	given, err := Enter("", own.Path)
	if err != nil {
		return err
	}
	// Another process of the agent's, for as long as it is named.
	former := exec.Command("sleep", "60")
	if err := former.Start(); err != nil {
		return err
	}
	shared, err := Enter("test-child", "", former.Process.Pid)
	if err == nil && (shared.Path != own.Path || shared.parent != "") {
		err = fmt.Errorf("beside process %d in %s, moved from %q", former.Process.Pid, shared.Path, shared.parent)
	}
	if _, refused := Enter("", own.Path); err == nil && refused == nil {
		err = errors.New("a cgroup with another process in it was taken")
	}
	_ = former.Process.Kill() // it ends by itself otherwise
	_ = former.Wait()         // with the signal's status
	if err != nil {
		return err
	}
	fmt.Println(own.Path, now, again.Path == own.Path && again.parent == "", given.Path)
	if err := own.Leave(); err != nil {
		return err
	}
	if _, err := os.Stat(own.Path); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is still there: %w", own.Path, err)
	}
	return nil
}

func TestEnterCgroup(t *testing.T) {
	mount, _, err := Mount()
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	child := exec.Command("/proc/self/exe", roleCgroup)
	child.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(root.Fd())}
	out, err := child.CombinedOutput()
	want := fmt.Sprintf("%s/heddle-agent-test-child /heddle-agent-test-child true %[1]s/heddle-agent-test-child\n", mount)
	if err != nil || string(out) != want {
		t.Errorf("child in the root cgroup: %v\n%s\nwant %s", err, out, want)
	}
}

// TestOwnNamespace: in a cgroup namespace of its own, as containers have, a process
// finds its folder under a mount of the machine's, as a volume of the host shows it.
func TestOwnNamespace(t *testing.T) {
	mount, _, err := Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(mount, "heddle-test-view")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		testenv.Eventually(t, 5*time.Second, dir+" is removed", func() bool { return os.Remove(dir) == nil })
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell is pid 1 of a machine; the child's namespace begins at its cgroup.
	script := fmt.Sprintf("echo 0 >%s/cgroup.procs && cat /proc/self/cgroup | grep ^0:: && unshare --cgroup sh -c 'grep ^0:: /proc/self/cgroup; %s %s'", dir, self, roleView)
	machine := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", "("+script+"); exit 0")
	out, err := machine.CombinedOutput()
	if want := "0::/heddle-test-view\n0::/\n" + dir + " <nil>\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

func TestEnterCgroupRefuses(t *testing.T) {
	mount, _, err := Mount()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		mount:       "must hold the agent",
		t.TempDir(): "give the folder of a cgroup v2",
	} {
		if _, err := Enter("x", path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("cgroup %s: error %v, want one with %q", path, err, want)
		}
	}
}

func TestCgroup2Mount(t *testing.T) {
	for name, c := range map[string]struct{ text, mount, root, refusal string }{
		"hybrid": {
			text:  "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n",
			mount: "/sys/fs/cgroup/unified", root: "/",
		},
		"unified": {text: "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", mount: "/sys/fs/cgroup", root: "/"},
		"bind":    {text: `30 23 0:26 /kube\040pods/x /c\134g rw - cgroup2 none rw`, mount: `/c\g`, root: "/kube pods/x"},
		"none":    {text: "31 23 0:28 / / rw - ext4 /dev/vda rw\nshort - cgroup2 \n", refusal: "cgroup v2 is not mounted"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "mountinfo")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			mount, root, err := cgroup2Mount(file)
			if c.refusal != "" {
				if err == nil || !strings.Contains(err.Error(), c.refusal) {
					t.Errorf("error %v, want one with %q", err, c.refusal)
				}
				return
			}
			if err != nil || mount != c.mount || root != c.root {
				t.Errorf("got %q %q %v, want %q %q", mount, root, err, c.mount, c.root)
			}
		})
	}
}
