// Package cluster is the command line's way to a Kubernetes cluster: it finds the
// one that is meant as kubectl does, lists its objects, and reaches the admin
// sockets of Heddle's pods through the API server. It decides nothing, and writes
// nothing.
//
// A Cluster is safe for concurrent use.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// FieldManager is the name by which this program owns fields of objects.
const FieldManager = "heddle"

// The bounds of what is asked of the API server.
const (
	requestsPerSecond = 50
	requestTimeout    = 30 * time.Second
	pageSize          = 500
)

// ErrUnreachable is matched when no API server answers, or none is known.
var ErrUnreachable = errors.New("no cluster answers")

// Options say which cluster is meant, and where Heddle is on it.
type Options struct{ Kubeconfig, Context, Namespace string }

// Register adds the flags.
func (o *Options) Register(flags *pflag.FlagSet) {
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig file; empty is $KUBECONFIG, or ~/.kube/config")
	flags.StringVar(&o.Context, "context", "", "context of the kubeconfig; empty is its current one")
	flags.StringVar(&o.Namespace, "system-namespace", chart.Namespace, "namespace that Heddle itself is in")
	register(flags)
}

// Given reports whether the command line names a cluster.
func (o *Options) Given() bool { return o.Kubeconfig != "" || o.Context != "" }

// Found reports whether there is a kubeconfig, named or at its usual places.
func (o *Options) Found() bool {
	for _, file := range o.rules().GetLoadingPrecedence() {
		if _, err := os.Stat(file); err == nil {
			return true
		}
	}
	return o.Given()
}

func (o *Options) rules() *clientcmd.ClientConfigLoadingRules {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	return rules
}

// Config returns how to reach the cluster: by the file named, $KUBECONFIG, or the
// file in the home folder, and the context named, or the current one there.
func (o *Options) Config() (*rest.Config, error) {
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.rules(), &clientcmd.ConfigOverrides{CurrentContext: o.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: read the kubeconfig: %w; remedy: name one with --kubeconfig, or set KUBECONFIG", ErrUnreachable, err)
	}
	cfg.QPS, cfg.Burst, cfg.Timeout, cfg.UserAgent = requestsPerSecond, 2*requestsPerSecond, requestTimeout, FieldManager
	return cfg, nil
}

// CurrentNamespace returns the namespace of the context that is meant, as kubectl has it.
func (o *Options) CurrentNamespace() string {
	namespace, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.rules(), &clientcmd.ConfigOverrides{CurrentContext: o.Context}).Namespace()
	if err != nil {
		return metav1.NamespaceDefault // connecting says what is wrong
	}
	return namespace
}

// Cluster is an API server.
type Cluster struct {
	// Core has the kinds of Kubernetes itself.
	Core kubernetes.Interface
	// Dynamic has every kind.
	Dynamic   dynamic.Interface
	config    *rest.Config
	namespace string
}

// Connect returns the Cluster that is meant. It asks nothing yet.
func Connect(o Options) (*Cluster, error) {
	cfg, err := o.Config()
	if err != nil {
		return nil, err
	}
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Host, err)
	}
	all, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Host, err)
	}
	return &Cluster{Core: core, Dynamic: all, config: cfg, namespace: o.Namespace}, nil
}

// Config returns a copy of how the cluster is reached.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Namespace is where Heddle itself is.
func (c *Cluster) Namespace() string { return c.namespace }

// List returns the objects of a resource in a namespace, or in all for "". A
// resource that the API server does not have has no objects.
func (c *Cluster) List(ctx context.Context, resource schema.GroupVersionResource, namespace string) ([]unstructured.Unstructured, error) {
	var all []unstructured.Unstructured
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := c.Dynamic.Resource(resource).Namespace(namespace).List(ctx, options)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, c.Explain("list "+resource.Resource, err)
		}
		all = append(all, page.Items...)
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return all, nil
		}
	}
}

// Explain says what was tried, and what to do about it. It matches ErrUnreachable
// when the API server did not answer, and admin.ErrForbidden when this user may not.
func (c *Cluster) Explain(what string, err error) error {
	failed := (*url.Error)(nil)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failed):
		return fmt.Errorf("%w: %s: %w; remedy: is the cluster up, and the right context chosen? `kubectl --context NAME version`", ErrUnreachable, c.config.Host, err)
	case apierrors.IsForbidden(err):
		return refuse(what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// refusal is what this user may not do; it matches admin.ErrForbidden.
type refusal struct{ error }

func refuse(what string, err error) error {
	return refusal{fmt.Errorf("%s: %w; remedy: ask an administrator for this right, or choose another context with --context", what, err)}
}

func (refusal) Is(target error) bool { return target == admin.ErrForbidden }

func (r refusal) Unwrap() error { return r.error }
