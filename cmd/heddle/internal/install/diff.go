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

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/gatewayapi"
)

// Diff asks the API server what applying would change, and returns it as a
// unified diff; "" when nothing. Nothing is changed.
func (c *Cluster) Diff(ctx context.Context, r Request, rendered *Rendered) (string, error) {
	var out strings.Builder
	add := func(o *unstructured.Unstructured, force bool) error {
		text, err := c.differs(ctx, o, applying{force: force, dryRun: true, given: rendered.given})
		out.WriteString(text)
		return err
	}
	if r.GatewayAPI {
		brings := gatewayapi.Cluster{Get: c.get, List: c.list, Bring: func(_ context.Context, o *unstructured.Unstructured) error { return add(o, true) }}
		if err := brings.Apply(ctx, func(string, ...any) {}); err != nil {
			return "", err
		}
	}
	for _, o := range rendered.All() {
		if err := add(o, r.ForceConflicts); err != nil {
			return "", err
		}
	}
	return out.String(), nil
}

// differs returns what applying one object would change.
func (c *Cluster) differs(ctx context.Context, o *unstructured.Unstructured, how applying) (string, error) {
	before, err := c.get(ctx, o.GroupVersionKind(), o.GetNamespace(), o.GetName())
	if err != nil {
		return "", err
	}
	after, _, err := c.applyKeeping(ctx, o, how)
	if meta.IsNoMatchError(err) || before == nil && apierrors.IsNotFound(err) {
		after, err = o, nil // its definition, or its namespace, is not there yet
	}
	if err != nil {
		return "", err
	}
	return difference(refOf(o), before, after)
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
