package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// runDoomedAgent enrolls a pod and waits to be killed.
func runDoomedAgent(t *testing.T, args []string) {
	runtime.LockOSThread()
	open := func(path string) int {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := unix.Setns(open(args[2]), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	n, err := Load(Config{PinDir: args[0], CgroupPath: args[1]})
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Pod(PodConfig{
		Name: "pod", ID: 7, NetNS: open(args[3]), HostIfindex: number(args[4]), PodIfindex: number(args[5]),
		Addresses: []netip.Addr{netip.MustParseAddr(pod4), netip.MustParseAddr(pod6)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if moved := number(args[6]); moved < 0 {
		err = p.AttachGate()
	} else if err = p.HoldGate(); err == nil {
		for range moved {
			_, err = p.AttachNext()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AttachRedirect(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("READY")
	// Until killed, or until the one who would kill it is gone.
	var b [1]byte
	_, err = os.Stdin.Read(b[:])
	t.Fatalf("nobody killed the agent: %v", err)
}
