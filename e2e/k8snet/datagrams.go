package main

import (
	"context"
	"fmt"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// datagramPorts are those at which pods of Kubernetes' tests take UDP.
func datagramPorts() []any { return []any{int64(53), int64(80), int64(81), int64(8081)} }

// datagramPolicy lets all workloads of the mesh send datagrams to those of a namespace.
func datagramPolicy(namespace string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": namespace, "name": "datagrams"},
		"spec": map[string]any{"action": "ALLOW", "rules": []any{
			map[string]any{"to": []any{map[string]any{"protocol": "UDP", "ports": datagramPorts()}}},
		}},
	}}
}

// admitDatagrams puts the policy into each enrolled namespace as soon as a test has
// made it, until stop is called, which returns what went wrong.
func admitDatagrams(ctx context.Context, c *cluster.Cluster) (stop func() error, err error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read the cluster's kubeconfig: %w", err)
	}
	namespaces, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("watch namespaces: %w", err)
	}
	api, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create policies: %w", err)
	}
	policies := api.Resource(schema.GroupVersionResource{Group: "heddle.dev", Version: "v1alpha1", Resource: "authorizationpolicies"})
	factory := informers.NewSharedInformerFactoryWithOptions(namespaces, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = enrolled }))
	ctx, cancel := context.WithCancel(ctx)
	var failed error // of the informer's one goroutine, until it has ended
	_, err = factory.Core().V1().Namespaces().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(made any) {
		name := made.(*corev1.Namespace).Name
		_, err := policies.Namespace(name).Create(ctx, datagramPolicy(name), metav1.CreateOptions{})
		if err != nil && ctx.Err() == nil && !apierrors.IsAlreadyExists(err) {
			failed = fmt.Errorf("let datagrams into %s: %w", name, err)
			say(failed.Error())
		}
	}})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch namespaces: %w", err)
	}
	factory.Start(ctx.Done())
	return func() error {
		cancel()
		factory.Shutdown()
		return failed
	}, nil
}
