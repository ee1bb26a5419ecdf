package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/internal/image"
)

const architecture = runtime.GOARCH

// programs is the folder of what a run needs beside a cluster: Kubernetes' tests, and
// the images of the pods that they make.
type programs struct{ dir string }

func (p programs) suite() string   { return filepath.Join(p.dir, "k8snet.test") }
func (p programs) agnhost() string { return filepath.Join(p.dir, "agnhost") }

// How the tests' pods try whether a TCP connection is possible. Kubernetes' agnhost
// only connects. Where a proxy takes the connection before it knows its fate, that
// says nothing: the patient one (package probe) waits whether it is reset.
const (
	plain   = "plain"
	patient = "patient"
)

func (p programs) images(probe string) string { return filepath.Join(p.dir, "images-"+probe+".tar") }

// locate names the folder for what is built, by the versions of the suite and of Go.
func locate(root string) (programs, error) {
	key, err := cacheKey(suiteModule(root), filepath.Join(root, "e2e/k8snet/probe"))
	if err != nil {
		return programs{}, fmt.Errorf("build the tests: %w", err)
	}
	return programs{filepath.Join(root, ".cache", "k8snet-programs-"+key)}, nil
}

// suiteModule is the folder of the module that has Kubernetes' tests.
func suiteModule(root string) string { return filepath.Join(root, "e2e/k8snet/suite") }

// build builds what is not there yet.
func (p programs) build(ctx context.Context, root string) error {
	module := suiteModule(root)
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return fmt.Errorf("build the tests: %w", err)
	}
	if err := once(p.suite(), func(file string) error {
		say("building Kubernetes' network tests (once; about seven minutes of one core)")
		return goRun(ctx, module, "test", "-c", "-trimpath", "-buildvcs=false", "-vet=off", "-ldflags=-s -w", "-o", file, ".")
	}); err != nil {
		return err
	}
	return once(p.agnhost(), func(file string) error {
		say("building agnhost, which the tests' pods run (once)")
		if err := p.copyCertificate(ctx, module); err != nil {
			return err
		}
		return goRun(ctx, module, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", file, "k8s.io/kubernetes/test/images/agnhost")
	})
}

// ensureImages makes the images of the tests' pods; they have the cluster's CoreDNS.
func (p programs) ensureImages(ctx context.Context, root string, built build.Programs, probe string) error {
	return once(p.images(probe), func(file string) error {
		say("building the images of the tests' pods (once)")
		files := []image.File{{Path: "/agnhost", Source: p.agnhost()}}
		if probe == patient {
			program := filepath.Join(p.dir, "probe")
			if err := goRun(ctx, root, "build", "-trimpath", "-o", program, "./e2e/k8snet/probe"); err != nil {
				return err
			}
			files = []image.File{{Path: "/agnhost", Source: program}, {Path: "/agnhost.kubernetes", Source: p.agnhost()}}
		}
		return p.saveImages(ctx, file, append(files, image.File{Path: "/coredns", Source: filepath.Join(built.Dir, "coredns")}))
	})
}

// copyCertificate takes the certificate of agnhost's image, and its key, out of the
// module.
func (p programs) copyCertificate(ctx context.Context, module string) error {
	command := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "k8s.io/kubernetes/test/images/agnhost/porter")
	command.Dir, command.Env = module, append(os.Environ(), "GOWORK=off")
	out, err := command.Output()
	if err != nil {
		return fmt.Errorf("find agnhost's certificate: %w", err)
	}
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), name))
		if err != nil {
			return fmt.Errorf("find agnhost's certificate: %w", err)
		}
		if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// once makes a file, all of it or none, unless it is there.
func once(file string, do func(file string) error) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	if err := do(file + ".new"); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// cacheKey is of all that the built programs depend on.
func cacheKey(folders ...string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), architecture, tools(), applets())
	for _, folder := range folders {
		if err := build.HashFolder(sum, folder); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// goRun runs the go command; what is built is static.
func goRun(ctx context.Context, dir string, args ...string) error {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s in %s: %w: %s", strings.Join(args, " "), dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// saveImages makes the images under the names by which this version's tests ask for
// them. All have the same files: the tests differ in what they start.
func (p programs) saveImages(ctx context.Context, archive string, programs []image.File) error {
	files, err := debianFiles(ctx)
	if err != nil {
		return err
	}
	files = append(append(files, programs...),
		image.File{Path: "/agnhost-2", Link: "agnhost"},
		image.File{Path: "/uploads/.empty", Mode: 0o644},
		image.File{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/:/bin/sh\n"), Mode: 0o644},
		image.File{Path: "/etc/group", Content: []byte("root:x:0:\n"), Mode: 0o644},
		image.File{Path: "/etc/wgetrc", Content: []byte("tries = 1\n"), Mode: 0o644}, // as busybox's
		image.File{Path: "/etc/nsswitch.conf", Content: []byte("hosts: files dns\n"), Mode: 0o644},
	)
	for _, name := range []string{"localhost.crt", "localhost.key"} { // what its TLS servers show
		files = append(files, image.File{Path: "/" + name, Source: filepath.Join(p.dir, name), Mode: 0o644})
	}
	out, err := exec.CommandContext(ctx, p.suite(), "--images").Output()
	if err != nil {
		return fmt.Errorf("ask the tests for their images: %w", err)
	}
	var images []*image.Image
	for reference := range strings.FieldsSeq(string(out)) {
		img, err := image.Build(imageSpec(reference, files))
		if err != nil {
			return err
		}
		images = append(images, img)
	}
	if len(images) == 0 {
		return errors.New("the tests name no image")
	}
	return image.SaveArchive(archive, images...)
}

// imageSpec says how a container of an image starts when the pod does not say.
func imageSpec(reference string, files []image.File) image.Spec {
	spec := image.Spec{Reference: reference, Platforms: []image.Platform{{Architecture: architecture, Files: files}}}
	switch name := reference[strings.LastIndex(reference, "/")+1:]; {
	case strings.HasPrefix(name, "agnhost:"), strings.HasPrefix(name, "pause:"):
		spec.Entrypoint, spec.Args = []string{"/agnhost"}, []string{"pause"}
	default:
		spec.Args = []string{"/bin/sh"}
	}
	return spec
}
