package kernel

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/heddle-mesh/heddle/agent/dns"
	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/agent/workloadapi"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Server carries a pod's connections until ctx is done.
type Server interface {
	Serve(ctx context.Context, pod proxy.Pod) error
}

// Answering returns a Server that does what s does, and has the pod's DNS queries
// answered, whenever they are captured, and its SVID given to it, whenever it asks for
// that, while its connections are carried, and while they drain: what is still open may
// look up names.
func (d *Datapath) Answering(s Server, names *dns.Server, svids *workloadapi.Server) Server {
	return answering{Server: s, names: names, svids: svids, datapath: d}
}

type answering struct {
	Server
	names    *dns.Server
	svids    *workloadapi.Server
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
	var answered sync.WaitGroup
	answered.Go(func() { s.answer(until, pod.Key) })
	answered.Go(func() { s.give(until, pod.Key) })
	err := s.Server.Serve(ctx, pod)
	stop()
	answered.Wait()
	return err
}

// give has an enrolled workload given its SVID until ctx is done.
func (s answering) give(ctx context.Context, key mesh.Key) {
	pod, ok := s.datapath.node.Pods()[podnet.Name(key)]
	if !ok {
		return
	}
	s.svids.Serve(ctx, workloadapi.Pod{Key: key, Listen: func(ctx context.Context) (ln net.Listener, err error) {
		err = pod.Within(func() (err error) {
			ln, err = listener.OpenLocal(ctx, workloadapi.Port)
			return err
		})
		return ln, err
	}})
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
