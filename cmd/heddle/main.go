// Command heddle is a person's way into a mesh: it shows flows and says why each
// was allowed or refused, checks that all is well, has the kernel prove what
// left a pod, and runs whole meshes on one machine. docs/cli.md has every
// command; the tests run them.
//
// It reads flags and NO_COLOR, talks to admin sockets, and keeps no state of
// its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/plugin"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/local"
)

// version is set by the linker.
var version = "dev"

// Exit codes; docs/cli.md promises them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitBreaks      = 4
	exitInvalid     = 5
	exitInterrupted = 128 + int(syscall.SIGINT) // as shells say it
)

// errNotWell ends a command whose output has said already what is wrong.
var errNotWell = errors.New("not everything is well")

// errToldInvalid is errNotWell of what a command was given of YAML.
var errToldInvalid = fmt.Errorf("%w: %w", errNotWell, folders.ErrInvalid)

// errUsage is matched by errors in what the person asked for.
var errUsage = reach.ErrUsage

func main() {
	// The main thread must not be one that goes to a pod's namespace: others
	// see its namespaces as the process's.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what does not heed the first
	color := isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == ""
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr, color))
}

// run executes one command line, the program's name first, and returns its exit
// code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, color bool) int {
	stderr = &oneByOne{w: stderr}
	a := &app{out: stdout, log: stderr, color: color}
	root := a.root()
	name, args := plugin.Called(root, args)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	refuseUnknown(root)
	sayUse(root)
	err := root.ExecuteContext(ctx)
	code := exitCode(ctx, err, a.started)
	switch {
	case code == exitOK || code == exitBreaks || errors.Is(err, errNotWell):
	case code == exitInterrupted:
		fmt.Fprintf(stderr, "heddle: interrupted: %v\n", err)
	case code == exitUsage:
		fmt.Fprintf(stderr, "heddle: %s\nSee `%s --help`, or `--help` after a command.\n", strings.TrimPrefix(err.Error(), errUsage.Error()+": "), name)
	default:
		fmt.Fprintf(stderr, "heddle: %v\n", err)
		if code == exitInvalid && a.output == "json" {
			if err := a.validating().Tell(err); err != nil {
				fmt.Fprintf(stderr, "heddle: %v\n", err)
			}
		}
	}
	return code
}

// exitCode classifies an error. One from before the command started is cobra's:
// unknown commands, flags and arguments. What a signal interrupted has no answer, so it is no
// success; commands that go on until a signal have no error then.
func exitCode(ctx context.Context, err error, started bool) int {
	switch {
	case err == nil:
		return exitOK
	case !started || errors.Is(err, errUsage) || errors.Is(err, chart.ErrValues):
		return exitUsage
	case errors.Is(err, replay.ErrBreaks):
		return exitBreaks
	case errors.Is(err, folders.ErrInvalid):
		return exitInvalid
	case ctx.Err() != nil && !errors.Is(err, errNotWell):
		return exitInterrupted
	case errors.Is(err, admin.ErrUnreachable) || errors.Is(err, local.ErrNoMesh) || errors.Is(err, cluster.ErrUnreachable):
		return exitUnreachable
	default:
		return exitFailed
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// oneByOne lets the watchers of several agents complain at once.
type oneByOne struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneByOne) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}
