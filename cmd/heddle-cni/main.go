// Command heddle-cni is the last plugin of the cluster's CNI chain: it has the
// node's agent put the mesh around a new pod, and keeps a pod that must be in
// the mesh from starting while that cannot be done. It changes nothing itself.
//
// It reads its configuration from stdin, CNI_* from the environment, and, when
// the agent cannot be asked, the list of namespaces that the agent leaves on
// disk. One process per question; every question has a bound in time.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

var version = "dev" // set by the linker

// maxStdin bounds the configuration, the results of earlier plugins included.
const maxStdin = 1 << 20

// longest bounds the whole process, reading stdin included: longer than any
// timeout that the configuration may set.
const longest = maxTimeout + 10*time.Second

func main() {
	command := os.Getenv("CNI_COMMAND")
	deadline := time.AfterFunc(longest, func() {
		finish(command, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("not done within %v", longest), ""), nil)
	})
	result, failure := run(command)
	deadline.Stop()
	finish(command, failure, result)
}

// run answers one question; what belongs on stdout comes back.
func run(command string) ([]byte, *types.Error) {
	if command != "" && command != "VERSION" {
		if err := boundStdin(); err != nil {
			return nil, types.NewError(types.ErrIOFailure, "read the configuration from stdin: "+err.Error(), "")
		}
	}
	var result bytes.Buffer
	p := plugin{result: &result, connect: connect}
	failure := skel.PluginMainFuncsWithError(skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status},
		cni.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), "CNI plugin "+cniwire.PluginType+" "+version)
	return result.Bytes(), failure
}

// finish ends the process. A DEL succeeds whatever was wrong: nothing in the
// kernel is the plugin's, and a pod that cannot be deleted helps nobody.
func finish(command string, failure *types.Error, result []byte) {
	switch {
	case failure == nil:
		if _, err := os.Stdout.Write(result); err != nil {
			fmt.Fprintln(os.Stderr, "write the result:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case command == "DEL":
		fmt.Fprintln(os.Stderr, cniwire.PluginType+": deleting goes on all the same:", failure)
		os.Exit(0)
	}
	if err := failure.Print(); err != nil {
		fmt.Fprintln(os.Stderr, failure, err)
	}
	os.Exit(1)
}

// boundStdin replaces stdin, which skel reads to its end, by a copy that has one.
func boundStdin() error {
	data, err := io.ReadAll(io.LimitReader(os.Stdin, maxStdin+1))
	if err != nil {
		return err
	}
	if len(data) > maxStdin {
		return fmt.Errorf("more than %d bytes", maxStdin)
	}
	fd, err := unix.MemfdCreate("cni-stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "stdin")
	_, err = f.Write(data)
	_, seeking := f.Seek(0, io.SeekStart)
	os.Stdin = f
	return errors.Join(err, seeking)
}
