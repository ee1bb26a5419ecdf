package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// post makes requests until it is told to end, as visit does, and sends each once: what a browser would send again on
// another connection, and say nothing of it, is lost here.
func post(ctx context.Context, target, connections, rate string) error {
	at, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("URL: %w: write one such as http://NAME/", err)
	}
	var c requests
	var kept atomic.Int64
	return drive(ctx, connections, rate, func() { c.posts(ctx, at, pauses[int(kept.Add(1))%len(pauses)]) }, func() { c.postAlone(at) }, func() {
		fmt.Printf("own %d kept %d again %d lost %d\n", c.own.Load(), c.kept.Load(), c.again.Load(), c.lost.Load())
	})
}

// pauses are between two requests over a connection that is kept.
var pauses = []time.Duration{50 * time.Millisecond, 2 * time.Second}

// poster is a connection on which requests are written, and answers read, as they are.
type poster struct {
	net.Conn
	in *bufio.Reader
	at *url.URL
}

func dialPoster(at *url.URL) (*poster, error) {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(at.Hostname(), cmp.Or(at.Port(), "80")), patience)
	if err != nil {
		return nil, err
	}
	return &poster{conn, bufio.NewReader(conn), at}, nil
}

// postBody is what each request has.
const postBody = "what cannot be sent again"

// post makes one request, and says whether the answer is the connection's last (RFC 9112, section 9.6).
func (p *poster) post(end bool) (last bool, err error) {
	if err := p.SetDeadline(time.Now().Add(patience)); err != nil {
		return false, err
	}
	connection := ""
	if end {
		connection = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(p, "POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n%s", cmp.Or(p.at.RequestURI(), "/"), p.at.Host, connection, len(postBody), postBody); err != nil {
		return false, fmt.Errorf("write: %w", err)
	}
	answer, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return false, fmt.Errorf("read: %w", err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<20)); err != nil {
		return false, fmt.Errorf("read body: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return false, fmt.Errorf("status %d, %s", answer.StatusCode, cmp.Or(answer.Header.Get("X-Heddle-Reason"), "without a reason"))
	}
	return answer.Close, nil
}

// postAlone makes a request over a connection of its own.
func (c *requests) postAlone(at *url.URL) {
	began := time.Now()
	p, err := dialPoster(at)
	if err == nil {
		_, err = p.post(true)
		_ = p.Close() // it is answered, or lost
	}
	c.count(&c.own, "own", began, err)
}

// posts makes requests over one connection, and over another when an answer was the last on it.
func (c *requests) posts(ctx context.Context, at *url.URL, pause time.Duration) {
	for ctx.Err() == nil {
		began := time.Now()
		p, err := dialPoster(at)
		for last := false; err == nil && !last && ctx.Err() == nil; {
			began = time.Now()
			if last, err = p.post(false); err == nil {
				c.count(&c.kept, "kept", began, nil)
				time.Sleep(pause)
			}
		}
		if err != nil {
			c.count(&c.kept, "kept", began, err)
			time.Sleep(100 * time.Millisecond)
		}
		if p != nil {
			_ = p.Close() // it has ended, or it ends with the program
		}
		c.again.Add(1)
	}
}
