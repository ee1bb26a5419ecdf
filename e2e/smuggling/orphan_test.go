package smuggling

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

var hold = flag.String("hold", "", "start this proxy, say its process, and wait to be killed")

// TestProxiesEndWithUs: a test that is killed leaves no proxy behind.
func TestProxiesEndWithUs(t *testing.T) {
	for _, p := range proxies() {
		switch {
		case p.start == nil:
		case *hold == p.name:
			fmt.Printf("\npid %d\n", p.run(t, []*lane{newLane(t, false)}))
			select {}
		case *hold == "":
			t.Run(p.name, func(t *testing.T) { testKilled(t, p.name) })
		}
	}
}

func testKilled(t *testing.T, name string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxiesEndWithUs$", "-hold="+name)
	cmd.Env = append(cmd.Environ(), "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "pid %d", &pid) // other lines are not ours
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if pid == 0 {
		t.Fatal("it has started no proxy")
	}
	defer func() {
		if t.Failed() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it is left behind
		}
	}()
	testenv.Eventually(t, 5*time.Second, name+" ends", func() bool { return !alive(pid) })
}

// alive says that a process runs: one that nobody waits for has ended too.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	var id int
	var name string
	var state string
	_, err = fmt.Sscan(string(stat), &id, &name, &state)
	return err == nil && state != "Z" && state != "X"
}
