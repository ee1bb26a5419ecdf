package routed

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// routedObjects are a Service and a route of it, by a path.
func routedObjects(path string, generation int64) *routes.Objects {
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "cart", UID: "1", Generation: generation}
	kind, port := gatewayv1.Kind("Service"), gatewayv1.PortNumber(80)
	group, prefix := gatewayv1.Group(""), gatewayv1.PathMatchPathPrefix
	r := &gatewayv1.HTTPRoute{ObjectMeta: meta}
	r.Spec.ParentRefs = []gatewayv1.ParentReference{{Group: &group, Kind: &kind, Name: "cart"}}
	rule := gatewayv1.HTTPRouteRule{Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: &prefix, Value: &path}}}}
	rule.BackendRefs = []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{Name: "cart", Port: &port}}}}
	r.Spec.Rules = []gatewayv1.HTTPRouteRule{rule}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"}}
	s.Spec.ClusterIP, s.Spec.Ports = "10.1.0.1", []corev1.ServicePort{{Port: 80}}
	return &routes.Objects{HTTPRoutes: []*gatewayv1.HTTPRoute{r}, Services: []*corev1.Service{s}}
}

// TestRoutesAreCompiledWhenTheyChange, and then only; what was last good goes on, whoever
// was the one who knew it as good; and what comes to the same is told as it was.
func TestRoutesAreCompiledWhenTheyChange(t *testing.T) {
	asked, changed, objects := 0, make(chan struct{}), routedObjects("/a", 1)
	r := Routing{source: func() (*routes.Objects, <-chan struct{}) {
		asked++
		return objects, changed
	}}
	change := func(to *routes.Objects) {
		was := changed
		objects, changed = to, make(chan struct{})
		close(was)
		r.Refresh(slog.New(slog.DiscardHandler))
	}
	path := func() string { return r.told.All()[0].Rules[0].Matches[0].Path.Value }
	log := slog.New(slog.DiscardHandler)
	r.Refresh(log)
	r.Refresh(log)
	if asked != 1 || path() != "/a" {
		t.Fatalf("asked %d times, the path is %q", asked, path())
	}
	told := r.told
	change(routedObjects("/a", 2))
	if asked != 2 || r.told != told {
		t.Error("what comes to the same is told anew")
	}
	change(routedObjects("//", 3))
	if asked != 3 || r.told != told || r.compiled.Statuses[0].Parents[0].Conditions[0].Status != metav1.ConditionFalse {
		t.Errorf("after a bad route the path is %q", path())
	}
	change(routedObjects("/b", 4))
	if path() != "/b" {
		t.Errorf("the path is %q", path())
	}
	// Another replica that is told what was good goes on with it.
	objects = routedObjects("//", 5)
	other := Routing{source: r.source, good: r.good}
	other.Refresh(log)
	if all := other.told.All(); len(all) != 1 || all[0].Rules[0].Matches[0].Path.Value != "/b" {
		t.Errorf("the next one has %+v", all)
	}
	// Where there are no routes, nobody is asked.
	none := Routing{}
	if none.Refresh(log); none.compiled != nil || none.told.All() != nil {
		t.Error("routes of nothing")
	}
}

// TestRouteTooLarge: a route that is too large to be told is refused, which says how large it is and may be, and what was
// good before goes on, with the others.
func TestRouteTooLarge(t *testing.T) {
	log := &testenv.Log{}
	changed, objects := make(chan struct{}), routedObjects("/a", 1)
	other := objects.HTTPRoutes[0].DeepCopy()
	other.Name, other.UID = "other", "2"
	r := Routing{source: func() (*routes.Objects, <-chan struct{}) { return objects, changed }}
	refresh := func(generation int64, values int) metav1.Condition {
		t.Helper()
		was := changed
		objects, changed = routedObjects("/b", generation), make(chan struct{})
		match := objects.HTTPRoutes[0].Spec.Rules[0].Matches[0]
		for i := range values {
			match.Headers = append(match.Headers, gatewayv1.HTTPHeaderMatch{Name: gatewayv1.HTTPHeaderName(fmt.Sprintf("x-%d", i)), Value: strings.Repeat("x", 4096)})
		}
		matches := slices.Repeat([]gatewayv1.HTTPRouteMatch{match}, 64)
		objects.HTTPRoutes[0].Spec.Rules = slices.Repeat([]gatewayv1.HTTPRouteRule{{Matches: matches, BackendRefs: objects.HTTPRoutes[0].Spec.Rules[0].BackendRefs}}, 2)
		objects.HTTPRoutes = append(objects.HTTPRoutes, other)
		close(was)
		r.Refresh(slog.New(slog.NewTextHandler(log, nil)))
		return r.compiled.Statuses[0].Parents[0].Conditions[0]
	}
	told := func() (all []string) {
		for _, one := range r.told.All() {
			all = append(all, one.Key.Name+" "+one.Rules[0].Matches[0].Path.Value)
		}
		return all
	}
	const large = 3 // times 4096 octets in each of 128 matches
	if c := refresh(1, large); c.Status != metav1.ConditionFalse || c.Reason != string(gatewayv1.RouteReasonUnsupportedValue) || c.ObservedGeneration != 1 ||
		!strings.HasPrefix(c.Message, "spec: ") || !regexp.MustCompile(`15\d{5} bytes, more than 1032192: split it`).MatchString(c.Message) || strings.Count(c.Message, "bytes") != 1 {
		t.Errorf("a route that is too large has %+v", c)
	}
	if got := told(); !slices.Equal(got, []string{"other /a"}) {
		t.Errorf("told is %v", got)
	}
	if c := refresh(2, 1); c.Status != metav1.ConditionTrue || !slices.Equal(told(), []string{"cart /b", "other /a"}) {
		t.Errorf("a route that is not has %+v, told is %v", c, told())
	}
	before := r.told
	if c := refresh(3, large); c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "Generation 2, which was last good, goes on") || r.told != before {
		t.Errorf("the same, too large again, has %+v, told is %v", c, told())
	}
	if c := refresh(4, large); c.Status != metav1.ConditionFalse || r.told != before { // and it is known as good still
		t.Errorf("once more: %+v, told is %v", c, told())
	}
	if text := log.String(); text != "" {
		t.Errorf("what the status says is logged, too: %s", text)
	}
}
