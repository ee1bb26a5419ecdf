package budget

import (
	"fmt"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// ErrTunnels says that a pod has its share of tunnel connections. It is an hbone.ErrLimit.
var ErrTunnels = fmt.Errorf("%w: too many tunnel connections", hbone.ErrLimit)

// Charge takes one connection, and its socket at the pod; false means that one of them is
// used up.
func (a *Allowance) Charge() bool {
	if a.Connections.Add(1) <= a.connections && a.ChargeSocket() {
		return true
	}
	a.Connections.Add(-1)
	return false
}

// ChargeSocket takes one more of the node's sockets for the pod, which has no more connections
// than four times the sockets left: whatever some pods do, another one finds some
// (docs/decisions/0034).
func (a *Allowance) ChargeSocket() bool { return a.leaves((a.Connections.Load() + 3) / 4) }

// leaves takes one of the node's sockets, if so many are left then.
func (a *Allowance) leaves(left int64) bool {
	if a.node.Add(1)+left > a.sockets {
		a.node.Add(-1)
		return false
	}
	return true
}

// tunnels are the places of a pod's tunnel connections: as many each way as it may have
// connections, which is one for each where peers take one stream on each; and no more than
// there are sockets left, so that who fills them keeps some for connections, the pod's own, too.
type tunnels Allowance

// Take implements hbone.Places.
func (t *tunnels) Take() error {
	if n := t.Tunnels.Add(1); n <= 2*t.connections && (*Allowance)(t).leaves(n) {
		return nil
	}
	t.Tunnels.Add(-1)
	return ErrTunnels
}

// Keep implements hbone.Places.
func (t *tunnels) Keep() {
	t.Tunnels.Add(1)
	t.node.Add(1)
}

// Give implements hbone.Places.
func (t *tunnels) Give() {
	t.Tunnels.Add(-1)
	t.node.Add(-1)
}
