// Command machined is pid 1 of the machines that a cluster is made of: it makes
// their file system, keeps their programs running, and joins ports of the host
// to them. Package machine starts it, nobody else does.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/heddle-mesh/heddle/e2e/cluster/machine"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: machined enter|init SPEC | join CGROUP COMMAND... (package e2e/cluster/machine starts it)")
		os.Exit(2)
	}
	var err error
	switch part, argument := os.Args[1], os.Args[2]; part {
	case "enter":
		err = machine.Enter(argument)
	case "init":
		err = machine.Init(context.Background(), argument)
	case "join":
		err = machine.Join(argument, os.Args[3:])
	default:
		err = fmt.Errorf("unknown part %q", part)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
