package cni

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestNamespaceIsRemembered: where pods are labelled themselves, and the last of them has ended, the namespace counts as one
// of the mesh's for a day, whatever else is in it, also for the next agent: a pod that nobody has told of waits. One whose pods
// have left the mesh does not.
func TestNamespaceIsRemembered(t *testing.T) {
	w := newWorld(t, nil)
	ns := testenv.NewNetNS(t, "cni")
	w.configure(t, pod("jobs/web", false), pod("jobs/run-1", true), pod("left/a", true))
	testenv.Eventually(t, 5*time.Second, "both are the mesh's", func() bool {
		return w.list.standing("jobs") == cniwire.Enrolled && w.list.standing("left") == cniwire.Enrolled
	})
	w.configure(t, pod("jobs/web", false), pod("left/a", false))
	testenv.Eventually(t, 5*time.Second, "one has left it", func() bool { return w.list.standing("left") == cniwire.NotEnrolled })
	w.stale(errors.New("down"))
	w.want(t, request(cniwire.OpAdd, "jobs/run-2", ns), cniwire.Wait)
	w.want(t, request(cniwire.OpAdd, "left/b", ns), cniwire.Outside)
	testenv.Eventually(t, 5*time.Second, "it is on disk", func() bool {
		got, err := cniwire.LoadNamespaces(w.cfg.List)
		return err == nil && len(got.Remembered) == 1 && got.Standing("jobs") == cniwire.Enrolled
	})
	next := newWorld(t, func(c *Config) { c.List = w.cfg.List })
	next.configure(t, pod("jobs/web", false))
	next.stale(errors.New("down"))
	next.want(t, request(cniwire.OpAdd, "jobs/run-3", ns), cniwire.Wait)
}

// TestRememberedForADay: not longer, also when nothing is there in between; and not more than so many.
func TestRememberedForADay(t *testing.T) {
	store := mesh.NewStore()
	l := newNamespaceList(filepath.Join(t.TempDir(), "list"), store, slog.New(slog.DiscardHandler))
	now := time.Now()
	standing := func(of string, workloads ...mesh.Workload) cniwire.Standing {
		t.Helper()
		view, err := mesh.NewView("1", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("example.test")}, workloads, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		l.current = l.next(view, now)
		return l.current.Standing(of)
	}
	other := pod("jobs/web", false)
	if got := standing("jobs", other, pod("jobs/run-1", true)); got != cniwire.Enrolled || len(l.current.Remembered) > 0 {
		t.Errorf("with a pod of the mesh: %v, %v", got, l.current.Remembered)
	}
	if got := standing("jobs"); got != cniwire.Enrolled {
		t.Errorf("without pods: %v", got)
	}
	now = now.Add(remembered - time.Minute)
	if got := standing("jobs", other); got != cniwire.Enrolled {
		t.Errorf("almost a day later: %v", got)
	}
	now = now.Add(2 * time.Minute)
	if got := standing("jobs", other); got != cniwire.NotEnrolled || len(l.current.Remembered) > 0 {
		t.Errorf("a day later: %v, %v", got, l.current.Remembered)
	}
	many := make([]mesh.Workload, maxRemembered+10)
	for i := range many {
		many[i] = pod(fmt.Sprintf("n%d/run", i), true)
	}
	standing("", many...)
	if standing(""); len(l.current.Remembered) != maxRemembered {
		t.Errorf("%d are remembered, want %d", len(l.current.Remembered), maxRemembered)
	}
}
