package http2_test

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// answering serves a connection: each request is answered when it has ended, with a body that waits for windows.
func answering(t testing.TB, c net.Conn) {
	defer c.Close()
	conn, left := http2.NewServer(http2.Defaults()), map[uint32][]byte{}
	answer := responseHead(t, 200, "content-type: text/plain")
	out, buf := conn.Start(nil), make([]byte, 16<<10)
	write := func(id uint32) {
		var n int
		out, n = conn.Data(out, id, left[id])
		if left[id] = left[id][n:]; len(left[id]) == 0 {
			out = conn.End(out, id, nil)
			delete(left, id)
		}
	}
	for in := []byte(nil); ; {
		used, step, err := 0, http2.Step{}, error(nil)
		out, used, step, err = conn.Next(out, in)
		in = in[used:]
		switch {
		case err != nil:
			// What is not read when a connection is closed has it reset, and a client that is still sending would not see why.
			_, _ = c.Write(out)
			if tcp, ok := c.(*net.TCPConn); ok && tcp.CloseWrite() == nil && tcp.SetReadDeadline(time.Now().Add(2*time.Second)) == nil {
				_, _ = io.Copy(io.Discard, tcp)
			}
			return
		case step.Event == http2.Data:
			out = conn.Consumed(out, step.Stream, len(step.Data))
		case step.Event == http2.End:
			if out, err = conn.Answer(out, step.Stream, answer, nil); err == nil {
				left[step.Stream] = []byte("hello, whoever you are")
				write(step.Stream)
			}
		case step.Event == http2.Writable:
			write(step.Stream)
		case step.Event == http2.Reset:
			delete(left, step.Stream)
		case step.Event == http2.More:
			if _, err := c.Write(out); err != nil {
				return
			}
			n, err := c.Read(buf)
			if out, in = out[:0], buf[:n]; err != nil {
				return
			}
		}
	}
}

// TestH2Spec: the engine alone, with an owner that answers all requests.
func TestH2Spec(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { answering(t, c) })
		}
	})
	defer all.Wait()
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	testenv.H2Spec(t, "h2spec", port)
}
