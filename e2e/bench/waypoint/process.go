package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// process is a program that runs until it is stopped, or this one ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  string
}

// spawn starts a program in a process group of its own, with its output in a file.
func spawn(cmd *exec.Cmd, log string) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{}), log: log}
	go func() { defer close(p.done); _ = cmd.Wait() }() // ended by stop: its status says nothing
	return p, nil
}

// stop ends a process, politely first, and waits for that.
func (p *process) stop() {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.done:
			return
		default:
		}
		_ = syscall.Kill(-p.cmd.Process.Pid, signal) // it may have ended by itself
		select {
		case <-p.done:
			return
		case <-time.After(2 * time.Second):
		}
	}
}

// await calls ready until it succeeds, the process has ended, or 20 s are over.
func (p *process) await(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
			continue
		case <-p.done:
			err = errors.New("it has ended")
		case <-ctx.Done():
		}
		said, _ := os.ReadFile(p.log) // an error has no words
		return fmt.Errorf("%s: %w: %s", filepath.Base(p.cmd.Path), err, said[max(0, len(said)-1000):])
	}
}

// server is what answers, by nginx.
type server struct {
	*process
	// plain is where HTTP/1.1 is spoken, two where HTTP/2 is.
	plain, two int
}

// body is what requests are answered, message what calls are: a wrapperspb.StringValue in gRPC's framing.
const (
	body    = "hello world, this is the answer of the test server, 64 bytes ok\n"
	answer  = "an answer"
	message = "\x00\x00\x00\x00\x0b\x0a\x09" + answer
)

const nginxConfig = `worker_processes 1; daemon off; master_process off; pid %[1]s/nginx.pid; error_log %[1]s/nginx.err;
events { worker_connections 4096; multi_accept on; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 3600; open_file_cache max=10;
 client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
 server { listen 127.0.0.1:%[2]d backlog=4096; location / { default_type text/plain; return 200 "%[4]s"; } }
 server { listen 127.0.0.1:%[3]d http2 backlog=4096; http2_max_concurrent_streams 1000;
  location / { default_type text/plain; return 200 "%[4]s"; }
  location /bench.Echo/ { root %[1]s; default_type application/grpc; add_trailer grpc-status 0; error_page 405 =200 $uri; } } }
`

// nginx is its path: sbin is in no path of a person's.
func nginx() string {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path
	}
	return "/usr/sbin/nginx"
}

func startServer(ctx context.Context, scratch string) (*server, error) {
	s := &server{}
	folder := filepath.Join(scratch, "server")
	err := errors.Join(os.MkdirAll(filepath.Join(folder, "bench.Echo"), 0o755), os.WriteFile(filepath.Join(folder, "bench.Echo", "Say"), []byte(message), 0o644))
	for _, port := range []*int{&s.plain, &s.two} {
		var wrong error
		*port, wrong = freePort()
		err = errors.Join(err, wrong)
	}
	config := filepath.Join(folder, "nginx.conf")
	if err = errors.Join(err, os.WriteFile(config, fmt.Appendf(nil, nginxConfig, folder, s.plain, s.two, body), 0o644)); err != nil {
		return nil, err
	}
	if s.process, err = spawn(exec.Command(nginx(), "-c", config), filepath.Join(folder, "log")); err != nil {
		return nil, err
	}
	err = s.await(ctx, func() error {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", s.two), time.Second)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}
