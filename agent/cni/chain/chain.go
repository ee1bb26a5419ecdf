// Package chain puts heddle-cni into the cluster's CNI configuration, as the
// last plugin of its chain, keeps it there while other tools write theirs anew,
// and takes it out again so that no byte is left. It knows files, not pods.
//
// An Installer is safe for concurrent use; Run blocks.
package chain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// Config says where things are. All but the times must be set.
type Config struct {
	// ConfDir and BinDir are the node's, /etc/cni/net.d and /opt/cni/bin.
	ConfDir, BinDir string
	// Program is the heddle-cni to install.
	Program string
	// Socket, List and Pass are told to the plugin: where the agent is asked,
	// where its list of namespaces is, on the node, and whose pods never wait.
	Socket, List string
	Pass         []string
	// Every is how often the folder is looked at without an event; 30 s when zero.
	Every time.Duration
	// MinPause and MaxPause bound how soon the plugin is put back again after it
	// was put back: the pause doubles with a tool that takes it out at once. 1 s
	// and 30 s when zero.
	MinPause, MaxPause time.Duration
	Log                *slog.Logger
}

// Installer keeps heddle-cni in the chain.
type Installer struct {
	cfg    Config
	plugin []byte

	mu      sync.Mutex
	problem error
	file    string // in which the plugin is; "" when in none
	warned  string // what was said last of files that are not in use

	writes sync.Mutex // one at a time
}

// New returns an Installer; nothing is changed yet.
func New(cfg Config) (*Installer, error) {
	plugin, err := json.Marshal(struct {
		Type    string   `json:"type"`
		Socket  string   `json:"agentSocket"`
		List    string   `json:"namespaceList"`
		Pass    []string `json:"passNamespaces"`
		Timeout int      `json:"timeoutSeconds"`
	}{cniwire.PluginType, cfg.Socket, cfg.List, cfg.Pass, int(cniwire.DefaultTimeout / time.Second)})
	if err != nil {
		return nil, fmt.Errorf("encode plugin's configuration: %w", err)
	}
	cfg.Every, cfg.MinPause, cfg.MaxPause = orDefault(cfg.Every, 30*time.Second), orDefault(cfg.MinPause, time.Second), orDefault(cfg.MaxPause, 30*time.Second)
	return &Installer{cfg: cfg, plugin: plugin, problem: errors.New("not installed yet")}, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Problem says why new pods may start without heddle-cni; nil when they do not.
func (i *Installer) Problem() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.problem
}

// File returns the configuration file that has the plugin; "" when none does.
func (i *Installer) File() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.file
}

// errNone: the cluster's CNI has not written anything yet.
var errNone = errors.New("the cluster's CNI has not been configured yet: waiting for its file")

// Install copies the program and puts the plugin into the configuration that the
// runtime uses: the first by name. It reports whether the configuration was
// changed. It may be repeated, and changes nothing when everything is in place.
func (i *Installer) Install(ctx context.Context) (changed bool, err error) {
	i.writes.Lock()
	defer i.writes.Unlock()
	var file string
	err = again(func() error {
		file, changed, err = i.install(ctx)
		return err
	})
	i.mu.Lock()
	i.problem, i.file = err, file
	i.mu.Unlock()
	return changed, err
}

// again repeats a step that another tool's writing came in between, for so long as
// a tool may write without a pause.
func again(step func() error) error {
	err := step()
	for tries := 1; errors.Is(err, cniwire.ErrChanged) && tries < 20; tries++ {
		err = step()
	}
	return err
}

func (i *Installer) install(ctx context.Context) (file string, changed bool, err error) {
	// The program first: a configuration that names none stops every pod.
	if _, err := copyProgram(i.cfg.Program, filepath.Join(i.cfg.BinDir, cniwire.PluginType)); err != nil {
		return "", false, err
	}
	if err := ctx.Err(); err != nil {
		return "", false, err
	}
	config, others, err := i.inUse()
	if err != nil {
		return "", false, err
	}
	i.warn(others)
	if config.isList() {
		text, err := withPlugin(config.text, i.plugin)
		if err != nil {
			return "", false, fmt.Errorf("CNI configuration %s: %w", config.path, err)
		}
		if bytes.Equal(text, config.text) {
			return config.path, false, nil
		}
		return config.path, true, config.replace(text)
	}
	path, err := i.replaceSingle(config)
	return path, err == nil, err
}

// replaceSingle makes a list of a single configuration. The list is there before
// the other goes: at no time is there none.
func (i *Installer) replaceSingle(config *configFile) (string, error) {
	text, err := listOf(config.text, i.plugin)
	if err != nil {
		return "", fmt.Errorf("CNI configuration %s: %w", config.path, err)
	}
	path := strings.TrimSuffix(config.path, filepath.Ext(config.path)) + ".conflist"
	if there, err := readConfig(path); err == nil {
		// An earlier one of ours, from before another tool wrote its own anew.
		if _, was, err := withoutPlugin(there.text); err != nil || !was {
			return "", fmt.Errorf("CNI configuration %s: %s is in the way, and another tool's: remove one of the two", config.path, path)
		}
	}
	if err := config.write(path, text); err != nil {
		return "", err
	}
	if err := os.Rename(config.path, config.path+saved); err != nil {
		return "", writing("CNI configuration "+config.path, err)
	}
	if now, err := os.ReadFile(config.path + saved); err != nil || !bytes.Equal(now, config.text) {
		// Its tool wrote it meanwhile: it goes back, unless there is a still newer one.
		if err := os.Link(config.path+saved, config.path); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", writing("CNI configuration "+config.path, err)
		}
		return "", fmt.Errorf("CNI configuration %s: %w", config.path, cniwire.ErrChanged)
	}
	return path, cniwire.SyncDir(i.cfg.ConfDir)
}

// inUse returns the configuration that the runtime uses, and what is wrong with
// those before it. A runtime may pass one over that it cannot read, or stop
// there: the first that can be used must have the plugin either way.
func (i *Installer) inUse() (*configFile, []error, error) {
	paths, err := configPaths(i.cfg.ConfDir)
	if err != nil {
		return nil, nil, err
	}
	var unusable []error
	for _, path := range paths {
		config, err := readConfig(path)
		if err == nil {
			err = config.check()
		}
		if err == nil {
			return config, unusable, nil
		}
		unusable = append(unusable, fmt.Errorf("%s: %w", path, err))
	}
	if len(unusable) > 0 {
		return nil, nil, fmt.Errorf("no CNI configuration can be used: %w; remedy: have the tool that wrote it write it anew", errors.Join(unusable...))
	}
	return nil, nil, fmt.Errorf("%s: %w", i.cfg.ConfDir, errNone)
}

// warn says once what is wrong with files that come before the one in use.
func (i *Installer) warn(unusable []error) {
	text := ""
	if err := errors.Join(unusable...); err != nil {
		text = err.Error()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if text != "" && text != i.warned {
		i.cfg.Log.Warn("another tool's CNI configuration comes first, and cannot be used: a runtime may stop at it", "error", text)
	}
	i.warned = text
}

// Uninstall takes the plugin out of every configuration and removes the program:
// every file is what it would be had Heddle never been there. It may be repeated.
func (i *Installer) Uninstall() error {
	i.writes.Lock()
	defer i.writes.Unlock()
	var errs []error
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
