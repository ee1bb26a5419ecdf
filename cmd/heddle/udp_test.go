package main

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
)

// TestCommandLinesAskTheOperator: on a cluster, its operator says whether policies may name UDP;
// where nothing can be read of it, that is said, and the flag decides.
func TestCommandLinesAskTheOperator(t *testing.T) {
	w := newCluster(t, &fakeAgent{node: "n1"})
	w.Put(t, `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}`)
	const says = "whether the operator does is not known"
	simulate := func(judged, doubt bool, flags ...string) {
		t.Helper()
		code, out, log := w.heddle(append([]string{"simulate", "-f", "testdata/simulate/policy.yaml", "--flows", "testdata/simulate/udp/flows.json"}, flags...)...)
		if passed := strings.Contains(out, "over UDP passed, and are not judged"); code == 1 || code == 3 || passed == judged || strings.Contains(log, says) != doubt {
			t.Errorf("%q: exit %d, want judged %v, doubt %v:\n%s%s", flags, code, judged, doubt, out, log)
		}
	}
	c, err := cluster.Connect(cluster.Options{Kubeconfig: w.Kubeconfig, Namespace: "heddle-system"})
	if err != nil {
		t.Fatal(err)
	}
	operator := c.Core.AppsV1().Deployments("heddle-system")
	simulate(false, false)
	simulate(true, false, "--udp-by-identity")
	if _, err := operator.Patch(t.Context(), "heddle-operator", types.JSONPatchType, []byte(`[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--udp-by-identity"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	simulate(true, false)
	if err := operator.Delete(t.Context(), "heddle-operator", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	simulate(false, true)
	simulate(true, false, "--udp-by-identity")
}
