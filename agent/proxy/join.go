package proxy

import (
	"net"

	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/hbone"
)

// join gives two sockets to the relay, which carries the connection between them
// from then on. The wire leg is b.
func (p *Proxy) join(c *connection, a, b *net.TCPConn) {
	c.settle()
	carrying, err := p.relay.Start(relay.Pair{
		A: a, B: b, Sent: &c.counters.Sent, Received: &c.counters.Received, Measure: c.measurePair, Owner: c,
	}, c.complete)
	if err != nil {
		c.complete(err)
		return
	}
	c.cutter.Bind(func(error) { carrying.Cut() })
}

// measurePair asks the kernel for the figures of the wire leg.
func (c *connection) measurePair(_, b int) { c.measure(hbone.PathOfSocket(b)) }
