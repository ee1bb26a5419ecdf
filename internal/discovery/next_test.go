package discovery

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// viewWith is a view of a shape, changed before it is built.
func viewWith(t testing.TB, s shape, change func(ws []mesh.Workload, services []mesh.Service) ([]mesh.Workload, []mesh.Service)) *mesh.View {
	t.Helper()
	full := viewOf(t, s)
	var ws []mesh.Workload
	var services []mesh.Service
	var policies []mesh.Policy
	for _, w := range full.Workloads() {
		ws = append(ws, *w)
	}
	for _, v := range full.Services() {
		services = append(services, *v)
	}
	for _, p := range full.Policies() {
		policies = append(policies, *p)
	}
	ws, services = change(ws, services)
	v, err := mesh.NewView("", *full.Settings(), ws, services, policies)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// What is taken over from the snapshot before gives the same sets as encoding
// everything.
func TestNextIsTheSameAsANewSnapshot(t *testing.T) {
	s := shape{workloads: 40, services: 5, policies: 6, nodes: twoNodes}
	last := snapshotOf(t, viewWith(t, s, func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) { return ws, v }), 1)
	for name, change := range map[string]func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service){
		"nothing":      func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) { return ws, v },
		"first leaves": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) { return ws[1:], v[1:] },
		"last leaves":  func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) { return ws[:39], v[:4] },
		"not ready": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			ws[7].Ready = false
			return ws, v
		},
		"zone": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			ws[7].Zone = "a"
			return ws, v
		},
		"leaving": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			ws[3].Leaving = true
			return ws, v
		},
		"a port of some": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].Ports = slices.Clone(v[2].Ports)
			v[2].Ports[0].Only = v[2].Endpoints[:1]
			return ws, v
		},
		"a port elsewhere": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].Ports = slices.Clone(v[2].Ports)
			v[2].Ports[0].Elsewhere = []mesh.PortElsewhere{{TargetPort: 9, Endpoints: v[2].Endpoints[:1]}}
			return ws, v
		},
		"what is spoken at a port": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].Ports = slices.Clone(v[2].Ports)
			v[2].Ports[0].AppProtocol = "kubernetes.io/h2c"
			return ws, v
		},
		"unready": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].Unready = true
			return ws, v
		},
		"datagrams": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			ws[3].Datagrams = []*mesh.Policy{{Key: ws[3].Key, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{443}}}}}}}
			return ws, v
		},
		"a gate": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			ws[3].Gated = !ws[3].Gated
			return ws, v
		},
		"a port over UDP": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].UDPPorts = []mesh.ServicePort{{Port: 443, TargetPort: 8443}}
			return ws, v
		},
		"sticky": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].Sticky = true
			return ws, v
		},
		"sticky for longer": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[2].StickyFor = time.Minute
			return ws, v
		},
		"endpoint": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			v[0].Endpoints = v[0].Endpoints[1:]
			return ws, v
		},
		"new pod of the same name": func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
			ws[7].UID = "2"
			return ws, v
		},
	} {
		view := viewWith(t, s, change)
		whole, err := NewSnapshot(view, 2, testKey(1))
		if err != nil {
			t.Fatal(err)
		}
		next, err := last.Next(view, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range twoNodes {
			if !bytes.Equal(whole.HashFor(node), next.HashFor(node)) {
				t.Errorf("%s: the set of %s differs", name, node)
			}
		}
		if whole.View().Revision() != next.View().Revision() {
			t.Errorf("%s: revisions %q and %q", name, whole.View().Revision(), next.View().Revision())
		}
		if same := next.View().Revision() == last.View().Revision(); same != (name == "nothing") {
			t.Errorf("%s: the revision is the same as before: %v", name, same)
		}
	}
}

func TestOnlyItsNodeIsToldOfAPodThatIsBeingSetUp(t *testing.T) {
	view := viewWith(t, shape{workloads: 4, nodes: twoNodes}, func(ws []mesh.Workload, v []mesh.Service) ([]mesh.Workload, []mesh.Service) {
		for i := range ws {
			ws[i].NetNS, ws[i].UID = "", "uid-"+ws[i].Name
		}
		ws[1].Addresses, ws[1].Ready = nil, false
		return ws, v
	})
	pending := view.Workloads()[1]
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, view, 1))
	for _, node := range twoNodes {
		a := startAgent(t, o, node, nil)
		a.awaitEpoch(t, 1)
		w, told := a.store.View().Workload(pending.Key)
		if told != (node == pending.Node) || told && (w.UID != pending.UID || len(w.Addresses) > 0) {
			t.Errorf("%s is told of %v: %v %+v", node, pending.Key, told, w)
		}
		for _, w := range a.store.View().Workloads() {
			if (w.UID != "") != (w.Node == node) {
				t.Errorf("%s is told UID %q of a pod on %s", node, w.UID, w.Node)
			}
		}
	}
}

// A replica that began at an earlier moment has the same configuration under an
// older epoch. That is no step back; anything else under it is.
func TestTheSameFromAnEarlierMomentIsAccepted(t *testing.T) {
	view := viewOf(t, shape{workloads: 4, nodes: twoNodes})
	first := startOperator(t, nil)
	first.Publish(snapshotOf(t, view, 9))
	a := startAgent(t, first, "n1", nil)
	a.awaitEpoch(t, 9)
	second := startOperator(t, nil)
	second.Publish(snapshotOf(t, view, 5))
	a.wire.Lock()
	a.wire.dial = second.listener.DialContext
	a.wire.Unlock()
	first.stop()
	testenv.Eventually(t, time.Minute, "accepted", func() bool {
		s, nodes := a.Status(), second.Nodes()
		return s.Current && s.Epoch == 9 && len(nodes) == 1 && nodes[0].Epoch == 5 && nodes[0].LastError == ""
	})
	second.Publish(snapshotOf(t, viewOf(t, shape{workloads: 3, nodes: twoNodes}), 6))
	testenv.Eventually(t, time.Minute, "refused", func() bool { return strings.Contains(a.Status().LastError, "epoch 6 is older than the applied 9") })
	if got := len(a.store.View().Workloads()); got != 4 {
		t.Errorf("%d workloads", got)
	}
}
