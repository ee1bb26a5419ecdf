// Command images builds the images of Heddle's programs out of this checkout, for
// amd64 and arm64, each with a list of what it was made of (an SBOM, SPDX 2.3), and
// writes both into a folder. The same checkout, Go and version give the same
// bytes. It pushes them if it is told to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/heddle-mesh/heddle/internal/image"
)

func main() {
	b := builder{out: os.Stdout}
	flag.StringVar(&b.root, "root", ".", "the checkout")
	flag.StringVar(&b.folder, "folder", "bin/images", "where images and SBOMs are written")
	flag.StringVar(&b.registry, "registry", "ghcr.io/heddle-mesh", "what comes before the images' names")
	all := flag.String("architectures", "amd64,arm64", "which to build, separated by commas: those of one only are for trying")
	flag.StringVar(&b.version, "version", "dev", "the images' tag, and the programs' version")
	flag.BoolVar(&b.push, "push", false, "push each image to -registry, logged in as docker and podman are; the digest there is the one that is printed")
	only := flag.String("image", "", "the one image to build, such as heddle-waypoint; empty builds all")
	flag.Parse()
	b.architectures = strings.Split(*all, ",")
	wanted, err := choose(images(), *only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "images: -image:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx, wanted); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// spec is one image: its programs, the first of which it starts.
type spec struct {
	name, user string
	programs   []string
}

func images() []spec {
	return []spec{
		// heddle-agent installs the heddle-cni that is beside it.
		{"heddle-agent", "0:0", []string{"heddle-agent", "heddle-cni"}},
		{"heddle-operator", "65532:65532", []string{"heddle-operator"}},
		{"heddle-waypoint", "65532:65532", []string{"heddle-waypoint"}},
	}
}

// choose returns the one of a name, all without one.
func choose(all []spec, name string) ([]spec, error) {
	if name == "" {
		return all, nil
	}
	var names []string
	for _, s := range all {
		if s.name == name {
			return []spec{s}, nil
		}
		names = append(names, s.name)
	}
	return nil, fmt.Errorf("there is no image %q; remedy: name one of %s", name, strings.Join(names, ", "))
}

// builder builds into a folder.
type builder struct {
	root, folder, registry, version string
	architectures                   []string
	push                            bool
	out                             io.Writer
}

func (b *builder) run(ctx context.Context, all []spec) error {
	work, err := os.MkdirTemp("", "heddle-images-")
	if err != nil {
		return fmt.Errorf("make a folder for the programs: %w", err)
	}
	defer os.RemoveAll(work) // a temporary folder
	for _, s := range all {
		if err := b.image(ctx, work, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// image builds one image, and writes its archive and an SBOM for each program and
// architecture, which is in the image, too.
func (b *builder) image(ctx context.Context, work string, s spec) error {
	out := image.Spec{
		Reference: b.registry + "/" + s.name + ":" + b.version, Entrypoint: []string{"/" + s.programs[0]}, User: s.user,
		Labels: map[string]string{
			"org.opencontainers.image.source":  "https://github.com/heddle-mesh/heddle",
			"org.opencontainers.image.title":   s.name,
			"org.opencontainers.image.version": b.version,
		},
	}
	var boms []image.File
	for _, arch := range b.architectures {
		platform := image.Platform{Architecture: arch}
		for _, program := range s.programs {
			file := filepath.Join(work, arch, program)
			if err := b.build(ctx, program, arch, file); err != nil {
				return err
			}
			bom, err := sbom(program, b.version, arch, file)
			if err != nil {
				return err
			}
			name := program + ".spdx.json"
			platform.Files = append(platform.Files, image.File{Path: "/" + program, Source: file}, image.File{Path: "/sbom/" + name, Content: bom, Mode: 0o644})
			boms = append(boms, image.File{Path: program + "-" + arch + ".spdx.json", Content: bom})
		}
		out.Platforms = append(out.Platforms, platform)
	}
	built, err := image.Build(out)
	if err != nil {
		return err
	}
	digest, err := built.Digest()
	if err != nil {
		return err
	}
	if err := image.SaveArchive(filepath.Join(b.folder, s.name+".tar"), built); err != nil {
		return err
	}
	for _, bom := range boms {
		if err := os.WriteFile(filepath.Join(b.folder, bom.Path), bom.Content, 0o644); err != nil {
			return fmt.Errorf("write SBOM: %w", err)
		}
	}
	if b.push {
		if err := built.Push(ctx); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(b.out, "%s@%s\n", out.Reference, digest)
	return err
}

// build makes a static program that says nothing of the machine it was built on.
func (b *builder) build(ctx context.Context, program, arch, file string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version="+b.version, "-o", file, "./cmd/"+program)
	cmd.Dir = b.root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errors.Join(fmt.Errorf("build %s for %s: %w", program, arch, err), errors.New(string(text)))
	}
	return nil
}
