package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Held is what Hold prints once it holds what it could open.
type Held struct {
	Open   int `json:"open"`
	Errors int `json:"errors"`
}

// openers is how many connections Hold opens at once.
const openers = 8

// Hold opens connections, has one byte echoed on each so that it is known to
// reach the other end, prints a Held, and keeps them open and silent until in
// ends.
func Hold(address string, count int, in io.Reader, out io.Writer) error {
	var mu sync.Mutex
	var held []net.Conn
	failed := 0
	var group sync.WaitGroup
	places := make(chan struct{}, openers)
	for range count {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			c, err := open(address)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				return
			}
			held = append(held, c)
		})
	}
	group.Wait()
	defer func() {
		for _, c := range held {
			_ = c.Close() // nothing unsent matters
		}
	}()
	if _, err := fmt.Fprintf(out, "{\"open\":%d,\"errors\":%d}\n", len(held), failed); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

func open(address string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	b := []byte{'x'}
	err = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err == nil {
		_, err = c.Write(b)
	}
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Accept echoes what each connection says, until in ends.
func Accept(address string, in io.Reader) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, in) // an error ends it as well
	}()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		group.Go(func() { echo(ctx, c) })
	}
}

func echo(ctx context.Context, c net.Conn) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}
