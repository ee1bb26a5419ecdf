package netnsdir_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/netnsdir"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestNetnsDirIsSharedOnce: were it not a mount, ip(8) would make it one when
// names are mounted in it, and cover them.
func TestNetnsDirIsSharedOnce(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // said below if it is not there
	for range 2 {
		if err := netnsdir.Share(dir); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var of []string
	for line := range strings.Lines(string(mounts)) {
		if strings.Fields(line)[4] == dir {
			of = append(of, line)
		}
	}
	if len(of) != 1 || !strings.Contains(of[0], " shared:") {
		t.Errorf("mounts at the folder: %q, want one that is shared", of)
	}
	if err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Errorf("ip(8) would mount over it: %v", err)
	}
}
