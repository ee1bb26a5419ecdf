package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestPostSendsOnce: what is told to be the last is, and what was sent and is not answered is lost.
func TestPostSendsOnce(t *testing.T) {
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 2:
			out.Header().Set("Connection", "close")
		case 3, 5:
		case 4:
			panic(http.ErrAbortHandler) // the connection ends, without an answer
		}
		if r.Method != http.MethodPost || r.ContentLength != int64(len(postBody)) {
			out.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(s.Close)
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	p, err := dialPoster(at)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, want := range []bool{false, true} {
		if last, err := p.post(false); err != nil || last != want {
			t.Fatalf("last: %v, %v; want %v", last, err, want)
		}
	}
	p, err = dialPoster(at)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if last, err := p.post(false); err != nil || last {
		t.Fatalf("last: %v, %v", last, err)
	}
	if _, err := p.post(false); err == nil || !strings.Contains(err.Error(), "read") || asked.Load() != 4 {
		t.Errorf("what is not answered: %v; it was asked %d times", err, asked.Load())
	}
}
