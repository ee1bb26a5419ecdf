package waypoints

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var update = flag.Bool("update", false, "rewrite golden files")

const (
	gateway = "/apis/gateway.networking.k8s.io/v1"
	shop    = "/namespaces/shop/"
)

func testProgram() Program {
	return Program{Image: "registry.example/heddle-waypoint:1.0", PullPolicy: corev1.PullIfNotPresent, PullSecrets: []string{"registry"},
		Operator: "heddle-operator.heddle-system.svc:15012", Audience: "heddle-operator"}
}

func testGateway(change ...func(*gatewayv1.Gateway)) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{TypeMeta: metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint", UID: "g1", Generation: 1},
		Spec:       gatewayv1.GatewaySpec{GatewayClassName: "heddle-waypoint", Listeners: []gatewayv1.Listener{{Name: "mesh", Port: 15009, Protocol: "heddle.dev/mesh"}}}}
	for _, c := range change {
		c(g)
	}
	return g
}

func annotated(key, value string) func(*gatewayv1.Gateway) {
	return func(g *gatewayv1.Gateway) { g.Annotations = map[string]string{"heddle.dev/" + key: value} }
}

// TestObjects compares what a waypoint consists of with golden files.
func TestObjects(t *testing.T) {
	for name, g := range map[string]*gatewayv1.Gateway{
		"plain":  testGateway(),
		"canary": testGateway(annotated("canary", "3")),
		"scaling": testGateway(annotated("autoscale", "2-10"), func(g *gatewayv1.Gateway) {
			g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
				Labels:      map[gatewayv1.LabelKey]gatewayv1.LabelValue{"team": "shop", "heddle.dev/mesh": "disabled", labelGateway: "another"},
				Annotations: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{"note": "ours"}}
		}),
	} {
		s, fault := read(g)
		if fault != nil {
			t.Fatal(fault.message)
		}
		program := testProgram()
		program.FIPS140 = name == "scaling"
		if name == "canary" {
			program.Canary = "registry.example/heddle-waypoint:1.1"
		}
		var text strings.Builder
		for _, o := range objects(&program, g, &s, "-----BEGIN CERTIFICATE-----\n", 7) {
			u, err := o.apply()
			if err != nil {
				t.Fatal(err)
			}
			one, err := yaml.Marshal(u.Object)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&text, "---\n%s", one)
		}
		file := "testdata/" + name + ".yaml"
		if *update {
			if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if text.String() != string(want) {
			t.Errorf("%s is not what is made (-update writes it anew):\n%s", file, text.String())
		}
	}
}

// TestObserved: what a Gateway says of flows and traces is for its own waypoint, what the operator is told for all others.
func TestObserved(t *testing.T) {
	for _, c := range []struct {
		name     string
		endpoint string
		sample   []string
		of       map[string]string
		want     string
	}{
		{"nothing", "", nil, nil, ""},
		{"of all", "http://collector:4317", []string{"/healthz=0", "0.1"}, nil, "HEDDLE_TRACE_ENDPOINT=http://collector:4317 HEDDLE_TRACE_SAMPLE=/healthz=0,0.1"},
		{"of one", "http://collector:4317", []string{"0.1"}, map[string]string{"trace-endpoint": "https://other:4317", "trace-sample": "1", "flow-sample": "shop/*=0.5"},
			"HEDDLE_FLOW_SAMPLE=shop/*=0.5 HEDDLE_TRACE_ENDPOINT=https://other:4317 HEDDLE_TRACE_SAMPLE=1"},
		{"none for one", "http://collector:4317", nil, map[string]string{"trace-endpoint": ""}, ""},
	} {
		g := testGateway(func(g *gatewayv1.Gateway) {
			g.Annotations = map[string]string{}
			for key, value := range c.of {
				g.Annotations["heddle.dev/"+key] = value
			}
		})
		s, fault := read(g)
		if fault != nil {
			t.Errorf("%s: %s", c.name, fault.message)
			continue
		}
		program := testProgram()
		program.TraceEndpoint, program.TraceSample = c.endpoint, c.sample
		if err := program.Check(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got []string
		for _, v := range (&waypoint{&program, g, &s, ""}).container().Env {
			if strings.HasPrefix(v.Name, "HEDDLE_TRACE") || strings.HasPrefix(v.Name, "HEDDLE_FLOW") {
				got = append(got, v.Name+"="+v.Value)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for _, wrong := range []Program{{TraceEndpoint: "collector"}, {TraceSample: []string{"2"}}} {
		if err := wrong.Check(); err == nil {
			t.Errorf("%+v is taken", wrong)
		}
	}
}

// TestTuned: what a Gateway says of the access log and of bounds is for its own waypoint, bound by bound, what the operator is told
// for all others; a pod has as long to end as its waypoint takes, and some more.
func TestTuned(t *testing.T) {
	for _, c := range []struct {
		name    string
		program Program
		of      map[string]string
		want    string
		grace   int64
	}{
		{"nothing", Program{}, nil, "DRAIN=30s", 45},
		{"none, and a mask", Program{AccessLog: "0", AccessLogMask: []string{"path"}}, map[string]string{"access-log-mask": "host"}, "DRAIN=30s", 45},
		{"of all", Program{AccessLog: "0.01", AccessLogMask: []string{"query", "path"}, Bounds: []string{"max-body=1048576", "drain=90s"}}, nil,
			"ACCESS_LOG=- ACCESS_LOG_SAMPLE=0.01 ACCESS_LOG_MASK=query,path MAX_BODY=1048576 DRAIN=90s", 105},
		{"of one", Program{AccessLog: "0.01", AccessLogMask: []string{"path"}, Bounds: []string{"max-body=1048576", "max-requests=500"}},
			map[string]string{"access-log": "1", "access-log-mask": "", "bounds": "max-requests=20000,drain=1500ms,stall-timeout=2m"},
			"ACCESS_LOG=- ACCESS_LOG_SAMPLE=1 ACCESS_LOG_MASK= MAX_REQUESTS=20000 MAX_BODY=1048576 STALL_TIMEOUT=2m DRAIN=1500ms", 17},
		{"off for one", Program{AccessLog: "1"}, map[string]string{"access-log": "0"}, "DRAIN=30s", 45},
		{"on for one", Program{}, map[string]string{"access-log": "1"}, "ACCESS_LOG=- ACCESS_LOG_SAMPLE=1 DRAIN=30s", 45},
	} {
		g := testGateway(func(g *gatewayv1.Gateway) {
			g.Annotations = map[string]string{}
			for key, value := range c.of {
				g.Annotations["heddle.dev/"+key] = value
			}
		})
		s, fault := read(g)
		if fault != nil {
			t.Errorf("%s: %s", c.name, fault.message)
			continue
		}
		if err := c.program.Check(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		pod := (&waypoint{&c.program, g, &s, ""}).pod()
		var got []string
		for _, v := range pod.Containers[0].Env {
			if v.Name != "HEDDLE_REPLICA" && v.Name != "HEDDLE_ADMIN_SOCKET" {
				got = append(got, strings.TrimPrefix(v.Name, "HEDDLE_")+"="+v.Value)
			}
		}
		if strings.Join(got, " ") != c.want || *pod.TerminationGracePeriodSeconds != c.grace {
			t.Errorf("%s: %q, want %q; it has %d s to end, want %d", c.name, got, c.want, *pod.TerminationGracePeriodSeconds, c.grace)
		}
	}
	for _, wrong := range []Program{{AccessLog: "on"}, {AccessLogMask: []string{"cookie"}}, {Bounds: []string{"listen=:80"}}} {
		if err := wrong.Check(); err == nil {
			t.Errorf("%+v is taken", wrong)
		}
	}
}

// TestRefused: what cannot be served says which field, and what to write.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*gatewayv1.Gateway)
		says   []string
	}{
		"a name that no Service has": {func(g *gatewayv1.Gateway) { g.Name = "a.b" }, []string{"InvalidParameters", "metadata.name"}},
		"no number":                  {annotated("replicas", "two"), []string{"InvalidParameters", "heddle.dev/replicas", "1 to 100"}},
		"too many":                   {annotated("replicas", "101"), []string{"heddle.dev/replicas"}},
		"none":                       {annotated("replicas", "0"), []string{"heddle.dev/replicas"}},
		"a negative canary":          {annotated("canary", "-1"), []string{"InvalidParameters", "heddle.dev/canary", "0 to 100"}},
		"scales from":                {annotated("autoscale", "2"), []string{"heddle.dev/autoscale", "2-10"}},
		"scales down":                {annotated("autoscale", "5-2"), []string{"heddle.dev/autoscale"}},
		"no share":                   {annotated("flow-sample", "shop/*=2"), []string{"InvalidParameters", "heddle.dev/flow-sample", "from 0 to 1"}},
		"no rule":                    {annotated("trace-sample", "x"), []string{"heddle.dev/trace-sample"}},
		"no endpoint":                {annotated("trace-endpoint", "collector:4317"), []string{"heddle.dev/trace-endpoint", "http://HOST:PORT"}},
		"no share of the log":        {annotated("access-log", "on"), []string{"InvalidParameters", "metadata.annotations[heddle.dev/access-log]", "from 0"}},
		"no field of the log":        {annotated("access-log-mask", "query,cookie"), []string{"metadata.annotations[heddle.dev/access-log-mask]", "cookie", "user_agent"}},
		"no bound":                   {annotated("bounds", "listen=:80"), []string{"InvalidParameters", "metadata.annotations[heddle.dev/bounds]", "max-requests=20000"}},
		"a bound beyond its own":     {annotated("bounds", "max-buffered-bytes=1073741824"), []string{"metadata.annotations[heddle.dev/bounds]", "from 1048576 to 536870912"}},
		"an address":                 {func(g *gatewayv1.Gateway) { g.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Value: "10.0.0.1"}} }, []string{"UnsupportedAddress", "spec.addresses"}},
		"HTTP":                       {func(g *gatewayv1.Gateway) { g.Spec.Listeners[0].Protocol = "HTTP" }, []string{"ListenersNotValid", "spec.listeners[0].protocol", "heddle.dev/mesh"}},
		"another port":               {func(g *gatewayv1.Gateway) { g.Spec.Listeners[0].Port = 80 }, []string{"spec.listeners[0].port", "15009"}},
		"a host":                     {func(g *gatewayv1.Gateway) { g.Spec.Listeners[0].Hostname = ptr(gatewayv1.Hostname("a.b")) }, []string{"spec.listeners[0].hostname"}},
		"TLS":                        {func(g *gatewayv1.Gateway) { g.Spec.Listeners[0].TLS = &gatewayv1.ListenerTLSConfig{} }, []string{"spec.listeners[0].tls"}},
		"two listeners":              {func(g *gatewayv1.Gateway) { g.Spec.Listeners = append(g.Spec.Listeners, g.Spec.Listeners[0]) }, []string{"spec.listeners: there are 2"}},
		"parameters": {func(g *gatewayv1.Gateway) {
			g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Kind: "ConfigMap", Name: "x"}}
		}, []string{"spec.infrastructure.parametersRef"}},
	} {
		g := testGateway(c.change)
		_, fault := read(g)
		if fault == nil {
			t.Errorf("%s is taken", name)
			continue
		}
		for _, want := range c.says {
			if !strings.Contains(string(fault.reason)+" "+fault.message, want) {
				t.Errorf("%s: %s %s, want %q", name, fault.reason, fault.message, want)
			}
		}
		status := statusOf(g, &state{fault: fault}, time.Now())
		if a := status.Conditions[0]; a.Status != metav1.ConditionFalse || a.ObservedGeneration != 1 || status.Conditions[1].Status != metav1.ConditionFalse {
			t.Errorf("%s: %+v", name, status.Conditions)
		}
	}
}

// world is an API server, and who runs its waypoints.
type world struct {
	*clustertest.Server
	ready atomic.Int32
	roots atomic.Pointer[string]
	lost  atomic.Bool
	log   testenv.Log
}

func start(t *testing.T, change ...func(*Program)) *world {
	t.Helper()
	program := testProgram()
	for _, c := range change {
		c(&program)
	}
	w := &world{Server: clustertest.Start(t)}
	w.Serve("gateway.networking.k8s.io/v1", "gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants")
	w.setRoots("first")
	source := cluster.NewSource(w.Config(), false, slog.New(slog.DiscardHandler))
	client, err := cluster.GatewayClient(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	events, err := typedcorev1.NewForConfig(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	all, err := dynamic.NewForConfig(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	runner, err := New(Config{Program: program, Routing: source.Routing, Ready: func(mesh.Key) int { return int(w.ready.Load()) }, Roots: func() string { return *w.roots.Load() },
		Lost: func() map[mesh.Key]mesh.Key {
			if !w.lost.Load() {
				return nil
			}
			return map[mesh.Key]mesh.Key{{Namespace: "shop", Name: "web"}: {Namespace: "shop", Name: "old"}}
		},
		Dynamic: all, Gateway: client, Events: events, Again: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(&w.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	for _, run := range []func(context.Context) error{source.Run, runner.Run} {
		g.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); g.Wait() })
	testenv.Eventually(t, 20*time.Second, "everything is read", func() bool { return source.Synced() == nil })
	return w
}

func (w *world) setRoots(text string) { w.roots.Store(&text) }

// condition is "STATUS REASON GENERATION: MESSAGE" of an object's.
func (w *world) condition(path, name, kind string) string {
	status, _ := w.Get(path, name)["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, c := range conditions {
		if c := c.(map[string]any); c["type"] == kind {
			return fmt.Sprint(c["status"], " ", c["reason"], " ", c["observedGeneration"], ": ", c["message"])
		}
	}
	return ""
}

func (w *world) await(t *testing.T, kind, want string) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, kind+" is "+want, func() bool {
		return strings.HasPrefix(w.condition(gateway+shop+"gateways", "waypoint", kind), want)
	})
}

// put is an update by somebody who does not touch the status.
func (w *world) put(t *testing.T, g *gatewayv1.Gateway) {
	t.Helper()
	o := clustertest.Object{"apiVersion": g.APIVersion, "kind": g.Kind, "metadata": g.ObjectMeta, "spec": g.Spec}
	if was := w.Get(gateway+shop+"gateways", g.Name); was != nil {
		o["status"] = was["status"]
	}
	w.Put(t, gateway+shop+"gateways", o)
}

func (w *world) spec(path, name string) map[string]any {
	spec, _ := w.Get(path, name)["spec"].(map[string]any)
	return spec
}

const (
	deployments = "/apis/apps/v1" + shop + "deployments"
	scalers     = "/apis/autoscaling/v2" + shop + "horizontalpodautoscalers"
	services    = "/api/v1" + shop + "services"
)

// scale changes the Deployment as somebody else does: a copy of what the server has.
func (w *world) scale(t *testing.T, replicas float64) {
	t.Helper()
	d := maps.Clone(w.Get(deployments, "waypoint"))
	spec := maps.Clone(d["spec"].(map[string]any))
	spec["replicas"], d["spec"] = replicas, spec
	w.Put(t, deployments, d)
}

// TestAWaypoint is run, says how it is, follows its Gateway, and is put back when somebody
// changes it.
func TestAWaypoint(t *testing.T) {
	w := start(t)
	testenv.Eventually(t, 10*time.Second, "the class is made, and accepted", func() bool {
		return strings.HasPrefix(w.condition(gateway+"/gatewayclasses", "heddle-waypoint", "Accepted"), "True Accepted 1")
	})
	w.put(t, testGateway())
	w.await(t, "Accepted", "True Accepted 1")
	w.await(t, "Programmed", "False AddressNotAssigned 1")
	if n := w.spec(deployments, "waypoint")["replicas"]; n != 2.0 {
		t.Errorf("%v replicas", n)
	}
	svc := w.Get(services, "waypoint")
	svc["spec"].(map[string]any)["clusterIPs"] = []any{"10.96.0.9"}
	w.Put(t, services, svc)
	w.await(t, "Programmed", "False Pending 1: no replica is ready")
	w.ready.Store(1)
	w.await(t, "Programmed", "True Programmed 1")
	status := w.Get(gateway+shop+"gateways", "waypoint")["status"].(map[string]any)
	if a := fmt.Sprint(status["addresses"]); !strings.Contains(a, "10.96.0.9") {
		t.Errorf("addresses %s", a)
	}
	if l := fmt.Sprint(status["listeners"]); !strings.Contains(l, "name:mesh") || strings.Count(l, "status:True") != 3 {
		t.Errorf("listeners %s", l)
	}
	patches := func() int { return w.Requests()["patch gateway.networking.k8s.io/gateways/status waypoint"] }
	time.Sleep(1500 * time.Millisecond) // what was written has been read by then
	n := patches()
	time.Sleep(2500 * time.Millisecond)
	if patches() != n {
		t.Errorf("the status was written %d times more, and nothing had changed", patches()-n)
	}
	// Somebody changes the Deployment: it is put back.
	w.scale(t, 0)
	testenv.Eventually(t, 10*time.Second, "it is put back", func() bool { return w.spec(deployments, "waypoint")["replicas"] == 2.0 })
	w.setRoots("second")
	testenv.Eventually(t, 10*time.Second, "new roots arrive", func() bool {
		return strings.Contains(fmt.Sprint(w.spec(deployments, "waypoint")["template"]), "heddle.dev/roots:second")
	})
	w.put(t, testGateway(annotated("autoscale", "3-5")))
	testenv.Eventually(t, 10*time.Second, "it scales", func() bool { return w.spec(scalers, "waypoint")["maxReplicas"] == 5.0 })
	// The scaler has the number of replicas now.
	w.scale(t, 4)
	time.Sleep(3 * time.Second)
	if n := w.spec(deployments, "waypoint")["replicas"]; n != 4.0 {
		t.Errorf("the scaler said 4, and there are %v", n)
	}
	w.put(t, testGateway(annotated("replicas", "3")))
	testenv.Eventually(t, 10*time.Second, "it scales no more", func() bool {
		return w.Get(scalers, "waypoint") == nil && w.spec(deployments, "waypoint")["replicas"] == 3.0
	})
	w.ready.Store(0)
	w.await(t, "Programmed", "False Pending")
}

// TestNothingOfOthersIsTouched: what has the waypoint's name and is not its own stays, and
// the Gateway says so; a Gateway of another class is nobody's here.
func TestNothingOfOthersIsTouched(t *testing.T) {
	w := start(t)
	w.Put(t, services, clustertest.Object{"apiVersion": "v1", "kind": "Service", "metadata": clustertest.Object{"name": "waypoint", "namespace": "shop"}, "spec": clustertest.Object{"selector": clustertest.Object{"app": "mine"}}})
	w.Put(t, gateway+shop+"gateways", testGateway(func(g *gatewayv1.Gateway) { g.Name, g.Spec.GatewayClassName, g.UID = "other", "another", "g2" }))
	w.put(t, testGateway())
	w.await(t, "Programmed", "False Invalid 1: there is a Service waypoint that is not the waypoint's")
	if s := fmt.Sprint(w.spec(services, "waypoint")["selector"]); s != "map[app:mine]" {
		t.Errorf("somebody's Service selects %s", s)
	}
	if w.Get(deployments, "waypoint") != nil || w.Get(deployments, "other") != nil || w.condition(gateway+shop+"gateways", "other", "Accepted") != "" {
		t.Error("something was made of it, or of another class's Gateway")
	}
	testenv.Eventually(t, 10*time.Second, "an event says so", func() bool { return strings.Contains(fmt.Sprint(w.List("events")), EventReason) })
	w.Delete(services, "waypoint")
	testenv.Eventually(t, 10*time.Second, "it goes on by itself", func() bool { return w.Get(deployments, "waypoint") != nil })
}

// TestAWaypointThatIsGone is said on the services that are cut off.
func TestAWaypointThatIsGone(t *testing.T) {
	w := start(t)
	for _, name := range []string{"web", "other"} {
		w.Put(t, services, clustertest.Object{"apiVersion": "v1", "kind": "Service", "metadata": clustertest.Object{"name": name, "namespace": "shop"}})
	}
	time.Sleep(1500 * time.Millisecond)
	if events := w.List("events"); len(events) > 0 {
		t.Errorf("nothing is lost, and events say %v", events)
	}
	w.lost.Store(true)
	testenv.Eventually(t, 10*time.Second, "an event says so", func() bool { return len(w.List("events")) > 0 })
	time.Sleep(1500 * time.Millisecond)
	events := w.List("events")
	if text := fmt.Sprint(events); len(events) != 1 || !strings.Contains(text, EventGone) || !strings.Contains(text, "name:web") || !strings.Contains(text, "heddle waypoint apply -n shop --name old") {
		t.Errorf("events: %v", events)
	}
}

// TestCanary: an image is tried beside the waypoint's own by as many replicas as its Gateway says, which are of its Service, for as long as
// the Gateway says so; who asks an operator that has none to try is told.
func TestCanary(t *testing.T) {
	w := start(t, func(p *Program) { p.Canary = "registry.example/heddle-waypoint:1.1" })
	w.put(t, testGateway(annotated("canary", "3")))
	testenv.Eventually(t, 10*time.Second, "it is tried", func() bool { return w.spec(deployments, "waypoint-canary")["replicas"] == 3.0 })
	tried, own := fmt.Sprint(w.spec(deployments, "waypoint-canary")), fmt.Sprint(w.spec(deployments, "waypoint"))
	if !strings.Contains(tried, "image:registry.example/heddle-waypoint:1.1") || !strings.Contains(own, "image:registry.example/heddle-waypoint:1.0") || strings.Contains(own, "canary") {
		t.Errorf("the waypoint is %s, and what is tried %s", own, tried)
	}
	labels := w.spec(deployments, "waypoint-canary")["template"].(map[string]any)["metadata"].(map[string]any)["labels"].(map[string]any)
	for key, value := range w.spec(services, "waypoint")["selector"].(map[string]any) {
		if labels[key] != value {
			t.Errorf("what is tried has the labels %v, and the Service selects %s=%v", labels, key, value)
		}
	}
	w.put(t, testGateway(annotated("canary", "0")))
	testenv.Eventually(t, 10*time.Second, "it is over", func() bool { return w.spec(deployments, "waypoint-canary")["replicas"] == 0.0 })
	if n := w.spec(deployments, "waypoint")["replicas"]; n != 2.0 {
		t.Errorf("%v replicas", n)
	}

	w = start(t)
	somebodys := clustertest.Object{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": clustertest.Object{"name": "waypoint-canary", "namespace": "shop"}, "spec": clustertest.Object{"replicas": 5}}
	w.Put(t, deployments, somebodys)
	w.put(t, testGateway(annotated("canary", "1")))
	w.await(t, "Accepted", "True Accepted 1: the operator runs it; heddle.dev/canary has no effect, as there is no image to try: name one in operator.waypoints.canaryImage")
	testenv.Eventually(t, 10*time.Second, "it is run", func() bool { return w.Get(deployments, "waypoint") != nil })
	if n := w.spec(deployments, "waypoint-canary")["replicas"]; n != 5.0 {
		t.Errorf("somebody's own Deployment has %v replicas", n)
	}
}

// TestWithoutRights: what the operator may not do is logged, and tried again.
func TestWithoutRights(t *testing.T) {
	w := start(t)
	w.Forbid(func(r clustertest.Request) bool { return r.Resource == "deployments" && r.Verb == "patch" })
	w.put(t, testGateway())
	testenv.Eventually(t, 10*time.Second, "the log says so", func() bool { return strings.Contains(w.log.String(), "waypoints are not all as they are to be") })
	w.Forbid(nil)
	testenv.Eventually(t, 10*time.Second, "it goes on by itself", func() bool { return w.Get(deployments, "waypoint") != nil })
}

// TestNoWaypointsAreRun: an operator that was installed without them, and has no rights to make one, says so on each Gateway and in
// its log, and tries nothing.
func TestNoWaypointsAreRun(t *testing.T) {
	w := start(t, func(p *Program) { p.Image = "" })
	w.Forbid(func(r clustertest.Request) bool {
		return r.Verb != "list" && r.Verb != "watch" && r.Resource != "events" && !strings.HasPrefix(r.Resource, "gateway")
	})
	w.put(t, testGateway())
	w.await(t, "Accepted", "True Accepted 1")
	w.await(t, "Programmed", "False Invalid 1: this operator runs no waypoints: it was installed with operator.waypoints.enabled=false")
	testenv.Eventually(t, 10*time.Second, "an event says so", func() bool { return strings.Contains(fmt.Sprint(w.List("events")), "operator.waypoints.enabled=false") })
	time.Sleep(1500 * time.Millisecond)
	for request, n := range w.Requests() {
		if strings.Contains(request, "deployments") || strings.Contains(request, "serviceaccounts") || strings.Contains(request, "disruption") || strings.Contains(request, "autoscalers") {
			t.Errorf("%q was asked for %d times", request, n)
		}
	}
	if text := w.log.String(); !strings.Contains(text, "no waypoints are run") || strings.Contains(text, "not all as they are to be") {
		t.Errorf("the log says %s", text)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a runner of nothing")
	}
}
