// Package serve is the waypoint's sockets: clients' connections, which the waypoint's agent
// makes, and what is sent to workloads for them. It reads who a client is and which service it
// dialled (package proxyheader), carries HTTP/1.1 by package http1 and HTTP/2 by package h2, as package plan says, and
// passes on what is no HTTP as it is.
//
// A Server has one event loop per core. A connection belongs to one of them, with all that
// is done for it, so that nothing here takes a lock for a request, and no connection has a
// goroutine. What the other end does not take is not read: bytes wait where they come from.
package serve

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Config is what a Server is made of.
type Config struct {
	// Store has what requests go by, each by what is current when its head has come.
	Store *snapshot.Store
	// Direct is the service's address that all clients are taken to have dialled. Where it is set
	// no header is expected, and nobody's identity is known: it is for trying routes without
	// a mesh.
	Direct netip.AddrPort
	// Reach says where a port of a workload is connected to, for the same purpose; nil is there.
	Reach func(netip.AddrPort) netip.AddrPort
	// Loops is how many event loops there are.
	Loops    int
	Limits   bounds.Limits
	Timeouts bounds.Timeouts
	// HTTP bounds and places messages of HTTP/1.1, and with HTTP2.Messages, which Defaults makes the same, of HTTP/2.
	HTTP    *http1.Config
	HTTP2   *http2.Config
	Metrics *telemetry.Metrics
	// Sinks are told of requests.
	Sinks record.Sinks
	Log   *slog.Logger
}

// Defaults are bounds for a waypoint of one namespace.
func Defaults() Config {
	cfg := Config{HTTP: http1.Defaults(), HTTP2: http2.Defaults()}
	cfg.HTTP2.Messages = cfg.HTTP // what is said of either is said of both
	cfg.Limits, cfg.Timeouts = bounds.Defaults()
	return cfg
}

// check says what is wrong with a Config.
func (c *Config) check() error {
	err := bounds.Check(&c.Limits, &c.Timeouts)
	if c.HTTP != nil && c.HTTP.BodyBytes < 0 {
		err = errors.Join(err, fmt.Errorf("bound of a body: %d: want 0, for none, or more", c.HTTP.BodyBytes))
	}
	if c.Loops < 1 || c.Store == nil || c.Metrics == nil || c.HTTP == nil || c.HTTP2 == nil || c.Log == nil {
		err = errors.Join(err, errors.New("serve: loops, a store, metrics, bounds of HTTP and a log are needed"))
	}
	return err
}
