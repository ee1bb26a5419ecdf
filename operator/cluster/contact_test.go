package cluster

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// answering is an API server that does what it is told.
type answering func(*http.Request) (*http.Response, error)

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func status(code int) answering {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: io.NopCloser(strings.NewReader(""))}, nil
	}
}

func ask(ctx context.Context, t *testing.T, a *Answers, query string, server answering) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/"+query, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := (&counted{a, server}).RoundTrip(r); err == nil {
		response.Body.Close()
	}
}

func newAnswers() *Answers {
	_, a := Watch(&rest.Config{}, slog.New(slog.DiscardHandler))
	return a
}

func TestHealthOfTheAPIServer(t *testing.T) {
	refused := answering(func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") })
	later := time.Now().Add(time.Minute)
	a := newAnswers()
	if h := a.at(later); h.Err != nil || h.Took != 0 {
		t.Errorf("before the first request: %+v", h)
	}
	ask(t.Context(), t, a, "", refused)
	if h := a.at(time.Now()); h.Err != nil {
		t.Errorf("a moment after a request failed: %+v", h)
	}
	ask(t.Context(), t, a, "?watch=true", status(200))
	if h := a.at(later); h.Err == nil || h.Silent.IsZero() || !strings.Contains(h.Err.Error(), "connection refused") {
		t.Errorf("a minute after: %+v", h)
	}
	for code, silent := range map[int]bool{503: true, 504: true, 200: false, 403: false, 409: false} {
		a := newAnswers()
		ask(t.Context(), t, a, "", status(code))
		if h := a.at(later); (h.Err != nil) != silent {
			t.Errorf("after status %d: %+v", code, h)
		}
	}
	ask(t.Context(), t, a, "", status(200))
	if h := a.at(later); h.Err != nil || !h.Silent.IsZero() {
		t.Errorf("after an answer: %+v", h)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	ask(gone, t, a, "", refused)
	if h := a.at(later); h.Err != nil {
		t.Errorf("after a request that nobody waited for: %+v", h)
	}
}

func TestARequestThatIsNotAnswered(t *testing.T) {
	a := newAnswers()
	asked, answer := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		ask(t.Context(), t, a, "", func(r *http.Request) (*http.Response, error) {
			close(asked)
			<-answer
			return status(200)(r)
		})
	}()
	<-asked
	if h := a.at(time.Now().Add(silentAfter + time.Second)); h.Err == nil || !strings.Contains(h.Err.Error(), "does not answer") {
		t.Errorf("while it does not answer: %+v", h)
	}
	close(answer)
	<-done
	if h := a.at(time.Now().Add(time.Minute)); h.Err != nil {
		t.Errorf("after its answer: %+v", h)
	}
}

// TestASlowAPIServer: one slow answer says nothing.
func TestASlowAPIServer(t *testing.T) {
	a := newAnswers()
	for _, took := range []time.Duration{time.Millisecond, 9 * time.Second, 2 * time.Millisecond} {
		a.answered(nil, time.Now().Add(-took), false, nil)
	}
	if h := a.Health(); h.Took > SlowAfter {
		t.Errorf("after one slow answer of three: %+v", h)
	}
	for range lastAnswers {
		a.answered(nil, time.Now().Add(-3*time.Second), false, nil)
	}
	if h := a.Health(); h.Took < 3*time.Second {
		t.Errorf("after slow answers: %+v", h)
	}
}
