// Command workload is what runs in the pods of the tests of the whole product:
// servers of which kubelet's probes ask all kinds, and clients that count what they
// lose. It is static, so that it is an image by itself.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const usage = `usage: workload serve | once ADDRESS TEXT | hold ADDRESS TEXT | load ADDRESS CONNECTIONS RATE | dial ADDRESS | ok | wait
serve  echo lines on :7000, answer HTTP on :8080 and gRPC health on :9090
once   send TEXT over a connection of its own and print what comes back
hold   do so again and again over one connection, and print a line each time
load   keep CONNECTIONS busy, and open RATE a second beside; print what was lost
dial   say how the very first connection that this process tries ends
ok     end well at once
wait   do nothing until told to end`

// patience bounds every single exchange.
const patience = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch {
	case command == "serve":
		return serve(ctx)
	case command == "once" && len(args) == 3:
		answer, err := once(args[1], args[2])
		fmt.Println(answer)
		return err
	case command == "hold" && len(args) == 3:
		return hold(ctx, args[1], args[2])
	case command == "load" && len(args) == 4:
		return load(ctx, args[1], args[2], args[3])
	case command == "dial" && len(args) == 2:
		answer, err := once(args[1], "first")
		fmt.Println("first packet:", answer, err)
		<-ctx.Done()
		return nil
	case command == "ok":
		return nil
	case command == "wait":
		<-ctx.Done()
		return nil
	}
	return errors.New(usage)
}

func serve(ctx context.Context) error {
	var config net.ListenConfig
	echoes, err := config.Listen(ctx, "tcp", ":7000")
	if err != nil {
		return err
	}
	calls, err := config.Listen(ctx, "tcp", ":9090")
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	healthpb.RegisterHealthServer(rpc, health.NewServer())
	web := &http.Server{Addr: ":8080", ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })}
	var all sync.WaitGroup
	all.Go(func() { echo(echoes) })
	all.Go(func() { _ = rpc.Serve(calls) })
	all.Go(func() { _ = web.ListenAndServe() })
	<-ctx.Done()
	rpc.Stop()
	_, _ = echoes.Close(), web.Close()
	all.Wait()
	return nil
}

// echo answers until the listener is closed.
func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func once(address, text string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return exchange(conn, bufio.NewReader(conn), text)
}

func exchange(conn net.Conn, in *bufio.Reader, text string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text+"\n"); err != nil {
		return "", err
	}
	answer, err := in.ReadString('\n')
	if err == nil && answer != text+"\n" {
		err = fmt.Errorf("sent %q, got %q", text, answer)
	}
	return text, err
}

func hold(ctx context.Context, address, text string) error {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for n := 1; ctx.Err() == nil; n++ {
		if _, err := exchange(conn, in, text); err != nil {
			return fmt.Errorf("broken after %d: %w", n, err)
		}
		fmt.Println("held", n)
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// counts of load, over its life.
type counts struct{ exchanges, opened, lost, broken atomic.Int64 }

func load(ctx context.Context, address, connections, rate string) error {
	n, err1 := strconv.Atoi(connections)
	r, err2 := strconv.Atoi(rate)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var c counts
	var all sync.WaitGroup
	for range n {
		all.Go(func() { c.keep(ctx, address) })
	}
	all.Go(func() { c.open(ctx, address, time.Second/time.Duration(r)) })
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		fmt.Printf("exchanges %d opened %d lost %d broken %d\n", c.exchanges.Load(), c.opened.Load(), c.lost.Load(), c.broken.Load())
	}
	all.Wait()
	return nil
}

// keep exchanges over one connection; one that breaks is counted, and made anew.
func (c *counts) keep(ctx context.Context, address string) {
	for ctx.Err() == nil {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			c.lost.Add(1)
			fmt.Println("LOST", time.Now().UTC().Format(time.RFC3339Nano), err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		in := bufio.NewReader(conn)
		for ctx.Err() == nil {
			if _, err := exchange(conn, in, "kept"); err != nil {
				c.broken.Add(1)
				fmt.Println("BROKEN", time.Now().UTC().Format(time.RFC3339Nano), err)
				break
			}
			c.exchanges.Add(1)
			time.Sleep(20 * time.Millisecond)
		}
		_ = conn.Close()
	}
}

// open makes connections at a pace.
func (c *counts) open(ctx context.Context, address string, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		all.Go(func() {
			if _, err := once(address, "opened"); err != nil {
				c.lost.Add(1)
				fmt.Println("LOST", time.Now().UTC().Format(time.RFC3339Nano), err)
			}
			c.opened.Add(1)
		})
	}
}
