package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// Init is what `machined init SPEC` does as pid 1 of the machine: it boots, and
// then keeps the programs running. It returns only with an error.
func Init(ctx context.Context, specPath string) error {
	report := os.NewFile(reportDescriptor, "report")
	spec, err := readSpec(specPath)
	if err != nil {
		return err
	}
	listeners, err := inherit(spec.Forwards)
	if err == nil {
		err = bootMachine(spec)
	}
	if err != nil {
		_, writeErr := fmt.Fprint(report, err)
		return errors.Join(err, writeErr)
	}
	if _, err := fmt.Fprint(report, bootedWell); err != nil {
		return fmt.Errorf("report the boot: %w", err)
	}
	if err := report.Close(); err != nil {
		return fmt.Errorf("report the boot: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, listener := range listeners {
		group.Go(func() error { return forward(ctx, listener, spec.Forwards[i].Target) })
	}
	group.Go(func() error { return newSupervisor(spec).run(ctx) })
	return group.Wait()
}

func bootMachine(spec Spec) error {
	if err := syscall.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountMachine(spec); err != nil {
		return err
	}
	if err := firstBoot(spec); err != nil {
		return err
	}
	if err := writeFiles(spec.BootFiles); err != nil {
		return err
	}
	for _, dir := range spec.Folders {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for name, value := range spec.Sysctls {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6, say
			return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return closeFileSystem()
}

// firstBoot writes the files that a machine is installed with. Later boots keep
// what programs made of them.
func firstBoot(spec Spec) error {
	installed := filepath.Join(spec.Dir, "installed")
	if _, err := os.Stat(installed); err == nil {
		return nil
	}
	if err := writeFiles(spec.Files); err != nil {
		return err
	}
	for path, source := range spec.Copies {
		if err := copyFile(path, source); err != nil {
			return err
		}
	}
	return os.WriteFile(installed, nil, 0o644)
}

func writeFiles(files map[string]string) error {
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		// A link would lead the write elsewhere, as resolv.conf does on many hosts.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a program.
func copyFile(path, source string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close() // only read
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// newBootID is a random UUID (RFC 9562, version 4).
func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// inherit takes over the forwards' listeners, which are of the host's network.
func inherit(forwards []Forward) ([]net.Listener, error) {
	var listeners []net.Listener
	for i, f := range forwards {
		file := os.NewFile(uintptr(firstListener+i), "listener")
		listener, err := net.FileListener(file)
		if err != nil {
			return nil, fmt.Errorf("take over port %d: %w", f.HostPort, err)
		}
		if err := file.Close(); err != nil {
			return nil, fmt.Errorf("take over port %d: %w", f.HostPort, err)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}
