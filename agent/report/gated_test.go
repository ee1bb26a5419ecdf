package report

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/agent/drift"
	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// enrolments are said to be these.
type enrolments struct {
	Enrolments
	pods []enroll.Status
}

func (e enrolments) Status() []enroll.Status { return e.pods }

func (e enrolments) Gated() ([]enroll.Status, bool, <-chan struct{}) { return e.pods, false, nil }

// TestGated: a pod is said as its gate knows it, and without addresses when it is known not
// to be behind one.
func TestGated(t *testing.T) {
	web, db := mesh.Key{Namespace: "shop", Name: "web"}, mesh.Key{Namespace: "shop", Name: "db"}
	r := &Report{Enrolments: enrolments{pods: []enroll.Status{{Key: db}, {Key: web, Gated: &mesh.Workload{UID: "u1", NetNS: "/ns/web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}}}}
	said, _ := r.Gated()
	if want := (&meshpb.GatedPods{Pods: []*meshpb.GatedPod{{Namespace: "shop", Name: "db"},
		{Namespace: "shop", Name: "web", Uid: "u1", NetworkNamespace: "/ns/web", Addresses: [][]byte{{10, 0, 0, 1}}}}}); !proto.Equal(said, want) {
		t.Errorf("said: %v, want %v", said, want)
	}
}

// TestPodsAmiss: a pod that could not be enrolled is not as it should be, nor one that is not
// after two seconds; one that joins, is enrolled, or is being deleted, is no fault.
func TestPodsAmiss(t *testing.T) {
	failed, now, before := errors.New("no room"), time.Now(), time.Now().Add(-3*time.Second)
	for name, c := range map[string]struct {
		status enroll.Status
		want   int
	}{
		"enrolled":                   {enroll.Status{State: enroll.Enrolled, Since: before}, 0},
		"joining":                    {enroll.Status{State: enroll.Enrolling, Since: now}, 0},
		"not enrolled yet":           {enroll.Status{State: enroll.Enrolling, Since: before}, 1},
		"not changed":                {enroll.Status{State: enroll.Enrolled, Since: before, Err: failed}, 1},
		"failed":                     {enroll.Status{State: enroll.Failed, Since: now, Err: failed}, 1},
		"half gone, while it drains": {enroll.Status{State: enroll.Failed, Since: before, Err: failed, Workload: &mesh.Workload{Leaving: true}}, 0},
	} {
		r := &Report{Enrolments: enrolments{pods: []enroll.Status{c.status}}, Drift: &drift.Watch{}}
		if got := r.PodsAmiss(); got != c.want {
			t.Errorf("%s: %d pods are amiss, want %d", name, got, c.want)
		}
	}
}
