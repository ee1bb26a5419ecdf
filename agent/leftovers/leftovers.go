// Package leftovers removes what agents keep in a node's files, when the last agent
// leaves the node for good. What others have put beside it stays.
package leftovers

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Files are what an agent has on a node; "" is passed over.
type Files struct {
	// KeyDir is the tmpfs of the keys, mounted by the agent or not.
	KeyDir string
	// Paths are files and folders, with all that is in them.
	Paths []string
	// Sockets are removed with those that an agent left that was killed while it
	// put one in place.
	Sockets []string
	// Folders are removed in this order when they are empty then.
	Folders []string
	// PinDir is the agent's folder on bpffs, which is gone: the one around it goes,
	// too, when it is empty and named heddle, as where nobody has given another.
	PinDir string
}

// Remove removes them all, also when one fails.
func Remove(files Files) error {
	errs := []error{keystore.Remove(files.KeyDir)}
	paths := files.Paths
	for _, socket := range files.Sockets {
		if socket == "" {
			continue
		}
		left, err := filepath.Glob(socket + ".*")
		errs = append(errs, err)
		paths = append(append(paths, socket), left...)
	}
	for _, path := range paths {
		errs = append(errs, os.RemoveAll(path), removeBeside(path)) // "" is no error
	}
	folders := files.Folders
	if shared := filepath.Dir(files.PinDir); filepath.Base(shared) == "heddle" {
		folders = append(folders, shared)
	}
	for _, dir := range folders {
		errs = append(errs, removeEmpty(dir))
	}
	return errors.Join(errs...)
}

// removeBeside removes what was to become a file, by an agent that was killed while it wrote, and what was put aside.
func removeBeside(path string) error {
	if path == "" {
		return nil
	}
	dir, name := filepath.Split(path)
	var errs []error
	for _, pattern := range []string{"." + name + ".*", name + ".new", name + ".refused", keystore.Unfinished} {
		left, err := filepath.Glob(filepath.Join(dir, pattern))
		errs = append(errs, err)
		for _, one := range left {
			errs = append(errs, os.RemoveAll(one))
		}
	}
	return errors.Join(errs...)
}

// removeEmpty removes a folder when it is empty. In a container it may be a mount,
// on a file system that is read-only around it: then the machine's own view of the
// files has it.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EROFS) {
		err = os.Remove(filepath.Join("/proc/1/root", dir))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
