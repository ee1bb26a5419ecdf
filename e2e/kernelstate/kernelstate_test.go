package kernelstate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// cgroupMount is where cgroup v2 is.
func cgroupMount(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if before, after, _ := strings.Cut(line, " - "); strings.HasPrefix(after, "cgroup2 ") {
			return strings.Fields(before)[4]
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}

// bpffs mounts a BPF file system of the test's own, and returns a folder in it.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "pins")
}

// TestKernelState: a map and a link are seen by their pins and in their cgroup, are still
// there when only the pins are gone, and are not when nobody has them.
func TestKernelState(t *testing.T) {
	testenv.NeedRoot(t)
	pins := bpffs(t)
	group := filepath.Join(cgroupMount(t), fmt.Sprintf("heddle-kernelstate-%d", os.Getpid()))
	for _, dir := range []string{filepath.Join(pins, "inner"), filepath.Join(group, "agent")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, dir := range []string{filepath.Join(group, "agent"), group} {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInetSockCreate, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: filepath.Join(group, "agent"), Attach: ebpf.AttachCGroupInetSockCreate, Program: program})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, object := range map[string]interface{ Pin(string) error }{"inner/map": m, "link": l} {
		if err := object.Pin(filepath.Join(pins, name)); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := Pinned(pins)
	if err != nil || len(objects) != 3 || !strings.HasSuffix(fmt.Sprint(objects), "pinned at link]") || !strings.Contains(fmt.Sprint(objects), "pinned at inner/map") {
		t.Fatalf("pinned are %v, %v", objects, err)
	}
	if got, err := CgroupPrograms(group); err != nil || fmt.Sprint(got) != "[agent: 1 programs at CGroupInetSockCreate]" {
		t.Errorf("the cgroup has %q, %v", got, err)
	}
	if err := os.RemoveAll(pins); err != nil {
		t.Fatal(err)
	}
	if left, err := Alive(objects); err != nil || len(left) != 3 {
		t.Errorf("held by this process are %v, %v", left, err)
	}
	for _, object := range []interface{ Close() error }{l, program, m} {
		if err := object.Close(); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, 10*time.Second, "the kernel has none of them", func() bool {
		left, err := Alive(objects)
		return err == nil && len(left) == 0
	})
	if got, err := CgroupPrograms(group); err != nil || len(got) > 0 {
		t.Errorf("the cgroup has %q, %v", got, err)
	}
	if none, err := Pinned(pins); err != nil || len(none) > 0 {
		t.Errorf("a folder that is gone has %v, %v", none, err)
	}
	if _, err := Alive([]Object{{Kind: "x"}}); err == nil {
		t.Error("a kind of nothing was looked for")
	}
	if _, err := Pinned(t.TempDir()); err == nil {
		t.Error("another file system was read")
	}
}
