package routed

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestRefused: who may not list what is read, or asks a cluster that does not know it, is told so at once, with all that
// is refused, and not after the bound; who may list and not watch reads.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		refuse func(resource string, watch bool) int
		says   []string
	}{
		{"no right to two", func(resource string, _ bool) int {
			if resource == "nodes" || resource == "meshes" {
				return http.StatusForbidden
			}
			return 0
		}, []string{"may not list meshes, nodes", "ask an administrator"}},
		{"no Heddle", func(resource string, _ bool) int {
			if resource == "meshes" {
				return http.StatusNotFound
			}
			return 0
		}, []string{"it knows no meshes", "heddle install"}},
		{"no right to watch", func(_ string, watch bool) int {
			if watch {
				return http.StatusForbidden
			}
			return 0
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				watch := req.URL.Query().Get("watch") != ""
				switch code := tc.refuse(path.Base(req.URL.Path), watch); {
				case code != 0:
					w.WriteHeader(code)
					fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q}`, code, map[int]string{403: "Forbidden", 404: "NotFound"}[code])
				case watch:
					<-req.Context().Done()
				case strings.HasPrefix(req.URL.Path, "/apis/gateway."): // a cluster without the Gateway API
					w.WriteHeader(http.StatusNotFound)
				default:
					fmt.Fprint(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`)
				}
			}))
			t.Cleanup(server.CloseClientConnections)
			t.Cleanup(server.Close)
			started := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, _, err := ReadCluster(ctx, &rest.Config{Host: server.URL, QPS: -1}, false)
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("it says so after %v", took)
			}
			for _, want := range tc.says {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("it says %v, want %q", err, want)
				}
			}
			if tc.says == nil && err != nil {
				t.Error(err)
			}
		})
	}
}
