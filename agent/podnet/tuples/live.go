package tuples

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Live returns the tuples of all TCP sockets in the network namespace of the
// calling thread that are still connected, as the agent's towards an application
// would be.
func Live(families []int) (map[Tuple]bool, error) {
	live := map[Tuple]bool{}
	for _, family := range families {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(query{family: uint8(family), states: allStates &^ (1<<netlink.TCP_TIME_WAIT | 1<<netlink.TCP_CLOSE | 1<<netlink.TCP_LISTEN)})
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(socket []byte) bool {
			if t, ok := tupleIn(socket); ok {
				live[t] = true
			}
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
	}
	return live, nil
}

// None reports that a network namespace has no such socket, as one of a pod that
// starts: false, too, when the kernel does not say.
func None(ns interface{ Do(func() error) error }) bool {
	var live map[Tuple]bool
	err := ns.Do(func() (err error) {
		live, err = Live([]int{unix.AF_INET, unix.AF_INET6})
		return err
	})
	return err == nil && len(live) == 0
}

// query is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h), without what
// makes the kernel tell more of a socket than its addresses: after a burst of
// connections a namespace has tens of thousands in TIME_WAIT, of which nothing is
// wanted.
type query struct {
	family uint8
	states uint32
}

const (
	queryBytes = 56
	// socketBytes is struct inet_diag_msg, which attributes follow.
	socketBytes = 72
	allStates   = 0xfff
)

// Len implements nl.NetlinkRequestData.
func (query) Len() int { return queryBytes }

// Serialize implements nl.NetlinkRequestData.
func (q query) Serialize() []byte {
	b := make([]byte, queryBytes)
	b[0], b[1] = q.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], q.states)
	return b
}

// tupleIn reads a socket's addresses; ok is false when there are none.
func tupleIn(socket []byte) (t Tuple, ok bool) {
	if len(socket) < socketBytes {
		return Tuple{}, false
	}
	end := func(port, addr []byte) netip.AddrPort {
		ip := netip.AddrFrom16([16]byte(addr)).Unmap()
		if socket[0] == unix.AF_INET {
			ip = netip.AddrFrom4([4]byte(addr))
		}
		return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port))
	}
	return Tuple{Client: end(socket[4:6], socket[8:24]), App: end(socket[6:8], socket[24:40])}, true
}
