package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// Own is the name of the copy: a runtime takes the first by name (libcni's
// ConfFiles, in containerd and CRI-O), and the names of others begin with two
// digits, when they want to be early.
const Own = "0-heddle.conflist"

// copied is what an Installer knows of its copy.
type copied struct {
	// text is what this Installer has last written, or found as it should be.
	text []byte
	// meddled is when another tool last took the copy away, or changed it.
	meddled time.Time
	// inPlace is why the cluster's own file has the plugin instead, until the end:
	// another tool does not let the copy be.
	inPlace inPlace
	// said is why the cluster's own file has the plugin, as the log has it.
	said inPlace
	// orphan is since when there is no configuration to copy; zero when there is.
	orphan time.Time
}

// inPlace is why the cluster's own file has the plugin, and not a copy of it; the
// zero value when a copy has it.
type inPlace struct{ why, remedy string }

// opens is what a plugin in the cluster's own file means.
const opens = "when that file is written anew, pods may start without heddle-cni until it is put back, and after a reboot until the agent runs"

// drain is the remedy where nothing else is.
const drain = "`kubectl drain` the node before it reboots, or that file is written anew, and `kubectl uncordon` it when its agent is ready"

func (i *Installer) own() string { return filepath.Join(i.cfg.ConfDir, Own) }

// holder returns the copy when it is there with the plugin in it, as an earlier
// look has left it: until a newer one can be made, it holds new pods back.
func (i *Installer) holder() string {
	config, err := readConfig(i.own())
	if err != nil || !slices.Contains(config.types(), cniwire.PluginType) {
		return ""
	}
	return i.own()
}

// mayCopy reports whether a copy of a configuration may stand before it, and says
// once why not.
func (i *Installer) mayCopy(config *configFile) bool {
	reason := i.copied.inPlace
	switch {
	case reason.why != "":
	case config.name < Own:
		reason = inPlace{fmt.Sprintf("its name comes before any of Heddle's (%s)", Own), "have its tool give it a name that begins with two digits"}
	default:
		reason = takesFirst(config.types())
	}
	if reason.why != "" && reason != i.copied.said {
		i.cfg.Log.Warn("heddle-cni is put into the cluster's own CNI configuration, and not into a copy of it: "+opens,
			"file", config.path, "why", reason.why, "remedy", reason.remedy)
	}
	i.copied.said = reason
	return reason.why == ""
}

// takesFirst says why the copy of a chain would be taken, by a plugin of this
// chain, for the network that it calls: it would call itself.
func takesFirst(types []string) inPlace {
	for _, t := range []string{"multus", "multus-shim"} {
		if slices.Contains(types, t) {
			return inPlace{t + " calls whatever comes first in the folder", drain}
		}
	}
	// Cilium behind another CNI writes what it finds under that network's name.
	if slices.Index(types, "cilium-cni") > 0 {
		return inPlace{"cilium-cni is chained to a network that it looks for in the folder", drain}
	}
	return inPlace{}
}

// copy makes the copy what the cluster's own file is now, with the plugin in it.
func (i *Installer) copy(config *configFile) (file string, change Change, err error) {
	text, err := config.with(i.plugin)
	if err != nil {
		return i.holder(), Unchanged, err
	}
	there, err := readConfig(i.own())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", Unchanged, err
	}
	if reason := i.meddling(there); reason.why != "" {
		i.copied.inPlace = reason
		return "", Unchanged, fmt.Errorf("%s: %s: %w", i.own(), reason.why, cniwire.ErrChanged) // tried again, in place
	}
	if there != nil && bytes.Equal(there.text, text) && there.info.Mode().Perm() == config.info.Mode().Perm() {
		i.copied.text = text
		return i.own(), Unchanged, nil
	}
	change = Put
	if there != nil && slices.Contains(there.types(), cniwire.PluginType) {
		change = Followed
	}
	if err := config.write(i.own(), text); err != nil {
		return i.holder(), Unchanged, err
	}
	i.copied.text = text
	return i.own(), change, nil
}

// meddling says why another tool will not let the copy be: it has set it aside
// under another name (Cilium's cni.exclusive), or it takes it away, or changes it,
// for the second time within a minute. there is the copy; nil when it is gone.
func (i *Installer) meddling(there *configFile) inPlace {
	aside := i.setAside()
	switch {
	case len(aside) > 0 && there == nil:
		reason := inPlace{fmt.Sprintf("another tool has renamed the copy to %s", filepath.Base(aside[0])),
			"let it leave others' files (Cilium: cni.exclusive=false), and start the agent anew"}
		if err := i.removeSetAside(); err != nil {
			i.cfg.Log.Warn("copy of the CNI configuration that another tool has set aside is left behind", "error", err)
		}
		return reason
	case i.copied.text == nil || there != nil && bytes.Equal(there.text, i.copied.text):
		return inPlace{}
	case !i.copied.meddled.IsZero() && time.Since(i.copied.meddled) < calm:
		return inPlace{"another tool removes or changes the copy again and again", "have it leave " + Own + ", and start the agent anew"}
	}
	i.copied.meddled = time.Now()
	return inPlace{}
}

// setAside finds copies that another tool has renamed.
func (i *Installer) setAside() []string {
	paths, _ := filepath.Glob(i.own() + ".*") // the pattern is well-formed, or finds nothing
	return paths
}

func (i *Installer) removeSetAside() error {
	var errs []error
	for _, path := range i.setAside() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeCopy leaves the cluster's own file as the first.
func (i *Installer) removeCopy() error {
	err := os.Remove(i.own())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return writing("CNI configuration "+i.own(), err)
	}
	i.copied.text = nil
	return cniwire.SyncDir(i.cfg.ConfDir)
}

// withoutNetwork is what becomes of the copy when nothing is left to copy: without
// Heddle the node would not be ready, and so it is with it. A moment passes before,
// in which a tool may write its file anew.
func (i *Installer) withoutNetwork(none error) (string, Change, error) {
	holder := i.holder()
	switch {
	case i.copied.orphan.IsZero():
		i.copied.orphan = time.Now()
		fallthrough
	case holder != "" && time.Since(i.copied.orphan) < i.cfg.Linger:
		return holder, Unchanged, none
	}
	return "", Unchanged, errors.Join(none, i.removeCopy())
}
