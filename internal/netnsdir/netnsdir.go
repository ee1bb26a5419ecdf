// Package netnsdir prepares the folder of ip-netns(8), in which network namespaces
// have names.
package netnsdir

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Path is the folder.
const Path = "/run/netns"

// Share makes dir a shared mount of its own, as the first `ip netns add` does
// (netns_add of iproute2's ipnetns.c). It has to come before the first name: who
// does it later covers the names that are mounted in dir by then, and they cannot
// be taken away any more. It may be called again, and from several processes.
func Share(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // ip's own lock
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	share := func() error { return unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		if err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return nil
}
