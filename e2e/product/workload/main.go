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
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const usage = `usage: workload serve | secure CERTIFICATE KEY | leave | review CERTIFICATE KEY | measure CERTIFICATE KEY |
       once ADDRESS TEXT [PATIENCE] | each N ADDRESS... | hold ADDRESS TEXT |
       load ADDRESS CONNECTIONS RATE | ask ADDRESS CONNECTIONS RATE | dial ADDRESS |
       fetch N URL [FIELD=VALUE]... | visit URL CONNECTIONS RATE |
       post URL CONNECTIONS RATE | watch URL | turns ADDRESS | collect |
       resolve NAME | names NAME... | ok | wait
serve  echo lines on :7000 and :7001, answer HTTP on :8080 with what was asked, metrics at its /metrics, and
       gRPC health on :9090
secure  the same, and answer HTTP by TLS on :8443 too
leave  the same, and end a second after being told to, whoever is connected
review the same as serve, and answer admission reviews by TLS on :8443
measure  the same as serve, and be the API metrics.k8s.io by TLS on :8443
once   send TEXT over a connection of its own and print what comes back; wait for PATIENCE, 5s unless set
each   send something over N connections to each ADDRESS, one after the other
hold   do so again and again over one connection, and print a line each time
load   keep CONNECTIONS busy, and open RATE a second beside; print what was lost
ask    make requests of a server that leaves: RATE a second over connections of
       their own, beside CONNECTIONS that are kept; print what was lost
fetch  get URL N times over one connection, or as many as "connection=close" makes it, and print each answer as a
       line of JSON; by TLS, whose certificate it was, whoever signed it
visit  do so as ask does, and as a browser: what is kept and has ended is made anew
post   do so too, but send each request once, as who cannot send it again: what is kept is made anew only when
       an answer says that it was the last
watch  get URL all the time, and print when another server answers, and what
turns  try connections all the time, and print when they begin to work and when they cease to
collect  take spans by OTLP over gRPC on :4317, and print each as a line of JSON
dial   say how the very first connection that this process tries ends
resolve  print the addresses of NAME, as this pod's resolv.conf leads to them
names  do so all the time with each NAME in turn; print what was lost, and what took more than a second
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
	case command == "leave":
		return leave(ctx)
	case command == "secure" && len(args) == 3:
		return serveBeside(ctx, args[1], args[2], page)
	case command == "review" && len(args) == 3:
		return review(ctx, args[1], args[2])
	case command == "measure" && len(args) == 3:
		return measure(ctx, args[1], args[2])
	case command == "once" && (len(args) == 3 || len(args) == 4):
		return onceWithin(args[1:])
	case command == "each" && len(args) > 2:
		return each(args[1], args[2:])
	case command == "hold" && len(args) == 3:
		return hold(ctx, args[1], args[2])
	case command == "load" && len(args) == 4:
		return load(ctx, args[1], args[2], args[3])
	case command == "ask" && len(args) == 4:
		return ask(ctx, args[1], args[2], args[3])
	case command == "fetch" && len(args) > 2:
		return fetch(ctx, args[1], args[2], args[3:])
	case command == "visit" && len(args) == 4:
		return visit(ctx, args[1], args[2], args[3])
	case command == "post" && len(args) == 4:
		return post(ctx, args[1], args[2], args[3])
	case command == "watch" && len(args) == 2:
		return watch(ctx, args[1])
	case command == "turns" && len(args) == 2:
		return turns(ctx, args[1])
	case command == "collect":
		return collect(ctx)
	case command == "dial" && len(args) == 2:
		answer, err := once(args[1], "first", patience)
		fmt.Println("first packet:", answer, err)
		<-ctx.Done()
		return nil
	case command == "resolve" && len(args) == 2:
		return resolve(ctx, args[1])
	case command == "names" && len(args) > 1:
		return resolveAll(ctx, args[1:])
	case command == "ok":
		return nil
	case command == "wait":
		<-ctx.Done()
		return nil
	}
	return errors.New(usage)
}

func serve(ctx context.Context) error { return answer(ctx, echo) }

// answer serves all kinds until ctx ends, with lines answered by one of them.
func answer(ctx context.Context, lines func(net.Listener)) error {
	var config net.ListenConfig
	echoes, err := config.Listen(ctx, "tcp", ":7000")
	if err != nil {
		return err
	}
	more, err := config.Listen(ctx, "tcp", ":7001")
	if err != nil {
		return err
	}
	calls, err := config.Listen(ctx, "tcp", ":9090")
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	healthpb.RegisterHealthServer(rpc, health.NewServer())
	web := &http.Server{Addr: ":8080", ReadHeaderTimeout: patience, Handler: http.HandlerFunc(page)}
	var all sync.WaitGroup
	all.Go(func() { lines(echoes) })
	all.Go(func() { lines(more) })
	all.Go(func() { _ = rpc.Serve(calls) })
	all.Go(func() { _ = web.ListenAndServe() })
	<-ctx.Done()
	rpc.Stop()
	_, _, _ = echoes.Close(), more.Close(), web.Close()
	all.Wait()
	return nil
}

// echo answers until the listener is closed.
func echo(l net.Listener) {
	accept(l, func(conn net.Conn) { _, _ = io.Copy(conn, conn) }) // it ends when the peer is gone
}

// accept serves each connection until the listener is closed.
func accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

// onceWithin is the command once.
func onceWithin(args []string) error {
	limit := patience
	if len(args) == 3 {
		var err error
		if limit, err = time.ParseDuration(args[2]); err != nil {
			return fmt.Errorf("PATIENCE: %w: write one such as 3s", err)
		}
	}
	answer, err := once(args[0], args[1], limit)
	fmt.Println(answer)
	return err
}

func once(address, text string, limit time.Duration) (string, error) {
	conn, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return exchange(conn, bufio.NewReader(conn), text, limit)
}

// each says of each address how many connections did well; all are tried.
func each(number string, addresses []string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	var errs []error
	for _, address := range addresses {
		good := 0
		for range n {
			if _, err := once(address, "each", patience); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", address, err))
				continue
			}
			good++
		}
		fmt.Println(address, good)
	}
	return errors.Join(errs...)
}

func exchange(conn net.Conn, in *bufio.Reader, text string, limit time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
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
		if _, err := exchange(conn, in, text, patience); err != nil {
			return fmt.Errorf("broken after %d: %w", n, err)
		}
		fmt.Println("held", n)
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// turns prints lines such as "2026-11-30T12:00:00.123456789Z works", or fails: when the first connection that came out so had.
// (When it had been begun can be before the change that it came to feel.)
func turns(ctx context.Context, address string) error {
	last := ""
	for ctx.Err() == nil {
		now := "works"
		if _, err := once(address, "turn", patience); err != nil {
			now = "fails"
		}
		if now != last {
			fmt.Println(time.Now().UTC().Format(time.RFC3339Nano), now)
			last = now
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// counts of load, over its life.
type counts struct{ exchanges, opened, lost, broken atomic.Int64 }

func load(ctx context.Context, address, connections, rate string) error {
	var c counts
	return drive(ctx, connections, rate, func() { c.keep(ctx, address) }, func() { c.open(address) }, func() {
		fmt.Printf("exchanges %d opened %d lost %d broken %d\n", c.exchanges.Load(), c.opened.Load(), c.lost.Load(), c.broken.Load())
	})
}

// drive keeps connections busy and opens others at a rate beside, until it is told
// to end; it shows the counts all the while.
func drive(ctx context.Context, connections, rate string, keep, open, show func()) error {
	n, r, err := numbers(connections, rate)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for range n {
		all.Go(keep)
	}
	all.Go(func() { every(ctx, time.Second/time.Duration(r), open) })
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		show()
	}
	all.Wait()
	return nil
}

// every starts something at a pace, and waits for all of it at the end.
func every(ctx context.Context, pause time.Duration, start func()) {
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
		all.Go(start)
	}
}

// numbers reads what says how much to do.
func numbers(connections, rate string) (n, r int, err error) {
	n, err = strconv.Atoi(connections)
	if err == nil {
		r, err = strconv.Atoi(rate)
	}
	if err == nil && (n < 0 || r < 1) {
		err = fmt.Errorf("%s connections and %s a second: %s", connections, rate, usage)
	}
	return n, r, err
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
			if _, err := exchange(conn, in, "kept", patience); err != nil {
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

// open makes a connection and exchanges once.
func (c *counts) open(address string) {
	if _, err := once(address, "opened", patience); err != nil {
		c.lost.Add(1)
		fmt.Println("LOST", time.Now().UTC().Format(time.RFC3339Nano), err)
	}
	c.opened.Add(1)
}

func resolve(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	begun := time.Now()
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	sort.Strings(addrs)
	fmt.Println(strings.Join(addrs, " "))
	if err != nil {
		return fmt.Errorf("after %v: %w", time.Since(begun).Round(time.Millisecond), err)
	}
	return nil
}

// resolveAll looks names up, one after the other.
func resolveAll(ctx context.Context, names []string) error {
	var asked, lost, slow int
	shown := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		begun := time.Now()
		_, err := net.DefaultResolver.LookupHost(ctx, names[i%len(names)])
		took := time.Since(begun)
		asked++
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			lost++
			fmt.Println("LOST", begun.UTC().Format(time.RFC3339Nano), took, err)
		case took > time.Second:
			slow++
			fmt.Println("SLOW", begun.UTC().Format(time.RFC3339Nano), took, names[i%len(names)])
		}
		if time.Since(shown) > 200*time.Millisecond {
			shown = time.Now()
			fmt.Printf("asked %d lost %d slow %d\n", asked, lost, slow)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
