package mesh_test

import (
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestReceivers: those that policies about UDP speak of are followed through changes, and
// what is made of one is made once while it stays as it is.
func TestReceivers(t *testing.T) {
	about := []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "p"}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{443}}}}}}}
	with := func(name, addr string, datagrams []*mesh.Policy) *mesh.Workload {
		w := workload("shop", name, addr)
		w.Datagrams = datagrams
		return &w
	}
	names := func(v *mesh.View) (all []string) {
		for _, w := range v.Receivers() {
			all = append(all, w.Name)
		}
		return all
	}
	next := func(v *mesh.View, c mesh.Change) *mesh.View {
		t.Helper()
		next, err := v.With("r", c)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	v := mustView(t, settings(), []mesh.Workload{*with("a", "10.0.0.1", nil), *with("b", "10.0.0.2", about), *with("c", "10.0.0.3", nil)}, nil, nil)
	made := 0
	compile := func(*mesh.Workload) any { made++; return made }
	if got := names(v); !slices.Equal(got, []string{"b"}) {
		t.Errorf("receivers %v", got)
	}
	v.Receivers()[0].Of(compile)
	policy := next(v, mesh.Change{Policies: []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "tcp"}}}})
	if !policy.SameMembers(v) || policy.Receivers()[0].Of(compile) != 1 {
		t.Error("a policy about TCP makes receivers anew")
	}
	more := next(policy, mesh.Change{Workloads: []*mesh.Workload{with("a", "10.0.0.1", about)}})
	if got := names(more); !slices.Equal(got, []string{"a", "b"}) || more.SameMembers(policy) {
		t.Errorf("receivers %v, the same: %v", got, more.SameMembers(policy))
	}
	if more.Receivers()[1].Of(compile) != 1 || more.Receivers()[0].Of(compile) != 2 {
		t.Error("what did not change is made anew, or what did is not")
	}
	fewer := next(more, mesh.Change{Workloads: []*mesh.Workload{with("b", "10.0.0.2", nil)}, GoneWorkloads: []mesh.Key{{Namespace: "shop", Name: "a"}}})
	if got := names(fewer); len(got) > 0 {
		t.Errorf("receivers %v", got)
	}
	s := settings()
	if next(v, mesh.Change{Settings: &s}).SameMembers(v) {
		t.Error("other settings are taken for the same")
	}
	if next(v, mesh.Change{Services: []*mesh.Service{{Key: mesh.Key{Namespace: "shop", Name: "s"}}}}).SameMembers(v) {
		t.Error("another service is taken for the same")
	}
}
