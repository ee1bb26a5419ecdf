package publish

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestReasonsOfRefusals: each way to be refused has one of a few reasons, which
// docs/metrics.md has, and each is counted from the start.
func TestReasonsOfRefusals(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, values, ok := strings.Cut(string(page), "`heddle_operator_refusals_total`: ")
	if !ok {
		t.Fatal("docs/metrics.md does not say which reasons there are")
	}
	values, _, _ = strings.Cut(values, "\n\n")
	values = strings.Join(strings.Fields(values), " ")
	for _, reason := range reasons() {
		if !strings.Contains(values, "`"+reason+"` (") {
			t.Errorf("docs/metrics.md does not say what %s is", reason)
		}
	}
	if n := testutil.CollectAndCount(newRefusals()); n != len(reasons()) {
		t.Errorf("%d series, want one for each of %d reasons", n, len(reasons()))
	}
	const mesh = "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {trustDomain: m, clusterRanges: [10.0.0.0/8]}\n---\n" +
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n"
	workload := func(name, address string) string {
		return fmt.Sprintf("apiVersion: heddle.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: %s}\nspec: {node: n1, serviceAccount: a, addresses: [%q]}\n---\n", name, address)
	}
	for want, text := range map[string]string{
		"Syntax":                 "a: [",
		"Invalid":                mesh + workload("a", "10.0.0.300"),
		"Conflict":               mesh + workload("a", "10.0.0.1") + workload("b", "10.0.0.1"),
		"Conflict Invalid":       mesh + workload("a", "10.0.0.1") + workload("b", "10.0.0.1") + workload("c", "10.0.0.300"),
		"Conflict for its name":  mesh + workload("a", "10.0.0.1") + workload("a", "10.0.0.2"),
		"Syntax of another kind": mesh + "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: p}\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(slices.Sorted(maps.Keys(reasonsOf(Load(dir, false).err))), " ")
		if words, _, _ := strings.Cut(strings.Replace(want, " of ", " for ", 1), " for "); got != words {
			t.Errorf("%s: it is counted as %q", want, got)
		}
	}
	if err := Load(filepath.Join(t.TempDir(), "none"), false).err; !reasonsOf(err)["Unreadable"] || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v, %v", reasonsOf(err), err)
	}
	for want, err := range map[string]error{
		reasonTrustDomain: fmt.Errorf("wrapped: %w", refusal{errors.New("x"), reasonTrustDomain}), reasonInternal: errors.New("no space left on device"),
	} {
		if got := reasonsOf(err); !got[want] || len(got) != 1 {
			t.Errorf("%v is counted as %v", err, got)
		}
	}
}
