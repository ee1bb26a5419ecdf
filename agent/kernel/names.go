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
// answered, whenever they are captured, while its connections are carried, and while
// they drain: what is still open may look up names.
func (d *Datapath) Answering(s Server, names *dns.Server) Server {
	return answering{Server: s, names: names, datapath: d}
}

type answering struct {
	Server
	names    *dns.Server
	datapath *Datapath
}

// Serve implements Server.
func (s answering) Serve(ctx context.Context, pod proxy.Pod) error {
	until, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), proxy.ErrMoving) {
			stop() // another agent answers from the same sockets
		}
	})()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.answer(until, pod.Key)
	}()
	err := s.Server.Serve(ctx, pod)
	stop()
	<-answered
	return err
}

// answer has the queries of an enrolled workload answered whenever they are
// captured, until ctx is done.
func (s answering) answer(ctx context.Context, key mesh.Key) {
	pod, ok := s.datapath.node.Pods()[podnet.Name(key)]
	if !ok {
		return
	}
	for ctx.Err() == nil {
		streams, datagrams, changed := pod.Names()
		if len(datagrams) == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		names := dns.Pod{Key: key, Listeners: widen(streams), Sockets: pod}
		for _, q := range datagrams {
			names.Queries = append(names.Queries, q)
		}
		captured, end := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			select {
			case <-changed:
				end()
			case <-captured.Done():
			}
		}()
		s.names.Serve(captured, names)
		end()
		<-ended
	}
}
