package cluster

import (
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"sync"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// silent is above every level: the log of Kubernetes' libraries repeats what errors say, in the
// midst of what this program prints.
const silent = slog.Level(math.MaxInt32)

// library is the one log that these libraries have in a process. Its level may change at any
// time, itself may not.
var library struct {
	sync.Once
	level slog.LevelVar
	klog  flag.FlagSet
}

// verbosity is the flag -v.
type verbosity int

// register adds the flag, and has nothing logged until it is given.
func register(flags *pflag.FlagSet) {
	library.Do(func() {
		klog.InitFlags(&library.klog)
		handler := slog.NewTextHandler(stderr{}, &slog.HandlerOptions{Level: &library.level})
		klog.SetLoggerWithOptions(logr.FromSlogHandler(handler), klog.ContextualLogger(true))
	})
	v := new(verbosity)
	v.apply()
	flags.VarP(v, "verbosity", "v", "how much of what is asked of an API server is logged to standard error, as kubectl has it: 1 errors, 6 requests, 8 bodies; 0 nothing")
}

func (v *verbosity) apply() {
	library.level.Set(silent)
	if *v > 0 {
		library.level.Set(slog.Level(-*v)) // as logr has it
	}
	if err := library.klog.Set("v", v.String()); err != nil {
		panic(err) // it takes numbers
	}
}

// Set is of pflag.Value, as the others are.
func (v *verbosity) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return fmt.Errorf("%q is no level: write a number from 0 on, such as 6", text)
	}
	*v = verbosity(n)
	v.apply()
	return nil
}

func (v *verbosity) String() string { return strconv.Itoa(int(*v)) }

// Type is what help calls the value.
func (v *verbosity) Type() string { return "int" }

// stderr is what standard error is when something is written: errors are, whatever the level.
type stderr struct{}

func (stderr) Write(p []byte) (int, error) {
	if library.level.Level() == silent {
		return len(p), nil
	}
	return os.Stderr.Write(p)
}
