package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/heddle-mesh/heddle/internal/admin"
)

// Dial returns a Client of a program's admin socket, by the program's own
// subcommand admin-pipe, executed in its pod. It connects at once, to say at once
// what is wrong: the error matches admin.ErrUnreachable.
func (c *Cluster) Dial(ctx context.Context, p Program) (*admin.Client, error) {
	if p.Why != "" {
		return nil, fmt.Errorf("%w: %s; remedy: kubectl -n %s describe pod %s", admin.ErrUnreachable, p.Why, p.Namespace, p.Pod)
	}
	first, err := c.pipe(ctx, p)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	client, err := admin.Over(p.Pod, func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if conn := first; conn != nil {
			first = nil
			return conn, nil
		}
		return c.pipe(ctx, p)
	})
	if err == nil {
		if err = client.Connect(ctx); err == nil {
			return client, nil
		}
		_ = client.Close() // it was never of use
	}
	mu.Lock()
	defer mu.Unlock()
	if first != nil {
		_ = first.Close() // nobody took it
	}
	return nil, err
}

// closeGrace is how long a command has to end by itself.
const closeGrace = 300 * time.Millisecond

// maxComplaint bounds what is kept of a program's standard error, in bytes.
const maxComplaint = 4 << 10

// pipe is a connection to an admin socket through pods/exec. The admin socket's
// server speaks first (HTTP/2, RFC 9113, 3.4), which tells that it is there.
func (c *Cluster) pipe(ctx context.Context, p Program) (net.Conn, error) {
	executor, err := c.executor(p, []string{"/heddle-" + p.Kind, "admin-pipe"})
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	// What client-go logs about the streams' ends, errors say.
	running, cancel := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), logr.Discard()))
	// Until the API server answers, only the end of its connection tells a websocket's dialer of a context's.
	traced := httptrace.WithClientTrace(running, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		context.AfterFunc(running, func() { _ = got.Conn.Close() })
	}})
	conn := &execConn{Conn: near, reader: bufio.NewReader(near), cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(conn.ended)
		var complaint bounded
		err := executor.StreamWithContext(traced, remotecommand.StreamOptions{Stdin: far, Stdout: far, Stderr: &complaint})
		conn.err = c.whyNot(p, err, complaint.String())
		_ = far.Close() // the near end reads its end
	}()
	stop := context.AfterFunc(ctx, func() { _ = near.Close() })
	_, err = conn.reader.Peek(1)
	if stop() && err == nil {
		return conn, nil
	}
	_ = conn.Close() // it has no other error than the one that follows
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: pod %s: no answer in time: %w", admin.ErrUnreachable, p.Pod, ctx.Err())
	}
	if conn.err == nil {
		conn.err = fmt.Errorf("%w: pod %s: the connection ended at once", admin.ErrUnreachable, p.Pod)
	}
	return nil, conn.err
}

// executor runs a command in a program's container: over a websocket, or SPDY
// where the API server, or a proxy before it, does not speak websockets.
func (c *Cluster) executor(p Program, command []string) (remotecommand.Executor, error) {
	url := c.Core.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: p.Kind, Command: command, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	cfg := c.Config()
	cfg.Timeout = 0 // a connection lives for as long as it is needed
	websocket, err := remotecommand.NewWebSocketExecutor(cfg, "GET", url.String())
	if err != nil {
		return nil, fmt.Errorf("connect to pod %s: %w", p.Pod, err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(cfg, "POST", url)
	if err != nil {
		return nil, fmt.Errorf("connect to pod %s: %w", p.Pod, err)
	}
	return remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// whyNot makes an error of how a command in a pod ended. What the command
// complained of says more than its status.
func (c *Cluster) whyNot(p Program, err error, complaint string) error {
	complaint = strings.TrimSpace(complaint)
	switch {
	case err == nil:
		return nil
	case strings.Contains(complaint, "admin-pipe"), strings.Contains(err.Error(), "no such file"), strings.Contains(err.Error(), "executable file"):
		return fmt.Errorf("%w: pod %s: it is of a version that has no admin-pipe: %s; remedy: `heddle upgrade`", admin.ErrUnreachable, p.Pod, strings.TrimSpace(complaint+" "+err.Error()))
	case complaint != "":
		return fmt.Errorf("%w: pod %s: %s", admin.ErrUnreachable, p.Pod, complaint)
	}
	what := "execute a command in pod " + p.Namespace + "/" + p.Pod
	if strings.Contains(err.Error(), " is forbidden: ") { // all that client-go leaves of the API server's answer is its text
		return fmt.Errorf("%w: %w", admin.ErrUnreachable, refuse(what, err))
	}
	return fmt.Errorf("%w: %w", admin.ErrUnreachable, c.Explain(what, err))
}

// execConn is a net.Conn of a command's standard input and output.
type execConn struct {
	net.Conn
	reader *bufio.Reader
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // once ended is closed
}

// Read says why the command ended, if it is over.
func (e *execConn) Read(p []byte) (int, error) {
	n, err := e.reader.Read(p)
	if errors.Is(err, io.EOF) {
		<-e.ended
		if e.err != nil {
			err = e.err
		}
	}
	return n, err
}

// Close ends the command, by the end of its input first, and waits until its
// streams are done. For an API server that does not answer over SPDY it does not
// wait: nothing ends that but the program, or the server.
func (e *execConn) Close() error {
	err := e.Conn.Close()
	e.done()
	e.cancel()
	e.done()
	return err
}

// done waits until the streams are done, for closeGrace at most.
func (e *execConn) done() {
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case <-e.ended:
	case <-grace.C:
	}
}

// bounded keeps the beginning of what is written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxComplaint - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
