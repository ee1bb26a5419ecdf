// Package install puts Heddle on a Kubernetes cluster, brings it up to date, takes
// it away again, and says beforehand whether it can. It renders by package chart
// and talks to the API server by server-side apply, as the field manager
// "heddle"; what it made is on record in a ConfigMap, and nothing else is ever
// deleted. It does not talk to agents or operators.
//
// A Cluster is safe for concurrent use; the acts (Install, Upgrade, Uninstall) of
// two people are kept apart by the API server only.
package install

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
)

// FieldManager is the name by which this program owns fields of objects.
const FieldManager = cluster.FieldManager

// ErrUnreachable is matched when no API server answers, or none is known.
var ErrUnreachable = cluster.ErrUnreachable

// Cluster is an API server.
type Cluster struct {
	api     dynamic.Interface
	mapper  meta.ResettableRESTMapperWithContext
	version string // such as v1.34.4
	host    string // for people
	patient time.Duration
}

// Connect finds the cluster as kubectl does: by the file named, $KUBECONFIG, or
// the file in the home folder; kubeContext "" is the current one there. It asks the cluster
// for its version.
func Connect(ctx context.Context, kubeconfig, kubeContext string) (*Cluster, error) {
	cfg, err := (&cluster.Options{Kubeconfig: kubeconfig, Context: kubeContext}).Config()
	if err != nil {
		return nil, err
	}
	api, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Host, err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Host, err)
	}
	version, err := found.ServerVersionWithContext(ctx)
	if err != nil {
		return nil, unreachable(cfg.Host, err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapperWithContext(memory.NewMemCacheClientWithContext(found))
	return newCluster(api, mapper, version.GitVersion, cfg.Host), nil
}

func newCluster(api dynamic.Interface, mapper meta.ResettableRESTMapperWithContext, version, host string) *Cluster {
	return &Cluster{api: api, mapper: mapper, version: version, host: host, patient: 500 * time.Millisecond}
}

func unreachable(host string, err error) error {
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return fmt.Errorf("%w: %s: %w; remedy: is the cluster up, and the right context chosen? `kubectl --context NAME version`", ErrUnreachable, host, err)
	}
	return fmt.Errorf("ask %s for its version: %w", host, err)
}

// resource returns the client of an object's kind. A kind that is not there is
// looked for once more: its definition may be new.
func (c *Cluster) resource(ctx context.Context, kind schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	mapping, err := c.mapper.RESTMappingWithContext(ctx, kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.ResetWithContext(ctx)
		mapping, err = c.mapper.RESTMappingWithContext(ctx, kind.GroupKind(), kind.Version)
	}
	if err != nil && ctx.Err() != nil { // who was not heard out has not said that there is no such kind
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind.Kind, err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.api.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return c.api.Resource(mapping.Resource), nil
}

// get returns an object, or nil when it, or its kind, is not there.
func (c *Cluster) get(ctx context.Context, kind schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error) {
	r, err := c.resource(ctx, kind, namespace)
	if meta.IsNoMatchError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	object, err := r.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("get", kind.Kind, namespace, name, err)
	}
	return object, nil
}

// list returns the objects of a kind in a namespace, or in all for "".
func (c *Cluster) list(ctx context.Context, kind schema.GroupVersionKind, namespace, selector string) ([]unstructured.Unstructured, error) {
	r, err := c.resource(ctx, kind, namespace)
	if err != nil {
		return nil, err
	}
	var all []unstructured.Unstructured
	options := metav1.ListOptions{LabelSelector: selector, Limit: 500}
	for {
		page, err := r.List(ctx, options)
		if err != nil {
			return nil, explain("list", kind.Kind, namespace, "", err)
		}
		all = append(all, page.Items...)
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return all, nil
		}
	}
}

// explain says what was tried, and what to do about it.
func explain(verb, kind, namespace, name string, err error) error {
	what := strings.Trim(namespace+"/"+name, "/")
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s %s %s: %w; remedy: installing needs the rights of cluster-admin: ask for them, or have an administrator run it", verb, kind, what, err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%s %s %s: someone else has changed what Heddle wants otherwise: %w; remedy: say it by --set, or take it back with --force-conflicts", verb, kind, what, err)
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
		return fmt.Errorf("%s %s %s: the API server refuses it: %w; remedy: look at the value given by --set or --values for this field", verb, kind, what, err)
	}
	return fmt.Errorf("%s %s %s: %w", verb, kind, what, err)
}

func core(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Version: "v1", Kind: kind}
}

func apps(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: kind}
}
