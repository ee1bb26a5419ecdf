package bpf

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// element is union bpf_attr of the calls that are about one element of a map
// (include/uapi/linux/bpf.h).
type element struct {
	fd    uint32
	_     uint32
	key   unsafe.Pointer
	value unsafe.Pointer
	flags uint64
}

// elementCall is bpf(2) for what each connection does. It never waits, so the
// scheduler is not told: it would take the processor away from a call that is
// interrupted, and wake another thread for it. What is wrong is an errno; EINVAL too
// if the map's keys and values are not of the given types' size, for the kernel goes
// by the map's. What needs no value has a nil one of the map's type.
func elementCall[K, V any](command uintptr, m *ebpf.Map, key *K, value *V, flags ebpf.MapUpdateFlags) syscall.Errno {
	if uintptr(m.KeySize()) != unsafe.Sizeof(*key) || uintptr(m.ValueSize()) != unsafe.Sizeof(*value) {
		return unix.EINVAL
	}
	attr := element{fd: uint32(m.FD()), key: unsafe.Pointer(key), value: unsafe.Pointer(value), flags: uint64(flags)}
	_, _, errno := syscall.RawSyscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&attr)
	runtime.KeepAlive(m)
	return errno
}
