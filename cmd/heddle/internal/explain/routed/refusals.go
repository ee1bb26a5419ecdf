package routed

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// gather is how long others of the requests that are sent at once are waited for, so that all that is refused is named.
const gather = 300 * time.Millisecond

// ours is the path of Heddle's own kinds. Others may be missing: the Gateway API's are looked for, and done without.
const ours = "/apis/" + v1alpha1.Group + "/"

// refusals are the lists that an API server refuses whoever waits: asked again, as an operator does, it says the same.
type refusals struct {
	mu        sync.Mutex
	first     time.Time
	forbidden []string
	unknown   []string
}

// noted returns a configuration whose clients note what is refused.
func (r *refusals) noted(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return noting{next, r} })
	return cfg
}

type noting struct {
	next http.RoundTripper
	to   *refusals
}

func (n noting) RoundTrip(req *http.Request) (*http.Response, error) {
	answer, err := n.next.RoundTrip(req)
	// Without the right to watch, or where a list may not be streamed, a plain list follows.
	if err == nil && req.URL.Query().Get("watch") == "" {
		n.to.note(req.URL.Path, answer.StatusCode)
	}
	return answer, err
}

func (r *refusals) note(url string, status int) {
	resource := path.Base(url)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case status == http.StatusForbidden && !slices.Contains(r.forbidden, resource):
		r.forbidden = append(r.forbidden, resource)
	case status == http.StatusNotFound && strings.HasPrefix(url, ours) && !slices.Contains(r.unknown, resource):
		r.unknown = append(r.unknown, resource)
	default:
		return
	}
	if r.first.IsZero() {
		r.first = time.Now()
	}
}

// err says what is refused, once all that is asked for together has had time to be.
func (r *refusals) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first.IsZero() || time.Since(r.first) < gather {
		return nil
	}
	slices.Sort(r.forbidden)
	slices.Sort(r.unknown)
	if len(r.unknown) > 0 {
		return fmt.Errorf("read the cluster: it knows no %s; remedy: `heddle install`, or choose another context with --context", strings.Join(r.unknown, ", "))
	}
	return errors.New("read the cluster: you may not list " + strings.Join(r.forbidden, ", ") +
		" in all namespaces; remedy: ask an administrator for the rights list and watch of these, or choose another context with --context")
}
