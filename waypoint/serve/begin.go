package serve

import (
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/proxyheader"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

// readHeader reads who the client is.
func (c *conn) readHeader() {
	for c.stage == atHeader {
		was := len(c.In)
		data, kept := c.read()
		if kept { // more of it is needed
			c.More(c.w.in, &c.w.buffers)
			data = c.In
		}
		if len(data) == was {
			if c.EOF() || c.Broken() {
				c.close(false)
			}
			return
		}
		h, n, err := proxyheader.Parse(data)
		if errors.Is(err, proxyheader.ErrMore) {
			c.used(data, kept, 0)
			continue
		}
		client, err := c.identify(h, err)
		if err != nil {
			c.w.refused(plan.NoHeader)
			c.w.cfg.Log.Warn("a connection was closed that does not say whose it is", "error", err)
			c.close(true)
			return
		}
		c.used(data, kept, n)
		c.begin(client)
	}
}

// identify is what a header says of a client.
func (c *conn) identify(h proxyheader.Header, err error) (plan.Client, error) {
	client := plan.Client{Addr: h.Client, To: h.Service}
	if err == nil && h.Identity != "" {
		client.ID, err = spiffeid.FromString(h.Identity)
	}
	return client, err
}

// begin is the end of the header.
func (c *conn) begin(client plan.Client) {
	c.client, c.stage, c.since = client, atService, c.w.loop.Now()
}

// await goes on when the service that the client dialled is known, or at the end of Hold. All
// are told at the same time that it has this waypoint, and the client's agent may have heard of
// it first.
func (c *conn) await() {
	c.w.use()
	now := c.w.loop.Now()
	if c.leaves(now); c.leaving.service == (mesh.Key{}) && now.Sub(c.since) < c.w.cfg.Timeouts.Hold {
		return
	}
	c.client.Namespace = mesh.NamespaceOf(c.w.snap.View.Settings().TrustDomain, c.client.ID)
	c.client.Workload = c.w.planner.Workload(&c.client)
	c.stage, c.since = atSniff, now
	c.says, c.version = c.speaks()
}

// speaks says what is spoken at the port that a client dialled: what the kind of the routes says that are about it, else
// what the service does.
func (c *conn) speaks() (sniff.Spoken, sniff.Version) {
	at, to, ok := c.w.planner.Parent(&c.client)
	if !ok {
		return sniff.Unsaid, sniff.AsAsked
	}
	said, version := sniff.Of(to.Service, at.Port)
	if kind, ok := c.w.snap.Table.Kind(at, c.client.Namespace); ok && !kind.Requests() {
		said = sniff.Opaque
	} else if c.w.snap.Table.About(at) {
		said = sniff.HTTP
	}
	return said, version
}

// sniff finds out what a client speaks.
func (c *conn) sniff() {
	for c.stage == atSniff {
		if c.says == sniff.Opaque {
			c.pass()
			return
		}
		isHTTP, sure := sniff.Request(c.In)
		two := c.says == sniff.HTTP && c.version == sniff.Two
		switch {
		case len(c.In) == 0:
		case sure && isHTTP, c.says == sniff.HTTP && !two && !sniff.Preface(c.In):
			c.stage = idle
			return
		case sure && (two || sniff.Preface(c.In)): // at a port for HTTP/2, what is no request of HTTP/1.1 is a bad preface
			c.beginTwo()
			return
		case sure:
			c.pass() // a TLSRoute may have come since; else it is looked at more closely
			continue
		}
		switch n := c.More(c.w.in, &c.w.buffers); {
		case n > 0:
		case c.Broken(), c.EOF() && len(c.In) == 0:
			c.close(false)
			return
		case c.EOF() && c.says == sniff.HTTP:
			c.end() // no request has begun
			return
		case c.EOF():
			c.pass()
		default:
			return
		}
	}
}
