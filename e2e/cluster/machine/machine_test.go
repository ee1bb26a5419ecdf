package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestMain is pid 1 of the tests' machines, too: the same binary, as machined is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		parts := map[string]func() error{
			"enter": func() error { return Enter(os.Args[2]) },
			"init":  func() error { return Init(context.Background(), os.Args[2]) },
			"join":  func() error { return Join(os.Args[2], os.Args[3:]) },
		}
		if part, ok := parts[os.Args[1]]; ok {
			if err := part(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	testenv.Main(m)
}

// newMachine is a machine that is not started yet, and goes with the test.
func newMachine(t *testing.T) *Machine {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	share := filepath.Join(dir, "share")
	if err := os.MkdirAll(share, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(share, "program"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	name := "ht-machine-" + filepath.Base(filepath.Dir(dir))[:8] + fmt.Sprint(os.Getpid())
	m := &Machine{Binary: binary, Spec: Spec{
		Name: "box", Dir: filepath.Join(dir, "state"), Cgroup: name + "/box", Netns: name,
		Files:     map[string]string{"/etc/box.conf": "first\n"},
		BootFiles: map[string]string{"/etc/box.d/boot.conf": "boot\n"},
		Folders:   []string{"/run/made"},
		Disks:     map[string]string{"/var/lib/disk": "disk"},
		Shares:    map[string]string{"/run/share": share},
		Copies:    map[string]string{"/opt/bin/program": "/run/share/program"},
		Masks:     map[string]string{"kernel/panic": "77"},
		Sysctls:   map[string]string{"net/ipv4/ip_forward": "1", "net/no/such": "1"},
		Programs: []Program{
			{Name: "late", After: "/run/early", Args: []string{"sh", "-c", "echo late; exec sleep 1000"}},
			{Name: "early", Args: []string{"sh", "-c", "echo early; touch /run/early; exec sleep 1000"}},
		},
	}}
	t.Cleanup(func() {
		if err := m.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func start(t *testing.T, m *Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// run runs a shell line in the machine.
func run(t *testing.T, m *Machine, line string) string {
	t.Helper()
	command, err := m.Command(t.Context(), "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := waitFor(t.Context(), 20*time.Second, ok); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestMachineHasItsOwnWorld(t *testing.T) {
	m := newMachine(t)
	start(t, m)
	for line, want := range map[string]string{
		"hostname":                                                        "box",
		"cat /etc/box.d/boot.conf":                                        "boot",
		"cat /etc/box.conf":                                               "first",
		"ls -d /run/made /var/lib/disk":                                   "/run/made\n/var/lib/disk",
		"test -x /opt/bin/program; echo $?":                               "0",
		"cat /proc/sys/kernel/panic":                                      "77",
		"cat /proc/sys/net/ipv4/ip_forward":                               "1",
		"ls /sys/class/net":                                               "lo",
		"cat /sys/class/net/lo/operstate":                                 "unknown", // what loopback says when it is up
		"stat -f -c %T /sys/fs/bpf":                                       "bpf_fs",
		"touch /usr/x /bin/x 2>/dev/null || echo read-only":               "read-only",
		"touch /run/share/x 2>/dev/null || echo read-only":                "read-only",
		"cat /proc/self/cgroup | grep -v :/$ | grep -v :/init$; echo end": "end",
		"findmnt -n -o PROPAGATION /":                                     "shared",
	} {
		if got := run(t, m, line); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
	run(t, m, "echo inside > /etc/box-only; echo x > /var/box-only; echo x > /opt/box-only; echo x > /tmp/box-only; echo 5 > /proc/sys/kernel/panic")
	for _, path := range []string{"/etc/box-only", "/var/box-only", "/opt/box-only", "/tmp/box-only", "/etc/box.conf", "/run/made"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s of the machine is the host's, too", path)
		}
	}
	if data, err := os.ReadFile("/proc/sys/kernel/panic"); err != nil || strings.TrimSpace(string(data)) == "5" {
		t.Errorf("the machine wrote the host's kernel/panic: %s %v", data, err)
	}
	err := m.InNetns(func() error {
		links, err := net.Interfaces()
		if err == nil && len(links) != 1 {
			err = fmt.Errorf("%d links", len(links))
		}
		return err
	})
	if err != nil {
		t.Errorf("InNetns: %v", err)
	}
}

func TestBootIsARealBoot(t *testing.T) {
	m := newMachine(t)
	start(t, m)
	before, err := m.BootID()
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "cat /proc/sys/kernel/random/boot_id"); got != before {
		t.Errorf("boot id %s in the machine, %s outside", got, before)
	}
	run(t, m, "echo changed > /etc/box.conf; echo changed > /etc/box.d/boot.conf; echo x > /etc/box.d/other; echo x > /run/gone; mkdir /sys/fs/bpf/pinned; echo x > /var/lib/disk/kept")
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.Running() {
		t.Fatal("it runs after Stop")
	}
	if _, err := m.Command(t.Context(), "true"); err == nil {
		t.Error("a command runs in a machine that is stopped")
	}
	start(t, m)
	after, err := m.BootID()
	if err != nil {
		t.Fatal(err)
	}
	if before == after || run(t, m, "cat /proc/sys/kernel/random/boot_id") != after {
		t.Errorf("boot id %s, then %s", before, after)
	}
	if got := run(t, m, "cat /etc/box.conf /etc/box.d/boot.conf /etc/box.d/other; cat /var/lib/disk/kept; ls /sys/fs/bpf | grep pinned; ls /run | grep gone; echo end"); got != "changed\nboot\nx\nx\nend" {
		t.Errorf("after the boot: %q", got)
	}
}

func TestProgramsStartInOrderAndAgain(t *testing.T) {
	m := newMachine(t)
	start(t, m)
	running := func(starts int) func() bool {
		return func() bool {
			programs, err := m.Programs()
			return err == nil && len(programs) == 2 && programs[0].PID > 0 && programs[0].Starts == starts && programs[1].PID > 0
		}
	}
	eventually(t, "both programs run", running(1))
	late, err := os.ReadFile(m.Log("late"))
	if err != nil || string(late) != "late\n" {
		t.Errorf("the log of late: %q %v", late, err)
	}
	programs, err := m.Programs()
	if err != nil {
		t.Fatal(err)
	}
	if programs[0].PID < programs[1].PID {
		t.Errorf("late (pid %d) started before early (pid %d)", programs[0].PID, programs[1].PID)
	}
	run(t, m, fmt.Sprintf("kill -9 %d", programs[0].PID))
	eventually(t, "late is started again", running(2))
	programs, err = m.Programs()
	if err != nil {
		t.Fatal(err)
	}
	if programs[0].LastExit != "signal: killed" || programs[1].Starts != 1 {
		t.Errorf("programs: %+v", programs)
	}
	// An orphan is the machine's to reap.
	run(t, m, "(sleep 0.1 & ) ; true")
	eventually(t, "no zombie is left", func() bool {
		return run(t, m, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true") == "0"
	})
}

func TestForwardLeadsIntoTheMachine(t *testing.T) {
	m := newMachine(t)
	port, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	number := port.Addr().(*net.TCPAddr).Port
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	m.Spec.Forwards = []Forward{{HostPort: number, Target: "127.0.0.1:9000"}}
	start(t, m)
	var server net.Listener
	if err := m.InNetns(func() (err error) {
		server, err = net.Listen("tcp4", "127.0.0.1:9000")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	echoed := make(chan error, 1)
	go func() {
		conn, err := server.Accept()
		if err != nil {
			echoed <- err
			return
		}
		data, err := io.ReadAll(conn) // until the client's half-close comes through
		if err == nil {
			_, err = conn.Write(append([]byte("echo "), data...))
		}
		echoed <- errors.Join(err, conn.Close(), server.Close())
	}()
	client, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", number))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(client)
	if err := errors.Join(err, client.Close(), <-echoed); err != nil {
		t.Fatal(err)
	}
	if string(answer) != "echo hello" {
		t.Errorf("got %q", answer)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	m := newMachine(t)
	start(t, m)
	inside, err := m.Command(t.Context(), "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := inside.Wait(); err == nil {
		t.Error("a command outlived its machine")
	}
	if _, err := os.Stat(m.NetnsPath()); err == nil {
		t.Errorf("%s is left", m.NetnsPath())
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Dir(m.Spec.Cgroup))
	if err != nil || len(cgroups) > 0 {
		t.Errorf("cgroups are left: %v %v", cgroups, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), m.Spec.Dir) || strings.Contains(string(mounts), m.Spec.Netns) {
		t.Errorf("mounts are left (%v)", err)
	}
	if _, err := os.Stat(m.Spec.Dir); err == nil {
		t.Errorf("%s is left", m.Spec.Dir)
	}
}

func TestNamesInUseAreNotTakenOver(t *testing.T) {
	m := newMachine(t)
	if err := m.CheckFree(); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	elsewhere := &Machine{Binary: m.Binary, Spec: m.Spec}
	elsewhere.Spec.Dir = t.TempDir()
	if err := elsewhere.CheckFree(); err == nil || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("got %v", err)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*Machine){
		"which machines have their own of": func(m *Machine) { m.Spec.Dir = "/var/lib/heddle-machine-test" },
		"not absolute":                     func(m *Machine) { m.Spec.Dir = "state" },
		"mask /proc/sys/no/such":           func(m *Machine) { m.Spec.Masks = map[string]string{"no/such": "1"} },
		"no such file or directory":        func(m *Machine) { m.Spec.Copies = map[string]string{"/opt/x": "/no/such/file"} },
		"open port":                        func(m *Machine) { m.Spec.Forwards = []Forward{{HostPort: 99999, Target: "127.0.0.1:1"}} },
	} {
		m := newMachine(t)
		change(m)
		err := m.Start(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
		if m.Running() {
			t.Errorf("%s: the machine runs", want)
		}
		m.Spec.Dir = t.TempDir() // Remove must not touch the others
	}
}

func TestParseHierarchies(t *testing.T) {
	hybrid := parseHierarchies(`proc /proc proc rw 0 0
tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,release_agent=/lib/agent,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0
cgroup /elsewhere cgroup rw,cpuset 0 0
`)
	want := []hierarchy{
		{dir: "/sys/fs/cgroup/cpu,cpuacct", options: "cpu,cpuacct"},
		{dir: "/sys/fs/cgroup/systemd", options: "none,name=systemd"},
		{dir: "/sys/fs/cgroup/unified", unified: true},
	}
	if diff := cmp.Diff(want, hybrid, cmp.AllowUnexported(hierarchy{})); diff != "" {
		t.Error(diff)
	}
	if pure(hybrid) {
		t.Error("a hybrid layout counts as pure")
	}
	if !pure(parseHierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")) {
		t.Error("cgroup v2 alone counts as hybrid")
	}
}
