package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// page is what is asked for by HTTP: metrics, in Prometheus' text format and over a
// connection of their own each time, or what was asked, and of whom.
func page(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/metrics" {
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprintln(w, "# TYPE workload_asked gauge\nworkload_asked 1")
		return
	}
	name, _ := os.Hostname() // "" is an answer, too
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(seen{name, r.URL.Path, r.Header}) // who asked has gone, or asks again
}

// seen is what a server says of a request.
type seen struct {
	Server string      `json:"server"`
	Path   string      `json:"path"`
	Fields http.Header `json:"fields"`
}

// got is an answer.
type got struct {
	Status   int    `json:"status"`
	Location string `json:"location,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Cookie   string `json:"cookie,omitempty"` // that it sets, NAME=VALUE
	Signed   string `json:"signed,omitempty"` // the name in the server's certificate
	seen
}

// browser follows no redirects, as its user wants to see them. One that keeps makes all
// requests over one connection, as long as that lives. It takes every certificate, and
// whose it is is looked at by who asked.
func browser(keeps bool) *http.Client {
	return &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DisableKeepAlives: !keeps, MaxConnsPerHost: 1, DialContext: (&net.Dialer{Timeout: patience}).DialContext,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get makes a request. Fields are of the form NAME=VALUE.
func get(ctx context.Context, by *http.Client, url string, fields ...string) (got, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return got{}, err
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		req.Header.Set(name, value)
	}
	req.Close = req.Header.Get("Connection") == "close"
	answer, err := by.Do(req)
	if err != nil {
		return got{}, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return got{}, err
	}
	g := got{Status: answer.StatusCode, Location: answer.Header.Get("Location"), Reason: answer.Header.Get("X-Heddle-Reason")}
	for _, c := range answer.Cookies() {
		g.Cookie = c.Name + "=" + c.Value
	}
	if answer.TLS != nil {
		g.Signed = answer.TLS.PeerCertificates[0].Subject.CommonName
	}
	if g.Status == http.StatusOK {
		err = json.Unmarshal(body, &g.seen)
	}
	return g, err
}

func fetch(ctx context.Context, number, url string, fields []string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	by := browser(true)
	defer by.CloseIdleConnections()
	out := json.NewEncoder(os.Stdout)
	for range n {
		g, err := get(ctx, by, url, fields...)
		if err != nil {
			return err
		}
		if err := out.Encode(g); err != nil {
			return err
		}
	}
	return nil
}

// visit makes requests until it is told to end, and prints the counts all the while.
func visit(ctx context.Context, url, connections, rate string) error {
	var c requests
	return drive(ctx, connections, rate, func() { c.visits(ctx, url) }, func() { c.visit(context.Background(), browser(false), url, &c.own) }, func() {
		fmt.Printf("own %d kept %d again %d lost %d\n", c.own.Load(), c.kept.Load(), c.again.Load(), c.lost.Load())
	})
}

// visits makes requests over one connection at a time.
func (c *requests) visits(ctx context.Context, url string) {
	by := browser(true)
	defer by.CloseIdleConnections()
	for ctx.Err() == nil {
		c.visit(context.Background(), by, url, &c.kept)
		time.Sleep(50 * time.Millisecond)
	}
}

// visit makes a request that is lost unless its answer is 200.
func (c *requests) visit(ctx context.Context, by *http.Client, url string, of *atomic.Int64) {
	began := time.Now()
	g, err := get(ctx, by, url)
	if err == nil && g.Status != http.StatusOK {
		err = fmt.Errorf("status %d, %s", g.Status, cmp.Or(g.Reason, "without a reason"))
	}
	if err != nil {
		c.lost.Add(1)
		fmt.Println("LOST", began.UTC().Format(time.RFC3339Nano), "after", time.Since(began).Round(time.Millisecond), err)
		return
	}
	of.Add(1)
}

// watch says when the answers become other ones.
func watch(ctx context.Context, url string) error {
	by, last := browser(true), ""
	defer by.CloseIdleConnections()
	for ctx.Err() == nil {
		g, err := get(ctx, by, url)
		now := fmt.Sprint(g.Status, " ", cmp.Or(g.Server, g.Reason, "nobody"))
		if err != nil {
			now = err.Error()
		}
		if now != last {
			last = now
			fmt.Println(time.Now().UTC().Format(time.RFC3339Nano), now)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
