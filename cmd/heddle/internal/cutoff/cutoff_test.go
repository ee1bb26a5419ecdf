package cutoff

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// listed are the objects of a cluster; one of resource "!" may not be listed.
type listed []string

func (l listed) List(_ context.Context, resource schema.GroupVersionResource, _ string) (all []unstructured.Unstructured, err error) {
	for _, text := range l {
		if text == "!"+resource.Resource {
			return nil, apierrors.NewForbidden(resource.GroupResource(), "", nil)
		}
		if strings.HasPrefix(text, "!") {
			continue
		}
		object := map[string]any{}
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			return nil, err
		}
		u := unstructured.Unstructured{Object: object}
		plural := strings.TrimSuffix(strings.ToLower(u.GetKind()), "y") + "ies"
		if !strings.HasSuffix(u.GetKind(), "y") {
			plural = strings.ToLower(u.GetKind()) + "s"
		}
		if plural == resource.Resource && u.GroupVersionKind().Group == resource.Group {
			all = append(all, u)
		}
	}
	return all, nil
}

func found(t *testing.T, objects ...string) (r *health.Report, names []string) {
	t.Helper()
	r = health.New()
	if err := Check(t.Context(), listed(objects), r); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		names = append(names, f.Name)
	}
	return r, names
}

// TestCheckOtherMeshes: `heddle check` says of a captured pod what analyze does, and leaves the namespace to preflight.
func TestCheckOtherMeshes(t *testing.T) {
	r, got := found(t, "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled, istio-injection: enabled}}}",
		"{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: job, labels: {app: job}}, spec: {nodeName: n1, initContainers: [{name: istio-init}], containers: [{name: c}]}}",
		"{apiVersion: v1, kind: Pod, metadata: {namespace: istio-system, name: istiod, labels: {app: istiod}}, spec: {nodeName: n1, containers: [{name: c}]}}")
	if !slices.Equal(got, []string{"Pod shop/job"}) || r.OK {
		t.Errorf("got %+v", r.Findings)
	}
}

// TestCheckUnreadPolicies: policies of the network's own are warned of, and nothing is not well for them.
func TestCheckUnreadPolicies(t *testing.T) {
	const (
		shop   = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}"
		pod    = "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web}, spec: {nodeName: n1, containers: [{name: c}]}}"
		policy = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {namespace: %s, name: web}}"
		kind   = "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: ciliumnetworkpolicies.cilium.io}, spec: {group: cilium.io, names: {kind: CiliumNetworkPolicy, plural: ciliumnetworkpolicies}, versions: [{name: v2, served: true, storage: true}]}}"
	)
	r, got := found(t, shop, pod, kind, fmt.Sprintf(policy, "shop"))
	if !slices.Equal(got, []string{"warning"}) || !r.OK || !strings.HasPrefix(r.Findings[0].Detail, "CiliumNetworkPolicy.cilium.io web, in namespace shop: ") {
		t.Errorf("got %+v", r.Findings)
	}
	for name, objects := range map[string][]string{
		"of another namespace":   {shop, pod, kind, fmt.Sprintf(policy, "bank")},
		"nobody is enrolled":     {shop, kind, fmt.Sprintf(policy, "shop")},
		"no such kind":           {shop, pod, fmt.Sprintf(policy, "shop")},
		"that may not be listed": {shop, pod, kind, "!ciliumnetworkpolicies"},
	} {
		if _, got := found(t, objects...); len(got) > 0 {
			t.Errorf("%s: %q", name, got)
		}
	}
}
