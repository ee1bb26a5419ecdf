// Command probe stands in for Kubernetes' agnhost in one thing: `agnhost connect` over
// TCP succeeds only when the connection is still there a moment later. The agent of a
// mesh, like any transparent proxy, accepts a connection before it knows whether it may
// be; one that may not be is reset at once. Everything else is agnhost's own, at
// /agnhost.kubernetes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"
)

const (
	agnhost = "/agnhost.kubernetes"
	// settled is how long a connection that is refused takes to be reset, at most: that
	// of an answer from another node.
	settled = 500 * time.Millisecond
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "connect" && !slices.Contains(os.Args, "--protocol=udp") && !slices.Contains(os.Args, "--protocol=sctp") {
		if err := connect(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	err := syscall.Exec(agnhost, append([]string{agnhost}, os.Args[1:]...), os.Environ())
	fmt.Fprintf(os.Stderr, "run %s: %v\n", agnhost, err)
	os.Exit(1)
}

// connect takes the arguments of `agnhost connect`; the error begins with the word by
// which the tests tell what happened.
func connect(args []string) error {
	flags := flag.NewFlagSet("connect", flag.ContinueOnError)
	timeout := flags.Duration("timeout", 0, "bound on connecting")
	flags.String("protocol", "tcp", "tcp")
	// Flags come before and after the address.
	var address string
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return fmt.Errorf("UNKNOWN: %w", err)
		}
		if args = flags.Args(); len(args) > 0 {
			address, args = args[0], args[1:]
		}
	}
	if _, err := net.ResolveTCPAddr("tcp", address); err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	conn, err := net.DialTimeout("tcp", address, *timeout)
	if err != nil {
		return explain(err)
	}
	defer conn.Close()
	return explain(lasts(conn))
}

// lasts returns an error when the connection is reset within a moment. A server that
// says something, or nothing, or goodbye, is one that was reached.
func lasts(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(settled)); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func explain(err error) error {
	var failed net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return errors.New("REFUSED")
	case errors.As(err, &failed) && failed.Timeout():
		return errors.New("TIMEOUT")
	}
	return fmt.Errorf("OTHER: %w", err)
}
