package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// Uninstall takes the plugin out of every configuration and removes the program:
// every file is what it would be had Heddle never been there. It may be repeated.
func (i *Installer) Uninstall() error {
	i.writes.Lock()
	defer i.writes.Unlock()
	i.copied = copied{}
	// The copy first: from here on the cluster's own file is what the runtime uses.
	errs := []error{i.removeCopy(), i.removeSetAside()}
	entries, err := os.ReadDir(i.cfg.ConfDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list CNI configurations: %w", err)
	}
	// Single ones first: their lists go with them.
	for _, e := range entries {
		if original, ok := isSaved(filepath.Join(i.cfg.ConfDir, e.Name())); ok {
			errs = append(errs, i.restoreSingle(original))
		}
	}
	paths, err := configPaths(i.cfg.ConfDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, path := range paths {
		errs = append(errs, again(func() error { return i.takeOut(path) }))
	}
	errs = append(errs, removeLeft(i.cfg.ConfDir), removeLeft(i.cfg.BinDir))
	// The program last, and only when nothing names it any more.
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take %s out of the cluster's CNI: %w", cniwire.PluginType, err)
	}
	if err := os.Remove(filepath.Join(i.cfg.BinDir, cniwire.PluginType)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", cniwire.PluginType, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.problem, i.file = errors.New("uninstalled"), ""
	return nil
}

// restoreSingle puts a single configuration back, unless its tool has written it
// anew, and removes the list that stood for it.
func (i *Installer) restoreSingle(original string) error {
	var err error
	if _, statErr := os.Lstat(original); statErr == nil {
		err = os.Remove(original + saved)
	} else {
		err = os.Rename(original+saved, original)
	}
	if err != nil {
		return writing("CNI configuration "+original, err)
	}
	path := strings.TrimSuffix(original, filepath.Ext(original)) + ".conflist"
	stand, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if l, err := parseList(stand.text); err != nil || !slices.Contains(l.types, cniwire.PluginType) {
		return nil // another tool's by now
	}
	if err := os.Remove(path); err != nil {
		return writing("CNI configuration "+path, err)
	}
	return nil
}

// takeOut cuts the plugin out of one file. What cannot be read cannot hold it in
// a form that this package wrote.
func (i *Installer) takeOut(path string) error {
	config, err := readConfig(path)
	if err != nil || !config.isList() || !bytes.Contains(config.text, []byte(cniwire.PluginType)) {
		return nil
	}
	text, was, err := withoutPlugin(config.text)
	if err != nil {
		return fmt.Errorf("CNI configuration %s: %w", path, err)
	}
	if !was {
		return nil
	}
	return config.replace(text)
}
