package publish

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

func meshOf() mesh.Settings {
	return mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example")}
}

func podOf(key mesh.Key, ready bool) mesh.Workload {
	return mesh.Workload{Key: key, Node: "n1", ServiceAccount: "default", Identity: spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/default"), Enrolled: true, Ready: ready}
}

// TestThrough: a waypoint is in force from when it is ready for the first time, and then
// for as long as it is named; who moves from one to another keeps the one until then.
func TestThrough(t *testing.T) {
	key := func(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }
	// world is what is compiled when the service web names a waypoint, and those are ready.
	world := func(names string, ready ...string) *kube.Compiled {
		c := &kube.Compiled{Settings: meshOf()}
		for _, name := range []string{"w1", "w2"} {
			pod := podOf(key(name+"-pod"), false)
			for _, r := range ready {
				pod.Ready = pod.Ready || r == name
			}
			c.Workloads = append(c.Workloads, pod)
			c.Services = append(c.Services, mesh.Service{Key: key(name), Endpoints: []mesh.Key{pod.Key}})
		}
		web := mesh.Service{Key: key("web"), Bypass: true}
		if names != "" {
			web.Waypoint = key(names)
		}
		c.Services = append(c.Services, web)
		return c
	}
	web := func(c *kube.Compiled) string { return c.Services[2].Waypoint.Name }
	view := func(c *kube.Compiled) *mesh.View {
		view, err := c.View("v")
		if err != nil {
			t.Fatal(err)
		}
		return view
	}
	th := &through{}
	var last *mesh.View
	for i, step := range []struct {
		names string
		ready []string
		want  string
	}{
		{"", nil, ""},
		{"w1", nil, ""}, // not ready yet
		{"w1", []string{"w2"}, ""},
		{"w1", []string{"w1"}, "w1"},
		{"w1", nil, "w1"},            // it fails: nobody gets around it
		{"gone", nil, "w1"},          // another that is not there
		{"w2", []string{"w1"}, "w1"}, // it moves
		{"w2", []string{"w1", "w2"}, "w2"},
		{"", []string{"w2"}, ""},
		{"w2", []string{"w2"}, "w2"},
	} {
		c := world(step.names, step.ready...)
		th.all(c, last)
		if got := web(c); got != step.want {
			t.Fatalf("step %d, %+v: through %q", i, step, got)
		}
		if c.Services[2].Bypass && step.want == "" && step.names != "" {
			t.Errorf("step %d: past no waypoint", i)
		}
		last = view(c)
		if due := th.due(last); due {
			t.Errorf("step %d: waits for what is ready", i)
		}
	}
	// A restart: nothing is known but what was kept.
	for kept, want := range map[string]string{"": "", "w1": "w1"} {
		th := &through{before: map[mesh.Key]mesh.Key{}}
		if kept != "" {
			th.before[key("web")] = key(kept)
		}
		c := world("w1")
		th.all(c, nil)
		if got := web(c); got != want {
			t.Errorf("kept %q: through %q", kept, got)
		}
	}
}

// TestThroughChanges: a change of single objects is held as a compilation of everything is,
// and a waypoint that becomes ready is noticed.
func TestThroughChanges(t *testing.T) {
	key := func(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }
	view := func(ready bool) *mesh.View {
		c := &kube.Compiled{Settings: meshOf(), Workloads: []mesh.Workload{podOf(key("pod"), ready)},
			Services: []mesh.Service{{Key: key("w"), Endpoints: []mesh.Key{key("pod")}}, {Key: key("web")}}}
		v, err := c.View("v")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	th := &through{waiting: map[mesh.Key]mesh.Key{}}
	web := &mesh.Service{Key: key("web"), Waypoint: key("w")}
	th.changed([]*mesh.Service{web}, view(false))
	if web.Waypoint != (mesh.Key{}) || th.due(view(false)) || !th.due(view(true)) {
		t.Errorf("not ready: through %v, due %v, and when it is %v", web.Waypoint, th.due(view(false)), th.due(view(true)))
	}
	web = &mesh.Service{Key: key("web"), Waypoint: key("w")}
	th.changed([]*mesh.Service{web}, view(true))
	if web.Waypoint != key("w") || th.due(view(true)) {
		t.Errorf("ready: through %v", web.Waypoint)
	}
	if got := Through(view(true)); len(got) != 0 {
		t.Errorf("in force: %v", got)
	}
}
