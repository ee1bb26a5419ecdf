package agent_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestFullDisk: an agent whose state directory has no room says so, applies what
// comes all the same, starts again, and has it on disk as soon as there is room.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	n, state := w.n1, filepath.Join(w.dir, "n1", "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, 0); err != nil {
			t.Error(err)
		}
	})
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	saved := filepath.Join(state, "last-good")
	testenv.Eventually(t, 10*time.Second, "the configuration is on disk", func() bool { _, err := os.Stat(saved); return err == nil })

	room := fillUp(t, state)
	w.write("late.yaml", `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: late}
spec:
  selector: {app: db}
  clusterIPs: ["10.96.0.4"]
  ports: [{port: 70, targetPort: 7001}]
`)
	const late = "10.96.0.4:70"
	full := func() bool {
		return strings.Contains(n.failing(t, "last good configuration"), "no space left on device")
	}
	testenv.Eventually(t, 10*time.Second, "it says that the disk is full", full)
	w.exchange(t, w.pods["web"], late)
	if err := n.end(syscall.SIGKILL); err == nil {
		t.Error("killed, and ended well")
	}
	n.start()
	n.await("enrolled")
	w.reaches(t, "web", late) // what is on disk does not know it
	testenv.Eventually(t, 10*time.Second, "it says that the disk is full still", full)
	if left, err := filepath.Glob(filepath.Join(state, ".last-good.*")); err != nil || len(left) > 0 {
		t.Errorf("left behind on a full disk: %v, %v", left, err)
	}

	room()
	testenv.Eventually(t, 10*time.Second, "nothing is wrong any more", func() bool { return n.failing(t, "last good configuration") == "" })
	w.stopOperator()
	if err := n.end(syscall.SIGKILL); err == nil {
		t.Error("killed, and ended well")
	}
	n.start()
	n.await("enrolled")
	w.exchange(t, w.pods["web"], late)
}

// fillUp takes all room of a file system, until the function that it returns is
// called.
func fillUp(t *testing.T, dir string) (room func()) {
	t.Helper()
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := filler.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(filler.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// failing is what a check of the agent says; "" when it is well.
func (n *node) failing(t *testing.T, check string) (detail string) {
	t.Helper()
	err := n.ask(func(ctx context.Context, c *admin.Client) error {
		s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
		for _, c := range s.GetChecks() {
			if c.GetName() == check && !c.GetOk() {
				detail = c.GetDetail()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return detail
}

// reaches waits until a pod is greeted at an address.
func (w *world) reaches(t *testing.T, pod, to string) {
	t.Helper()
	testenv.Eventually(t, 15*time.Second, pod+" reaches "+to, func() bool {
		c, err := w.pods[pod].dial(to)
		if err != nil {
			return false
		}
		_, err = bufio.NewReader(c).ReadString('\n')
		return err == nil
	})
}
