package report

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

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
