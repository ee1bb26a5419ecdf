package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestPassing: who waits for what is installed asks a busy API server again, and gives up at once what will not pass.
func TestPassing(t *testing.T) {
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer slow.Close()
	defer close(release)
	_, late := (&http.Client{Timeout: 10 * time.Millisecond}).Get(slow.URL)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	_, refused := http.Get(gone.URL)
	daemonSets := schema.GroupResource{Group: "apps", Resource: "daemonsets"}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"no answer in time":  {late, true},
		"nobody listens":     {refused, true},
		"it has broken off":  {io.ErrUnexpectedEOF, true},
		"too many requests":  {apierrors.NewTooManyRequests("later", 1), true},
		"it took too long":   {apierrors.NewTimeoutError("later", 1), true},
		"etcd is away":       {apierrors.NewServiceUnavailable("later"), true},
		"no right":           {apierrors.NewForbidden(daemonSets, "heddle-agent", errors.New("no")), false},
		"an unknown object":  {apierrors.NewNotFound(daemonSets, "heddle-agent"), false},
		"who asks has ended": {context.Canceled, false},
		"nothing":            {nil, false},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("get DaemonSet heddle-system/heddle-agent: %w", err)
		}
		if got := passing(err); got != c.want {
			t.Errorf("%s: %v passes: %v, want %v", name, err, got, c.want)
		}
	}
}
