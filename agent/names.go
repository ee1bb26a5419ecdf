package agent

import (
	"context"
	"errors"

	"github.com/heddle-mesh/heddle/agent/dns"
	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/proxy"
)

// The values of Config.DNS.
const (
	DNSCapture = "capture"
	DNSDirect  = "direct"
)

// serverWithNames has a pod's DNS queries answered while its connections are
// carried, and while they drain: what is still open may look up names.
type serverWithNames struct {
	enroll.Server
	names  *dns.Server
	kernel *kernel.Datapath
}

// Serve implements enroll.Server.
func (s serverWithNames) Serve(ctx context.Context, pod proxy.Pod) error {
	names, ok := s.kernel.Names(pod.Key)
	if !ok {
		return s.Server.Serve(ctx, pod)
	}
	answering, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), proxy.ErrMoving) {
			stop() // another agent answers from the same sockets
		}
	})()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.names.Serve(answering, names)
	}()
	err := s.Server.Serve(ctx, pod)
	stop()
	<-answered
	return err
}
