package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
)

// A proxy that may have mostUnderWay requests, and whose server takes so long over each, has room for so many each second, less than
// the machine has that it shares with the load.
const (
	mostUnderWay = 32
	takesOver    = 50 * time.Millisecond
	room         = float64(mostUnderWay) / (float64(takesOver) / float64(time.Second))
	// offering is for how long requests of HTTP/1.1 are offered; h2load knows whole seconds only.
	offering = 700 * time.Millisecond
	// offerers is how many connections of HTTP/2 requests are sent on, streams how many at a time on each.
	offerers, streams = 16, 100
)

// full is a server that takes its time, and a proxy of each subject in front of it that is soon full.
type full struct {
	server  *http.Server
	ended   chan struct{}
	proxies map[string]*proxy
}

// startFull starts them, and looks that each answers in both versions of HTTP.
func (b *bench) startFull(ctx context.Context) (*full, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &full{proxies: map[string]*proxy{}, ended: make(chan struct{}), server: &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		time.Sleep(takesOver)
		_, _ = io.WriteString(out, body) // who asked has gone, or asks again
	})}}
	f.server.Protocols.SetHTTP1(true)
	f.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { defer close(f.ended); _ = f.server.Serve(l) }() // until stop
	for _, s := range subjects() {
		p := b.proxy(s, "-full")
		p.plain = l.Addr().(*net.TCPAddr).Port
		p.two, p.most = p.plain, mostUnderWay
		err := p.start(ctx)
		if err == nil {
			f.proxies[s.name] = p
			err = get(ctx, p.address(), "/two/", body, true)
		}
		if err != nil {
			f.stop()
			return nil, fmt.Errorf("%s in front of a slow server: %w", s.name, err)
		}
	}
	return f, nil
}

func (f *full) stop() {
	for _, p := range f.proxies {
		p.stop()
	}
	_ = f.server.Close() // nothing is under way that matters
	<-f.ended
}

// overload offers one, two and three times what there is room for, in both versions of HTTP.
func overload(ctx context.Context, b *bench, p *proxy, _ time.Duration) (samples []sample, _ error) {
	p = b.full.proxies[p.name]
	for _, version := range []struct {
		metric string
		offer  func(context.Context, *proxy, float64) (perSecond float64, failed int, err error)
	}{{"way_good_h1_", b.offer}, {"way_good_h2_", b.offerTwo}} {
		of := room
		for times := 1; times <= 3; times++ {
			good, failed, err := version.offer(ctx, p, float64(times)*room)
			if err == nil && good == 0 {
				err = errors.New("nothing was served in time")
			}
			if err != nil {
				return samples, fmt.Errorf("%d × of what it has room for: %w", times, err)
			}
			samples = append(samples, sample{version.metric + strconv.Itoa(times), good / of, failed})
			if times == 1 {
				of = good
			}
		}
	}
	return samples, p.truncate()
}

// offer sends requests of HTTP/1.1, and returns how many of them were served in time, each second.
func (b *bench) offer(ctx context.Context, p *proxy, perSecond float64) (float64, int, error) {
	out, err := output(ctx, offering+grace, b.self, "load", "rate", "-sheds", "-address", p.address(), "-connections", "256",
		"-rate", strconv.Itoa(int(perSecond)), "-duration", offering.String())
	var timed load.Timed
	if err == nil {
		err = json.Unmarshal([]byte(out), &timed)
	}
	return float64(timed.Timely) / offering.Seconds(), timed.Errors, err
}

// offerTwo does the same in HTTP/2.
func (b *bench) offerTwo(ctx context.Context, p *proxy, perSecond float64) (_ float64, failed int, err error) {
	log := filepath.Join(b.scratch, "offered")
	defer func() { err = errors.Join(err, os.RemoveAll(log)) }()
	if _, err := h2load(ctx, p, time.Second, "/two/", "-c", strconv.Itoa(offerers), "-m", strconv.Itoa(streams),
		"--rps", strconv.Itoa(int(perSecond/offerers)), "--log-file", log); err != nil {
		return 0, 0, err
	}
	f, err := os.Open(log)
	if err != nil {
		return 0, 0, err
	}
	good, failed, err := timely(f)
	return float64(good), failed, errors.Join(err, f.Close())
}

// timely counts in h2load's log what was served in time, and what was neither served nor shed.
func timely(log io.Reader) (good, failed int, err error) {
	err = eachAnswer(log, func(status string, us float64) {
		switch {
		case status == "200" && us <= float64(load.Late.Microseconds()):
			good++
		case status != "200" && status != "503":
			failed++
		}
	})
	return good, failed, err
}
