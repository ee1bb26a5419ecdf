package world

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// procIPv4 has the kernel's settings of TCP (ip-sysctl.rst), of the namespace of the thread that looks.
const procIPv4 = "/proc/sys/net/ipv4/"

// AllowCongestion lets network namespaces have a congestion control for their default: but for the machine's own,
// the kernel takes only what is allowed to everybody there. Undo allows what was allowed before; namespaces that have the
// default by then keep it.
func AllowCongestion(name string) (undo func() error, err error) {
	available, err := os.ReadFile(procIPv4 + "tcp_available_congestion_control")
	if err != nil {
		return nil, err
	}
	if !slices.Contains(strings.Fields(string(available)), name) {
		return nil, fmt.Errorf("the kernel has no congestion control %q, but %s: load its module (tcp_%s)", name, strings.TrimSpace(string(available)), name)
	}
	const path = procIPv4 + "tcp_allowed_congestion_control"
	before, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if slices.Contains(strings.Fields(string(before)), name) {
		return func() error { return nil }, nil
	}
	write := func(names string) error { return os.WriteFile(path, []byte(names), 0) }
	return func() error { return write(strings.TrimSpace(string(before))) }, write(strings.TrimSpace(string(before)) + " " + name)
}

// chooseCongestion sets a namespace's default congestion control, for sockets that are made from now on.
func (w *World) chooseCongestion(netns string) error {
	err := inNetNS(netns, "sysctl", "-qw", "net.ipv4.tcp_congestion_control="+w.cfg.Congestion)
	if err != nil {
		return errors.Join(err, errors.New("has AllowCongestion been called?"))
	}
	return nil
}
