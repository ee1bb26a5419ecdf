package fast

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
)

var _ hbone.Acceptor = (*Engine)(nil)

// AcceptFrom implements hbone.Acceptor.
func (e *Engine) AcceptFrom(l *net.TCPListener, stop <-chan struct{}, take func(hbone.Incoming), starved func(error)) error {
	if _, err := e.enter(); err != nil {
		return err
	}
	defer e.release()
	fd, err := eventloop.Duplicate(l)
	if err != nil {
		return fmt.Errorf("accept from %s: %w", l.Addr(), err)
	}
	defer eventloop.CloseSocket(fd)
	w := e.nextWorker()
	give := func(fd int, remote netip.AddrPort) {
		take(hbone.Incoming{FD: fd, Remote: remote, Connect: func(req *hbone.ConnectRequest) { w.connectNow(fd, req) }})
	}
	var from *eventloop.Listener
	w.on(func() { from, err = w.Listen(fd, give, starved) })
	if err != nil {
		return fmt.Errorf("accept from %s: %w", l.Addr(), err)
	}
	<-stop
	w.on(func() { err = from.End() })
	return err
}

// connectNow is Engine.Connect on a loop.
func (w *worker) connectNow(fd int, req *hbone.ConnectRequest) {
	o := &outbound{eng: w.eng, req: req, local: eventloop.Descriptor(fd), timing: hbone.Timing{Pooled: true}}
	w.eng.live.Lock()
	w.eng.live.n++ // the accepting is counted
	workers, closing := w.eng.live.workers, w.eng.live.closing
	w.eng.live.Unlock()
	if closing {
		o.fail(hbone.ErrDraining)
		return
	}
	if home := w.eng.home(req.Key, workers); home != w {
		home.Post(func() { home.connect(o) }) // runs: the request is counted
		return
	}
	w.connect(o)
}
