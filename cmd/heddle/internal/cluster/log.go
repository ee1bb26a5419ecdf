package cluster

import (
	"flag"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// verbosity is the flag -v: how much the libraries of Kubernetes log. There is one log of theirs
// in a process, which may be set at any time.
type verbosity int

// register adds the flag, and has nothing logged until it is given: that would repeat what
// errors say, in the midst of what this program prints.
func register(flags *pflag.FlagSet) {
	v := new(verbosity)
	v.apply()
	flags.VarP(v, "verbosity", "v", "how much of what is asked of an API server is logged to standard error, as kubectl has it: 1 errors, 6 requests, 8 bodies; 0 nothing")
}

func (v *verbosity) apply() {
	var of flag.FlagSet
	klog.InitFlags(&of)
	klog.SetOutput(io.Discard)
	klog.LogToStderr(*v > 0)
	for name, value := range map[string]string{"v": v.String(), "stderrthreshold": "FATAL"} {
		if err := of.Set(name, value); err != nil {
			panic(err) // it takes these
		}
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
