package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/image"
)

// tools are what the tests run in their pods beside agnhost, as the image of upstream
// has them (its Dockerfile names bind-tools, curl, netcat-openbsd, iproute2, bash). The
// wget is not busybox's: linked statically, that dies in getaddrinfo.
func tools() []string {
	return []string{"dig", "curl", "wget", "nc.openbsd", "ip", "ss", "bash", "dash", "getent", "conntrack"}
}

// applets are those of busybox that a shell script of the tests may use.
func applets() []string {
	return strings.Fields("awk base64 cat chmod cp cut date echo env expr false find grep head hostname id ifconfig ip kill ls mkdir mv " +
		"netstat nslookup ping printf ps pwd rm route sed seq sleep sort stat tail tee test timeout touch tr true uname uniq vi wc which xargs")
}

// debianFiles are the tools of this machine with the libraries that they load, and a
// static busybox for all else.
func debianFiles(ctx context.Context) ([]image.File, error) {
	found := map[string]image.File{}
	add := func(path, source string) { found[path] = image.File{Path: path, Source: source} }
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; remedy: scripts/deps k8snet", err)
	}
	add("/bin/busybox", busybox)
	// Not busybox's: that prefers its own applets to programs of the same name, and its nc
	// is another one.
	found["/bin/sh"] = image.File{Path: "/bin/sh", Link: "dash"}
	for _, name := range applets() {
		found["/bin/"+name] = image.File{Path: "/bin/" + name, Link: "busybox"}
	}
	for _, name := range tools() {
		program, err := exec.LookPath(name)
		if err != nil {
			if program, err = exec.LookPath("/usr/sbin/" + name); err != nil {
				return nil, fmt.Errorf("%w; remedy: scripts/deps k8snet", err)
			}
		}
		add("/bin/"+strings.TrimSuffix(name, ".openbsd"), program)
		out, err := exec.CommandContext(ctx, "ldd", program).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w: %s", program, err, out)
		}
		for _, library := range libraries(string(out)) {
			add(library, library)
		}
	}
	var files []image.File
	for _, file := range found {
		files = append(files, file)
	}
	slices.SortFunc(files, func(a, b image.File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// libraries are the files that ldd names, the loader with them.
func libraries(ldd string) []string {
	var paths []string
	for _, found := range regexp.MustCompile(`(?m)(/\S+) \(0x[0-9a-f]+\)$`).FindAllStringSubmatch(ldd, -1) {
		paths = append(paths, filepath.Clean(found[1]))
	}
	return paths
}
