package operator

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// recorded counts the lines of the record that have all words.
func (r *replica) recorded(words ...string) (n int) {
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, `msg="audit: `) && !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			n++
		}
	}
	return n
}

// records waits for one such line, and no more.
func (r *replica) records(t *testing.T, words ...string) {
	t.Helper()
	testenv.Eventually(t, 15*time.Second, "the record has "+strings.Join(words, ", "), func() bool { return r.recorded(words...) > 0 })
	if n := r.recorded(words...); n != 1 {
		t.Errorf("the record has %s %d times:\n%s", strings.Join(words, ", "), n, r.log)
	}
}

// TestAudit: each change of an object is in the log once, with who made it, what became
// of it, and when it was live; the next leader goes on where the first has ended.
func TestAudit(t *testing.T) {
	const path = heddle + "/namespaces/shop/authorizationpolicies"
	s := newCluster(t)
	put := func(name, by string, spec object) {
		about := meta("shop", name, nil)
		about["managedFields"] = []any{
			object{"manager": "first-of-all", "operation": "Update", "time": "2026-01-01T00:00:00Z"},
			object{"manager": by, "operation": "Apply", "time": "2026-01-02T00:00:00Z"},
			object{"manager": "heddle-operator", "operation": "Apply", "subresource": "status", "time": "2026-01-03T00:00:00Z"},
		}
		s.Put(t, path, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": about, "spec": spec})
	}
	good, bad := object{"rules": []any{object{}}}, object{"rules": []any{object{"from": []any{object{"ipBlocks": []any{"10.0.0.1/8"}}}}}}
	put("good", "argocd", good)
	first := startReplica(t, s, "heddle-operator-0")
	first.awaitReady(t)
	for _, node := range []string{"n1", "n2"} {
		first.agent(t, first.mustJoin(t, s, node), node).await(t, node+" applies it", func(v *mesh.View) bool { return len(v.Policies()) > 0 })
	}
	first.records(t, "object has changed", "kind=AuthorizationPolicy namespace=shop name=good", "generation=1", "epoch=", "revision=", "by=argocd operation=Apply", "at=2026-01-02", "accepted=true")
	first.records(t, "object is live", "name=good", "generation=1", "after=", "nodes=2")
	first.records(t, "object is live", "kind=Mesh", "name=default", "nodes=2")

	put("good", "kubectl-edit", bad)
	first.records(t, "object has changed", "name=good", "generation=2", "by=kubectl-edit", "accepted=false", "spec.rules[0].from[0].ipBlocks[0]")
	put("short", "kubectl", good)
	first.records(t, "object has changed", "name=short", "by=kubectl")
	s.Delete(path, "short")
	first.records(t, "object is gone", "name=short", "generation=1")
	if n := first.recorded("object is live", "name=good", "generation=2"); n != 0 {
		t.Errorf("what is refused is live in the record:\n%s", first.log)
	}

	first.stop()
	put("between", "kubectl", good)
	second := startReplica(t, s, "heddle-operator-1")
	second.awaitReady(t)
	second.records(t, "object has changed", "name=between", "by=kubectl")
	for _, name := range []string{"name=default", "name=good"} {
		if second.recorded(name) != 0 {
			t.Errorf("%s is recorded again:\n%s", name, second.log)
		}
	}
}
