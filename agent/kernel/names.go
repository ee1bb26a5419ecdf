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
// look up names. What leaves the mesh is given no SVID meanwhile.
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
	names, svids, stop := lasting(ctx)
	defer stop()
	var answered sync.WaitGroup
	answered.Go(func() { s.answer(names, pod.Key) })
	answered.Go(func() { s.give(svids, pod) })
	err := s.Server.Serve(ctx, pod)
	stop()
	answered.Wait()
	return err
}

// lasting returns for how long a pod, whose connections are carried until ctx is done,
// is answered, and given its SVID: until stop is called, which must be, or ctx is done
// for a cause that ends it at once.
func lasting(ctx context.Context) (names, svids context.Context, stop func()) {
	names, stopAll := context.WithCancel(context.WithoutCancel(ctx))
	svids, stopSVIDs := context.WithCancel(names)
	forget := context.AfterFunc(ctx, func() {
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, proxy.ErrMoving):
			stopAll() // another agent answers from the same sockets
		case errors.Is(cause, proxy.ErrUnenrolled):
			stopSVIDs() // the next of its name may have its place already
		}
	})
	return names, svids, func() {
		forget()
		stopSVIDs()
		stopAll()
	}
}

// give has an enrolled workload given its SVID until ctx is done.
func (s answering) give(ctx context.Context, enrolled proxy.Pod) {
	pod, ok := s.datapath.node.Pods()[podnet.Name(enrolled.Key)]
	if !ok {
		s.datapath.log.Warn("pod has no Workload API, whether or not it asks: the node does not have it any more", "workload", enrolled.Key)
		return
	}
	s.svids.Serve(ctx, workloadapi.Pod{Key: enrolled.Key, UID: enrolled.UID, NetNS: enrolled.NetNS, Listen: func(ctx context.Context) (ln net.Listener, err error) {
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
