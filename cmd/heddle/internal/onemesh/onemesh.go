// Package onemesh finds the mesh that a cluster has already, in another namespace
// than the one that somebody is about to install into. It reads; it changes and
// decides nothing.
package onemesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ErrAnother is matched when the cluster has a mesh in another namespace.
// Two would share the definitions, the label that enrolls, the roles of the
// operator, and on each node the CNI chain and the rules of a pod.
var ErrAnother = errors.New("the cluster has a mesh already")

// Another is a mesh in another namespace; By names its traces.
type Another struct {
	Namespace string
	By        []string
}

// Report tells of it what there is to know, and how to mend it; of nil, nothing.
func (a *Another) Report(bad func(detail, remedy string)) {
	if a != nil {
		bad(fmt.Sprintf("namespace %s has one (%s), and a cluster can have one", a.Namespace, strings.Join(a.By, ", ")), a.Remedy())
	}
}

// Cluster is how to read one: objects of a kind in a namespace, or, for "", in
// all; and one object, nil when it is not there.
type Cluster struct {
	List func(ctx context.Context, kind schema.GroupVersionKind, namespace, selector string) ([]unstructured.Unstructured, error)
	Get  func(ctx context.Context, kind schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error)
	// Record is the name of the ConfigMap that `heddle install` writes.
	Record string
	// Label is the selector that the ConfigMap has, so that not all are read.
	Label string
}

// Error implements error, with the ways out.
func (a *Another) Error() string {
	return fmt.Sprintf("%v: that of namespace %s (%s), and a cluster can have one; remedy: %s", ErrAnother, a.Namespace, strings.Join(a.By, ", "), a.Remedy())
}

// Is matches ErrAnother.
func (a *Another) Is(target error) bool { return target == ErrAnother }

// Remedy names the two ways out.
func (a *Another) Remedy() string {
	return fmt.Sprintf("work on it with `heddle upgrade --system-namespace %[1]s`, or take it away first with `heddle uninstall --system-namespace %[1]s`", a.Namespace)
}

// Refuse is an *Another when there is one, nil when there is none.
func (c Cluster) Refuse(ctx context.Context, namespace string) error {
	another, err := c.Find(ctx, namespace)
	if err != nil || another == nil {
		return err
	}
	return another
}

// Find looks for the mesh of another namespace; nil when there is none. What is
// being deleted does not count.
func (c Cluster) Find(ctx context.Context, namespace string) (*Another, error) {
	found := map[string][]string{}
	note := func(o *unstructured.Unstructured, where string) {
		if where != namespace && where != "" && o.GetDeletionTimestamp() == nil {
			found[where] = append(found[where], o.GetKind()+" "+strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/"))
		}
	}
	records, err := c.List(ctx, schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, "", c.Label)
	if err != nil {
		return nil, err
	}
	for i := range records {
		if records[i].GetName() == c.Record {
			note(&records[i], records[i].GetNamespace())
		}
	}
	agents, err := c.List(ctx, schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DaemonSet"}, "", "") // whoever made it
	if err != nil {
		return nil, err
	}
	for i := range agents {
		if agents[i].GetName() == "heddle-agent" {
			note(&agents[i], agents[i].GetNamespace())
		}
	}
	binding, err := c.Get(ctx, schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"}, "", "heddle-operator")
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
			note(binding, namespaceOf(subject))
		}
	}
	for where, by := range found {
		slices.Sort(by)
		return &Another{where, slices.Compact(by)}, nil
	}
	return nil, nil
}

// namespaceOf is that of a service account, by its name and namespace or by the user that it is
// to an API server (serviceaccount.MakeUsername of k8s.io/apiserver); "" of anybody else.
func namespaceOf(subject map[string]any) string {
	if where, _ := subject["namespace"].(string); where != "" {
		return where
	}
	user, _ := subject["name"].(string)
	account, ok := strings.CutPrefix(user, "system:serviceaccount:")
	if where, _, named := strings.Cut(account, ":"); ok && named {
		return where
	}
	return ""
}
