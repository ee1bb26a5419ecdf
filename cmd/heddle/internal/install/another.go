package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
)

// ErrAnotherMesh is matched when the cluster has a mesh in another namespace.
// Two would share the definitions, the label that enrolls, the roles of the
// operator, and on each node the CNI chain and the rules of a pod.
var ErrAnotherMesh = errors.New("the cluster has a mesh already")

// anotherMesh is one that is found in another namespace; By names its traces.
type anotherMesh struct {
	Namespace string
	By        []string
}

func (a *anotherMesh) Error() string {
	return fmt.Sprintf("%v: that of namespace %s (%s), and a cluster can have one; remedy: %s", ErrAnotherMesh, a.Namespace, strings.Join(a.By, ", "), a.remedy())
}

func (a *anotherMesh) Is(target error) bool { return target == ErrAnotherMesh }

func (a *anotherMesh) remedy() string {
	return fmt.Sprintf("work on it with `heddle upgrade --system-namespace %[1]s`, or take it away first with `heddle uninstall --system-namespace %[1]s`", a.Namespace)
}

// findAnother looks for the mesh of another namespace; nil when there is none.
// What is being deleted does not count.
func (c *Cluster) findAnother(ctx context.Context, namespace string) (*anotherMesh, error) {
	found := map[string][]string{}
	note := func(o *unstructured.Unstructured, where string) {
		if where != namespace && where != "" && o.GetDeletionTimestamp() == nil {
			found[where] = append(found[where], refOf(o).String())
		}
	}
	records, err := c.list(ctx, core("ConfigMap"), "", managedBy+"="+chart.Service)
	if err != nil {
		return nil, err
	}
	for i := range records {
		if records[i].GetName() == recordName {
			note(&records[i], records[i].GetNamespace())
		}
	}
	agents, err := c.list(ctx, apps("DaemonSet"), "", "") // whoever made it
	if err != nil {
		return nil, err
	}
	for i := range agents {
		if agents[i].GetName() == "heddle-agent" {
			note(&agents[i], agents[i].GetNamespace())
		}
	}
	binding, err := c.get(ctx, schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"}, "", "heddle-operator")
	if err != nil {
		return nil, err
	}
	if binding != nil {
		subjects, _, err := unstructured.NestedSlice(binding.Object, "subjects")
		if err != nil {
			return nil, fmt.Errorf("ClusterRoleBinding heddle-operator: %w", err)
		}
		for _, s := range subjects {
			subject, _ := s.(map[string]any)
			where, _ := subject["namespace"].(string)
			note(binding, where)
		}
	}
	for where, by := range found {
		slices.Sort(by)
		return &anotherMesh{where, slices.Compact(by)}, nil
	}
	return nil, nil
}
