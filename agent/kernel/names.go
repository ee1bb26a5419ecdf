package kernel

import (
	"context"
	"errors"

	"github.com/heddle-mesh/heddle/agent/dns"
	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Server carries a pod's connections until ctx is done.
type Server interface {
	Serve(ctx context.Context, pod proxy.Pod) error
}

// Answering returns a Server that does what s does, and has the pod's DNS queries
// answered while its connections are carried, and while they drain: what is still
// open may look up names. Without Config.CaptureDNS it is s itself.
func (d *Datapath) Answering(s Server, names dns.Config) Server {
	if !d.capturesDNS {
		return s
	}
	return answering{Server: s, names: dns.New(names), datapath: d}
}

type answering struct {
	Server
	names    *dns.Server
	datapath *Datapath
}

// Serve implements Server.
func (s answering) Serve(ctx context.Context, pod proxy.Pod) error {
	names, ok := s.datapath.dnsOf(pod.Key)
	if !ok {
		return s.Server.Serve(ctx, pod)
	}
	until, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), proxy.ErrMoving) {
			stop() // another agent answers from the same sockets
		}
	})()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.names.Serve(until, names)
	}()
	err := s.Server.Serve(ctx, pod)
	stop()
	<-answered
	return err
}

// dnsOf returns what serves the DNS queries of a workload that is enrolled.
func (d *Datapath) dnsOf(key mesh.Key) (dns.Pod, bool) {
	pod, ok := d.node.Pods()[podnet.Name(key)]
	if !ok {
		return dns.Pod{}, false
	}
	listeners := pod.Listeners()
	names := dns.Pod{Key: key, Listeners: widen(listeners.Names), Sockets: pod}
	for _, q := range listeners.Queries {
		names.Queries = append(names.Queries, q)
	}
	return names, len(names.Queries) > 0
}
