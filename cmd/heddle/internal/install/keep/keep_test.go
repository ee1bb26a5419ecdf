package keep

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func mesh() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"kind": "Mesh", "spec": map[string]any{
		"trustDomain": "example.org", "dns": map[string]any{"mode": "DIRECT"}, "egress": map[string]any{"mode": "ALLOW"}}}}
}

// conflict is what an API server says of fields.
func conflict(fields ...string) error {
	var causes []metav1.StatusCause
	for _, f := range fields {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Field: f, Message: `conflict with "kubectl-patch" using heddle.dev/v1alpha1`})
	}
	return fmt.Errorf("apply: %w", apierrors.NewApplyConflict(causes, "fields are someone's"))
}

func TestFields(t *testing.T) {
	deployment := mesh()
	deployment.SetKind("Deployment")
	given := func(name string) map[string]any { return map[string]any{"mesh": map[string]any{name: "x"}} }
	for name, c := range map[string]struct {
		object  *unstructured.Unstructured
		refused error
		given   map[string]any
		want    string
	}{
		"one":                     {mesh(), conflict(".spec.dns.mode"), nil, "[spec.dns.mode]"},
		"two, and by two":         {mesh(), conflict(".spec.dns.mode", ".spec.egress.mode", ".spec.dns.mode"), given("peerAuthentication"), "[spec.dns.mode spec.egress.mode]"},
		"asked for":               {mesh(), conflict(".spec.dns.mode"), given("dns"), "[]"},
		"one of two asked for":    {mesh(), conflict(".spec.dns.mode", ".spec.egress.mode"), given("dns"), "[]"},
		"what must not be":        {mesh(), conflict(".spec.trustDomain"), nil, "[]"},
		"an element":              {mesh(), conflict(`.spec.clusterRanges["10.0.0.0/8"]`), nil, "[]"},
		"one that can be left":    {mesh(), conflict(".spec.dns.mode", ".metadata.labels.x"), nil, "[]"},
		"values that are no map":  {mesh(), conflict(".spec.dns.mode"), map[string]any{"mesh": 5}, "[]"},
		"another kind":            {deployment, conflict(".spec.dns.mode"), nil, "[]"},
		"another error":           {mesh(), errors.New("x"), nil, "[]"},
		"a conflict without more": {mesh(), apierrors.NewApplyConflict(nil, ""), nil, "[]"},
	} {
		if got := fmt.Sprint(Fields(c.object, c.refused, c.given)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	before := mesh()
	fields := Fields(before, conflict(".spec.dns.mode"), nil)
	left := Without(before, fields)
	if _, found, _ := unstructured.NestedString(left.Object, "spec", "dns", "mode"); found || asked(before.Object, []string{"spec", "egress", "none"}) || !asked(left.Object, []string{"spec", "egress", "mode"}) {
		t.Errorf("left is %v", left)
	}
	if said := Say(fields[0], before); !strings.Contains(said, "spec.dns.mode stays DIRECT, as kubectl-patch has set it") || !strings.Contains(said, "--set mesh.dns=VALUE with --force-conflicts") {
		t.Error(said)
	}
	if setBy("something else") != "someone" {
		t.Error("somebody is read from nothing")
	}
}
