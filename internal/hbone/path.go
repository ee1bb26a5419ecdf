package hbone

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// PathOf asks the kernel for a connection's Path; zero when it is closed, or is
// no TCP connection.
func PathOf(c net.Conn) (p Path) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return p
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) { p = PathOfSocket(int(fd)) }) // fails on a closed one only
	return p
}

// PathOfSocket is PathOf for a descriptor.
func PathOfSocket(fd int) Path {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return Path{}
	}
	return Path{RTT: time.Duration(info.Rtt) * time.Microsecond, Retransmits: info.Total_retrans}
}
