package bpf

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue runs a command that reads one value; true when it is not 0
// (linux/ethtool.h, struct ethtool_value; x/sys has no wrapper for it).
func ethtoolValue(fd int, name string, cmd uint32) (bool, error) {
	value := struct{ cmd, data uint32 }{cmd: cmd}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of ifreq's union
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return false, fmt.Errorf("ask ethtool about %s: %w", name, errno)
	}
	return value.data != 0, nil
}
