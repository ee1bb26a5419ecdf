package install

import (
	"context"
	"fmt"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Diff asks the API server what applying would change, and returns it as a
// unified diff; "" when nothing. Nothing is changed.
func (c *Cluster) Diff(ctx context.Context, r Request, rendered *Rendered) (string, error) {
	var out strings.Builder
	for _, o := range rendered.All() {
		before, err := c.get(ctx, o.GroupVersionKind(), o.GetNamespace(), o.GetName())
		if err != nil {
			return "", err
		}
		after, _, err := c.applyKeeping(ctx, o, applying{force: r.ForceConflicts, dryRun: true, given: rendered.given})
		if meta.IsNoMatchError(err) || before == nil && apierrors.IsNotFound(err) {
			after, err = o, nil // its definition, or its namespace, is not there yet
		}
		if err != nil {
			return "", err
		}
		text, err := difference(refOf(o), before, after)
		if err != nil {
			return "", err
		}
		out.WriteString(text)
	}
	return out.String(), nil
}

func difference(name ref, before, after *unstructured.Unstructured) (string, error) {
	a, err := plain(before)
	if err != nil {
		return "", err
	}
	b, err := plain(after)
	if err != nil {
		return "", err
	}
	text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: difflib.SplitLines(a), B: difflib.SplitLines(b), FromFile: name.String() + " (now)", ToFile: name.String(), Context: 3,
	})
	if err != nil {
		return "", fmt.Errorf("compare %s: %w", name, err)
	}
	return text, nil
}

// plain is an object without what an API server adds; "" for none.
func plain(o *unstructured.Unstructured) (string, error) {
	if o == nil {
		return "", nil
	}
	o = o.DeepCopy()
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	delete(o.Object, "status")
	text, err := yaml.Marshal(o.Object)
	if err != nil {
		return "", fmt.Errorf("write %s as YAML: %w", refOf(o), err)
	}
	return string(text), nil
}
