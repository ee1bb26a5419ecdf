// Package chain puts heddle-cni into the cluster's CNI configuration, as the
// last plugin of its chain: in a copy of the cluster's own file that sorts before
// it and follows it, so that no other tool's writing takes heddle-cni out; where a
// copy cannot be, in that file itself. It takes all of it away again so that no
// byte is left. It knows files, not pods.
//
// An Installer is safe for concurrent use; Run blocks.
package chain

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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
	// Linger is how long the copy outlives the last configuration of the cluster's
	// own: a tool may remove its file to write it anew. 2 s when zero.
	Linger time.Duration
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
	inPlace inPlace
	warned  string // what was said last of files that are not in use

	writes sync.Mutex // one at a time; what follows is of whoever has it
	copied copied
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
	cfg.Every, cfg.MinPause, cfg.MaxPause = cmp.Or(cfg.Every, 30*time.Second), cmp.Or(cfg.MinPause, time.Second), cmp.Or(cfg.MaxPause, 30*time.Second)
	cfg.Linger = cmp.Or(cfg.Linger, 2*time.Second)
	return &Installer{cfg: cfg, plugin: plugin, problem: errors.New("not installed yet")}, nil
}

// Problem says why new pods may start without heddle-cni, or in a network that the
// cluster's CNI has changed since; nil when they do not.
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

// Change is what Install has done to the configuration that the runtime uses.
type Change int

const (
	// Unchanged: heddle-cni was where it belongs.
	Unchanged Change = iota
	// Followed: the copy is the newest of the cluster's own file; heddle-cni was in
	// the chain all the time.
	Followed
	// Put: heddle-cni is in the chain, and was not before.
	Put
)

// Install copies the program and has the plugin in the configuration that the
// runtime uses, the first by name, and reports what that took. It may be repeated,
// and changes nothing when everything is in place.
func (i *Installer) Install(ctx context.Context) (change Change, err error) {
	i.writes.Lock()
	defer i.writes.Unlock()
	var file string
	err = again(func() error {
		file, change, err = i.install(ctx)
		return err
	})
	i.mu.Lock()
	i.problem, i.file, i.inPlace = err, file, i.copied.said
	i.mu.Unlock()
	return change, err
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

func (i *Installer) install(ctx context.Context) (file string, change Change, err error) {
	// The program first: a configuration that names none stops every pod.
	if _, err := copyProgram(i.cfg.Program, filepath.Join(i.cfg.BinDir, cniwire.PluginType)); err != nil {
		return i.holder(), Unchanged, err
	}
	if err := ctx.Err(); err != nil {
		return i.holder(), Unchanged, err
	}
	config, others, err := i.inUse()
	if errors.Is(err, errNone) {
		return i.withoutNetwork(err)
	}
	i.copied.orphan = time.Time{}
	if err != nil {
		return i.holder(), Unchanged, err
	}
	i.warn(others)
	if i.mayCopy(config) {
		return i.copy(config)
	}
	if file, change, err = i.edit(config); err != nil {
		return i.holder(), Unchanged, err
	}
	return file, change, i.removeCopy()
}

// edit puts the plugin into the cluster's own file.
func (i *Installer) edit(config *configFile) (file string, change Change, err error) {
	if !config.isList() {
		path, err := i.replaceSingle(config)
		return path, Put, err
	}
	text, err := withPlugin(config.text, i.plugin)
	if err != nil {
		return "", Unchanged, fmt.Errorf("CNI configuration %s: %w", config.path, err)
	}
	if bytes.Equal(text, config.text) {
		return config.path, Unchanged, nil
	}
	return config.path, Put, config.replace(text)
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

// inUse returns the configuration that the runtime would use without the copy, and
// what is wrong with those before it. A runtime may pass one over that it cannot read, or stop
// there: the first that can be used must have the plugin either way.
func (i *Installer) inUse() (*configFile, []error, error) {
	paths, err := configPaths(i.cfg.ConfDir)
	if err != nil {
		return nil, nil, err
	}
	var unusable []error
	for _, path := range paths {
		if filepath.Base(path) == Own {
			continue
		}
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
