package machine

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// initCgroup is where pid 1 lives on a host with cgroup v2 only: a cgroup that
// hands controllers to its children may hold no processes itself.
const initCgroup = "init"

// overlaid are the folders that a machine has a writable copy of.
func overlaid() []string { return []string{"/etc", "/opt", "/var"} }

func mount(source, target, fstype string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// mountMachine makes the machine's file system out of a private copy of the
// host's.
func mountMachine(spec Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	all, err := hierarchies()
	if err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	host, err := openFolders(spec)
	defer closeAll(slices.Collect(maps.Values(host))) // the mounts stay
	if err != nil {
		return err
	}
	if err := detachInherited(); err != nil {
		return err
	}
	if err := mountSys(all); err != nil {
		return err
	}
	if err := mountFolders(spec, host); err != nil {
		return err
	}
	return maskKernelFiles(spec)
}

// openFolders opens the host's folders that the machine is given, to reach them
// when something else lies on their paths: path in the machine → folder.
func openFolders(spec Spec) (map[string]*os.File, error) {
	opened := map[string]*os.File{}
	wanted := maps.Clone(spec.Shares)
	if wanted == nil {
		wanted = map[string]string{}
	}
	wanted[spec.Dir] = spec.Dir
	for path, folder := range wanted {
		file, err := os.Open(folder)
		if err != nil {
			return opened, err
		}
		opened[path] = file
	}
	return opened, nil
}

// detachInherited takes away copies of the host's mounts that would keep what
// others deleted alive, or show it here: namespaces, bpffs, and all of /run and
// /sys.
func detachInherited() error {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	mounts := strings.Split(strings.TrimSpace(string(data)), "\n")
	slices.Reverse(mounts) // the innermost first
	for _, line := range mounts {
		fields := strings.Fields(line)
		if len(fields) < 3 || !foreign(fields[1], fields[2]) {
			continue
		}
		target := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(fields[1]) // proc(5)
		// EINVAL: it went with the one that it lay on.
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach %s: %w", target, err)
		}
	}
	return nil
}

func foreign(target, fstype string) bool {
	for _, dir := range []string{"/run", "/sys"} {
		if target == dir || strings.HasPrefix(target, dir+"/") {
			return true
		}
	}
	return fstype == "nsfs" || fstype == "bpf"
}

// mountSys mounts /sys anew: it shows the network namespace and the cgroups of
// who mounts it, and a bpffs has its own pins.
func mountSys(all []hierarchy) error {
	if err := mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	if pure(all) {
		if err := mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
			return err
		}
		if err := delegateCgroup("/sys/fs/cgroup"); err != nil {
			return err
		}
	} else if err := mountHybridCgroups(all); err != nil {
		return err
	}
	if err := mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"); err != nil {
		return err
	}
	for fstype, target := range map[string]string{"tracefs": "/sys/kernel/tracing", "debugfs": "/sys/kernel/debug"} {
		if err := unix.Mount(fstype, target, fstype, 0, ""); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mount %s: %w", fstype, err) // a kernel without it is passed over
		}
	}
	return nil
}

func mountHybridCgroups(all []hierarchy) error {
	if err := mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, h := range all {
		fstype := "cgroup"
		if h.unified {
			fstype = "cgroup2"
		}
		if err := mount(fstype, h.dir, fstype, 0, h.options); err != nil {
			return err
		}
	}
	return nil
}

// delegateCgroup moves pid 1 one level down and hands the controllers to the
// children, as a container's own init does. The process that started pid 1 is
// in the same cgroup for a moment longer.
func delegateCgroup(root string) error {
	dir := filepath.Join(root, initCgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	var err error
	for range 100 {
		if err = enableControllers(root); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// mountFolders gives the machine what it may write to.
func mountFolders(spec Spec, host map[string]*os.File) error {
	for _, dir := range overlaid() {
		layers := filepath.Join(spec.Dir, "overlay", dir)
		for _, layer := range []string{"upper", "work"} {
			if err := os.MkdirAll(filepath.Join(layers, layer), 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", dir, layers, layers)
		if err := mount("overlay", dir, "overlay", 0, options); err != nil {
			return err
		}
	}
	for dir, mode := range map[string]string{"/run": "mode=755", "/dev/shm": "mode=1777", "/tmp": "mode=1777"} {
		if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode); err != nil {
			return err
		}
	}
	for path, folder := range host {
		if err := mount(fmt.Sprintf("/proc/self/fd/%d", folder.Fd()), path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if path == spec.Dir { // where it was, and writable when / is not
			continue
		}
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	for path, folder := range spec.Disks {
		source := filepath.Join(spec.Dir, folder)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := mount(source, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// maskKernelFiles covers files of /proc/sys that are the whole host's. The boot
// id is new at every boot: that is how others learn of one.
func maskKernelFiles(spec Spec) error {
	bootID := newBootID()
	if err := os.WriteFile(filepath.Join(spec.Dir, bootIDFile), []byte(bootID), 0o644); err != nil {
		return err
	}
	masks := map[string]string{"kernel/random/boot_id": bootID}
	for name, content := range spec.Masks {
		masks[name] = content
	}
	for name, content := range masks {
		source := filepath.Join("/run/machine/sys", name)
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(source, []byte(content+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(source, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask /proc/sys/%s: %w", name, err)
		}
	}
	return nil
}

// closeFileSystem makes the host's part read-only, and all mounts shared, as an
// init does: without it mount propagation into containers has no effect.
func closeFileSystem() error {
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make / read-only: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}
