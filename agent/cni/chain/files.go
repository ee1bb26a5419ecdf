package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// saved is the ending under which a *.conf waits that a *.conflist stands for:
// no runtime takes it for a configuration.
const saved = ".heddle-saved"

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// configFile is a CNI configuration in the folder.
type configFile struct {
	name string // in the folder
	path string // where name, which may be a link, leads
	text []byte
	info fs.FileInfo
}

func (f *configFile) isList() bool { return filepath.Ext(f.path) == ".conflist" }

// types returns the plugins that it names; none when it cannot be read.
func (f *configFile) types() []string {
	if f.isList() {
		l, err := parseList(f.text)
		if err != nil {
			return nil
		}
		return l.types
	}
	s, err := parseSingle(f.text)
	if err != nil {
		return nil
	}
	return []string{s.Type}
}

// with returns its text as that of a list whose last plugin is plugin.
func (f *configFile) with(plugin []byte) (text []byte, err error) {
	if f.isList() {
		text, err = withPlugin(f.text, plugin)
	} else {
		text, err = listOf(f.text, plugin)
	}
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", f.path, err)
	}
	return text, nil
}

// check says why no runtime could use it.
func (f *configFile) check() error {
	if f.isList() {
		_, err := parseList(f.text)
		return err
	}
	_, err := parseSingle(f.text)
	return err
}

// configPaths lists what runtimes take for configurations, in the order in which
// they look (libcni's ConfFiles; containerd and CRI-O use the first).
func configPaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list CNI configurations: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".conf" || ext == ".conflist" || ext == ".json") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// readConfig reads one file. A link is followed, so that it stays one.
func readConfig(path string) (*configFile, error) {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	f, err := os.Open(target)
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	defer f.Close()
	c := &configFile{name: filepath.Base(path), path: target}
	if c.info, err = f.Stat(); err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	if !c.info.Mode().IsRegular() {
		return nil, fmt.Errorf("CNI configuration %s is no file", path)
	}
	if c.text, err = io.ReadAll(io.LimitReader(f, maxConfig+1)); err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	if len(c.text) > maxConfig {
		return nil, fmt.Errorf("CNI configuration %s has more than %d bytes", path, maxConfig)
	}
	return c, nil
}

// replace puts text in the place of what was read, and fails with
// cniwire.ErrChanged when that is no longer there; owner and mode stay.
func (f *configFile) replace(text []byte) error {
	if err := cniwire.ReplaceFile(f.path, f.text, text, f.info.Mode().Perm()); err != nil {
		return writing("CNI configuration "+f.path, err)
	}
	return f.keepOwner(f.path)
}

// write writes another file of the same owner and mode.
func (f *configFile) write(path string, text []byte) error {
	if err := cniwire.WriteFile(path, text, f.info.Mode().Perm()); err != nil {
		return writing("CNI configuration "+path, err)
	}
	return f.keepOwner(path)
}

func (f *configFile) keepOwner(path string) error {
	if owner, ok := f.info.Sys().(*syscall.Stat_t); ok && (owner.Uid != 0 || owner.Gid != 0) {
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			return fmt.Errorf("keep the owner of CNI configuration: %w", err)
		}
	}
	return nil
}

// writing says what to do about an error of the disk.
func writing(what string, err error) error {
	switch {
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("write %s: %w; remedy: mount the node's folder into the agent for writing", what, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("write %s: %w; what was there stays; remedy: make room on the node's disk", what, err)
	}
	return fmt.Errorf("write %s: %w", what, err)
}

// copyProgram puts a program into a folder, atomically, unless it is there.
func copyProgram(source, target string) (copied bool, err error) {
	text, err := os.ReadFile(source)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", cniwire.PluginType, err)
	}
	there, err := os.ReadFile(target)
	if err == nil && bytes.Equal(there, text) {
		if info, err := os.Stat(target); err == nil && info.Mode().Perm() == 0o755 {
			return false, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", target, err)
	}
	if err := cniwire.WriteFile(target, text, 0o755); err != nil {
		return false, writing(target, err)
	}
	return true, nil
}

// removeLeft removes what writes that were cut short left behind.
func removeLeft(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".heddle-cni-*.new"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// isSaved returns the name that a saved configuration had.
func isSaved(path string) (original string, ok bool) { return strings.CutSuffix(path, saved) }
