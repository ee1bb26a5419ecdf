package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestRate(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, "hello")
	}))
	defer server.Close()
	timed, err := Rate(RateConfig{Address: server.Listener.Addr().String(), Connections: 4, PerSecond: 500, Duration: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if timed.Answered != 500 || asked.Load() != 500 || timed.Errors != 0 {
		t.Errorf("asked %d, got %+v, want 500 answers without error", asked.Load(), timed)
	}
	if timed.P50 <= 0 || timed.P99 < timed.P50 {
		t.Errorf("times make no sense: %+v", timed)
	}
}

// TestRateCountsAStall has the server stall once: all requests that were due
// meanwhile must count as slow, not only the one that it stalled on.
func TestRateCountsAStall(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 10 {
			time.Sleep(300 * time.Millisecond)
		}
		fmt.Fprint(w, "hello")
	}))
	defer server.Close()
	timed, err := Rate(RateConfig{Address: server.Listener.Addr().String(), Connections: 1, PerSecond: 100, Duration: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if timed.Answered != 50 || timed.P50 < 20_000 {
		t.Errorf("got %+v, want 50 answers and a median beyond 20 ms", timed)
	}
}

func TestRateCountsErrors(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	timed, err := Rate(RateConfig{Address: server.Listener.Addr().String(), Connections: 2, PerSecond: 100, Duration: 200 * time.Millisecond})
	if err != nil || timed.Answered != 0 || timed.Errors != 20 {
		t.Errorf("got %+v, %v, want 20 errors", timed, err)
	}
	if _, err := Rate(RateConfig{Address: "127.0.0.1:1", Connections: 1, PerSecond: 1, Duration: time.Second}); err == nil {
		t.Error("nobody listens, and it is no error")
	}
	if _, err := Rate(RateConfig{Address: "[::1]:80", Connections: 1, PerSecond: 1}); err == nil {
		t.Error("an IPv6 address was taken")
	}
}

// TestRateOfOneThatSheds: a 503 ends no connection where it is expected, and what comes late is not timely.
func TestRateOfOneThatSheds(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n := asked.Add(1); {
		case n == 1:
			time.Sleep(Late + 100*time.Millisecond)
		case n%2 == 0:
			w.WriteHeader(503)
		}
		fmt.Fprint(w, "hello")
	}))
	defer server.Close()
	cfg := RateConfig{Address: server.Listener.Addr().String(), Connections: 4, PerSecond: 100, Duration: 400 * time.Millisecond, Sheds: true}
	timed, err := Rate(cfg)
	if err != nil || timed.Answered != 20 || timed.Shed != 20 || timed.Errors != 0 || timed.Timely != 19 {
		t.Errorf("got %+v, %v, want 19 of 20 answers in time, and 20 that were shed", timed, err)
	}
	cfg.Sheds = false
	if timed, err := Rate(cfg); err != nil || timed.Shed != 0 || timed.Errors == 0 {
		t.Errorf("got %+v, %v, want errors", timed, err)
	}
}

func TestAnswer(t *testing.T) {
	for text, want := range map[string][2]bool{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":       {true, true},
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no":        {false, true},
		"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok":       {true, true},
		"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nok":       {true, false},
		"HTTP/1.1 200 OK\r\nContent-Le":                        {false, false},
		"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno":       {true, false},
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1": {true, false},
		"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nok":               {true, false},
	} {
		if whole, good := answer([]byte(text)); whole != want[0] || (whole && good != want[1]) {
			t.Errorf("%q: got %v, %v, want %v", text, whole, good, want)
		}
	}
}

// TestHold opens connections to Accept, and both end when their input does.
func TestHold(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	serverIn, stopServer := io.Pipe()
	accepted := make(chan error, 1)
	go func() { accepted <- Main([]string{"accept", "-address", address}, serverIn, io.Discard) }()
	testenv.Eventually(t, 5*time.Second, "Accept listens", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err == nil
	})
	holdIn, stopHold := io.Pipe()
	said, out := io.Pipe()
	holding := make(chan error, 1)
	go func() {
		holding <- Main([]string{"hold", "-address", address, "-connections", "20"}, holdIn, out)
	}()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var held Held
	if err := json.Unmarshal([]byte(line), &held); err != nil || held != (Held{Open: 20}) {
		t.Errorf("held %+v, %v", held, err)
	}
	for _, end := range []struct {
		stop *io.PipeWriter
		done chan error
	}{{stopHold, holding}, {stopServer, accepted}} {
		if err := end.stop.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-end.done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("it goes on after its input ended")
		}
	}
}

func TestMainRefuses(t *testing.T) {
	for _, args := range [][]string{nil, {"flood"}, {"rate", "-rate", "x"}} {
		if err := Main(args, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
