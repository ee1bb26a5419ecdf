package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/wan"
)

// Far is a world whose nodes are far apart.
type Far struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// The ends of the long way.
func farEnds() [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr("172.31.255.1"), netip.MustParseAddr("172.31.255.2")}
}

// MoveApart sends what goes from node to node a long way, with the given delay
// each way, until Close. It puts fresh proxies in place: a tunnel that was made
// on the short way would judge the long one by what it knew.
func (w *World) MoveApart(ctx context.Context, delay time.Duration) (*Far, error) {
	nodes := w.mesh.Plan.Nodes
	f := &Far{}
	// Interrupted, it is Close that ends it: its input does.
	f.cmd = exec.Command(w.cfg.Self, "wan", "-a", "/run/netns/"+nodes[0].NetNS, "-b", "/run/netns/"+nodes[1].NetNS, "-delay", delay.String())
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	if f.stdin, err = f.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.stdout = bufio.NewReader(out)
	var complaint strings.Builder
	f.cmd.Stderr = &complaint
	if err := f.cmd.Start(); err != nil {
		return nil, err
	}
	if err := f.expect("ready"); err != nil {
		return nil, errors.Join(err, f.Close(), errors.New(complaint.String()))
	}
	if err := errors.Join(w.routeFar(), w.RestartProxies(ctx)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// routeFar puts routes by the long way before those that are there. They go
// with the device.
func (w *World) routeFar() error {
	ends := farEnds()
	for i, n := range w.mesh.Plan.Nodes {
		mine, other := ends[i], ends[1-i]
		commands := []string{fmt.Sprintf("address add %s peer %s dev %s", mine, other, wan.Device), "link set " + wan.Device + " up"}
		for _, p := range w.mesh.Plan.Nodes[1-i].Pods {
			for _, addr := range p.Addresses {
				commands = append(commands, fmt.Sprintf("route prepend %s/32 via %s dev %s", addr, other, wan.Device))
			}
		}
		cmd := exec.Command("ip", "-netns", n.NetNS, "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("route the long way from %s: %w: %s", n.Name, err, out)
		}
	}
	return nil
}

// Lose loses a share of the packets from the clients' node to the servers'.
func (f *Far) Lose(share float64) error {
	if _, err := fmt.Fprintf(f.stdin, "loss %v\n", share); err != nil {
		return err
	}
	return f.expect("ok")
}

func (f *Far) expect(want string) error {
	line, err := f.stdout.ReadString('\n')
	if err == nil && strings.TrimSpace(line) != want {
		err = fmt.Errorf("the long way said %q, want %q", line, want)
	}
	return err
}

// Close makes the way short again.
func (f *Far) Close() error {
	_ = f.stdin.Close() // its end is what it waits for
	return f.cmd.Wait()
}
