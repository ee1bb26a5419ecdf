// Package build builds the programs and images of a cluster out of Go modules,
// once: they are kept in the checkout's .cache/ under a key of their go.sum, their
// sources and the Go version. The first build takes about twelve minutes of two
// cores; when all is there, Ensure takes a second. It is safe to be called by
// several processes at once: the others wait.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/image"
)

// Programs is the folder of what was built.
type Programs struct{ Dir string }

// Kube is all Kubernetes components in one binary; its first argument names one.
func (p Programs) Kube() string { return filepath.Join(p.Dir, "kube") }

// Kubectl is a link to Kube by which it is kubectl.
func (p Programs) Kubectl() string { return filepath.Join(p.Dir, "kubectl") }

// Machined is pid 1 of the machines.
func (p Programs) Machined() string { return filepath.Join(p.Dir, "machined") }

// Images are archives of the images that a cluster cannot start without.
func (p Programs) Images() []string {
	return []string{filepath.Join(p.Dir, "pause.tar"), filepath.Join(p.Dir, "coredns.tar")}
}

// The names of the images.
const (
	PauseImage   = "localhost/heddle-cluster/pause:1"
	CoreDNSImage = "localhost/heddle-cluster/coredns:1"
)

// modulePath is the folder, below the checkout's root, of the module that has
// the cluster's programs.
const modulePath = "e2e/cluster/programs"

// FindRoot looks for the checkout's root from a folder upwards.
func FindRoot(from string) (string, error) {
	dir, err := filepath.Abs(from)
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, modulePath, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not in a checkout that has %s: run it in one, or name one with --root", from, modulePath)
		}
	}
}

// Ensure builds what is missing and says what it is at. root is the checkout.
func Ensure(ctx context.Context, root string, say func(string)) (Programs, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Programs{}, fmt.Errorf("build the cluster's programs: %w", err)
	}
	module := filepath.Join(root, modulePath)
	key, err := cacheKey(ctx, module)
	if err != nil {
		return Programs{}, fmt.Errorf("build the cluster's programs: %w", err)
	}
	p := Programs{Dir: filepath.Join(root, ".cache", "cluster-programs-"+key)}
	if err := os.MkdirAll(filepath.Join(p.Dir, "cni"), 0o755); err != nil {
		return p, fmt.Errorf("build the cluster's programs: %w", err)
	}
	unlock, err := lock(filepath.Join(p.Dir, "lock"), say)
	if err != nil {
		return p, fmt.Errorf("build the cluster's programs: %w", err)
	}
	defer unlock()
	for _, step := range []func() error{
		func() error { return p.buildModule(ctx, module, say) },
		func() error { return p.link() },
		func() error { return p.saveImages(say) },
		// Of this checkout, as it is now: the go command knows whether it is current.
		func() error {
			return goBuild(ctx, root, p.Machined(), "", "./e2e/cluster/machined")
		},
	} {
		if err := step(); err != nil {
			return p, fmt.Errorf("build the cluster's programs: %w", err)
		}
	}
	return p, nil
}

// enforcerPath is the folder of the module that has what enforces NetworkPolicies.
const enforcerPath = "e2e/cluster/enforcer"

// Enforcer builds kube-router, once, which enforces NetworkPolicies on the node that it runs
// on, by iptables and ipset, with "--run-firewall" alone. No cluster needs it to come up.
func Enforcer(ctx context.Context, root string, say func(string)) (file string, err error) {
	module := filepath.Join(root, enforcerPath)
	key, err := cacheKey(ctx, module)
	if err != nil {
		return "", fmt.Errorf("build kube-router: %w", err)
	}
	file = filepath.Join(root, ".cache", "cluster-enforcer-"+key, "kube-router")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", fmt.Errorf("build kube-router: %w", err)
	}
	unlock, err := lock(filepath.Join(filepath.Dir(file), "lock"), say)
	if err != nil {
		return "", fmt.Errorf("build kube-router: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	say("building kube-router (once; about four minutes of a core)")
	return file, goBuild(ctx, module, file, "", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router")
}

// target is one program of the module.
type target struct {
	file, pkg, size string
}

func targets() []target {
	all := []target{
		{"pause", "./pause", ""},
		{"coredns", "./coredns", "about two minutes of two cores"},
		{"kube", "./kube", "about ten minutes of two cores"},
	}
	for _, plugin := range pluginPaths() {
		all = append(all, target{filepath.Join("cni", filepath.Base(plugin)), "github.com/containernetworking/plugins/plugins/" + plugin, ""})
	}
	return all
}

func pluginPaths() []string {
	return []string{"main/ptp", "main/bridge", "main/loopback", "ipam/host-local", "meta/portmap"}
}

// Plugins are the CNI plugins by name; each is at cni/NAME in Programs.Dir.
func Plugins() []string {
	var names []string
	for _, plugin := range pluginPaths() {
		names = append(names, filepath.Base(plugin))
	}
	return names
}

func (p Programs) buildModule(ctx context.Context, module string, say func(string)) error {
	version := ""
	for _, t := range targets() {
		file := filepath.Join(p.Dir, t.file)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if version == "" {
			var err error
			if version, err = kubernetesVersion(ctx, module); err != nil {
				return err
			}
		}
		line := "building " + t.file
		if t.size != "" {
			line += " (once; " + t.size + ")"
		}
		say(line)
		if err := goBuild(ctx, module, file, versionFlags(version), t.pkg); err != nil {
			return err
		}
	}
	return nil
}

// goBuild builds one static program, all of it or none.
func goBuild(ctx context.Context, dir, file, ldflags, pkg string) error {
	temporary := file + ".new"
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w "+ldflags, "-o", temporary, pkg)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOFLAGS=", "GOWORK=off")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w: %s", pkg, dir, err, strings.TrimSpace(string(out)))
	}
	return os.Rename(temporary, file)
}

// kubernetesVersion is the version of Kubernetes that go.mod asks for: v1.34.4.
func kubernetesVersion(ctx context.Context, module string) (string, error) {
	command := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	command.Dir = module
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("go list -m k8s.io/kubernetes in %s: %w%s", module, err, stderr(err))
	}
	version := strings.TrimSpace(string(out))
	if strings.Count(version, ".") < 2 || !strings.HasPrefix(version, "v") {
		return "", fmt.Errorf("%s/go.mod asks for k8s.io/kubernetes %q, which is no release", module, version)
	}
	return version, nil
}

func stderr(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return ": " + strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}

// versionFlags say the version that the components report: built from modules,
// they do not know it.
func versionFlags(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	const base = "k8s.io/component-base/version."
	return strings.Join([]string{
		"-X " + base + "gitVersion=" + version, "-X " + base + "gitMajor=" + parts[0], "-X " + base + "gitMinor=" + parts[1],
		"-X " + base + "gitTreeState=clean", "-X k8s.io/client-go/pkg/version.gitVersion=" + version,
	}, " ")
}

func (p Programs) link() error {
	err := os.Symlink("kube", p.Kubectl())
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// saveImages builds the images of the programs that run in pods.
func (p Programs) saveImages(say func(string)) error {
	for program, reference := range map[string]string{"pause": PauseImage, "coredns": CoreDNSImage} {
		archive := filepath.Join(p.Dir, program+".tar")
		if _, err := os.Stat(archive); err == nil {
			continue
		}
		say("building the image " + reference)
		img, err := image.Build(image.Spec{
			Reference: reference, Entrypoint: []string{"/" + program},
			Platforms: []image.Platform{{Architecture: runtime.GOARCH, Files: []image.File{{Path: "/" + program, Source: filepath.Join(p.Dir, program)}}}},
		})
		if err != nil {
			return err
		}
		if err := image.SaveArchive(archive, img); err != nil {
			return err
		}
	}
	return nil
}

// cacheKey is of all that the built programs depend on.
func cacheKey(ctx context.Context, module string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOVERSION: %w: is Go on PATH?", err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s %q\n", strings.TrimSpace(string(out)), runtime.GOARCH, targets())
	err = HashFolder(sum, module)
	return hex.EncodeToString(sum.Sum(nil))[:12], err
}

// HashFolder writes the names and contents of all files below a folder, in order, to
// what makes a cache's key of them.
func HashFolder(sum io.Writer, folder string) error {
	return filepath.WalkDir(folder, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, file)
		fmt.Fprintf(sum, "%s %d\n%s", name, len(data), data)
		return err
	})
}

// lock waits for other processes that build the same.
func lock(file string, say func(string)) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		say("waiting for another process that builds the same programs")
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file, err), f.Close())
	}
	return func() { f.Close() }, nil // closing it unlocks
}
