package cluster

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// The bounds of what one operator asks of the API server.
const (
	requestsPerSecond = 50
	requestsAtOnce    = 100
	requestTimeout    = 30 * time.Second
)

// Connect returns how to reach the API server: by a kubeconfig file, or, when
// its path is "", as a pod of the cluster does.
func Connect(kubeconfig, userAgent string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		if cfg, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("connect as a pod of the cluster: %w; remedy: outside of one, name a --kubeconfig", err)
		}
	} else if cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	cfg.UserAgent = userAgent
	cfg.QPS, cfg.Burst = requestsPerSecond, requestsAtOnce
	return cfg, nil
}

// newScheme has the kinds that are read.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install, olderGrants} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register kinds: %w", err)
		}
	}
	return scheme, nil
}

// olderGrants has ReferenceGrants of before v1 read as those of v1, which have the same fields.
func olderGrants(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(olderGateway, &gatewayv1.ReferenceGrant{}, &gatewayv1.ReferenceGrantList{})
	metav1.AddToGroupVersion(scheme, olderGateway)
	return nil
}

// GatewayClient returns a client of the Gateway API's kinds.
func GatewayClient(cfg *rest.Config) (*rest.RESTClient, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	return restClient(cfg, scheme, schema.GroupVersion(gatewayv1.GroupVersion))
}

// HeddleClient returns a client of Heddle's own kinds.
func HeddleClient(cfg *rest.Config) (*rest.RESTClient, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	return restClient(cfg, scheme, v1alpha1.GroupVersion())
}

// restClient returns a client of one group.
func restClient(cfg *rest.Config, scheme *runtime.Scheme, group schema.GroupVersion) (*rest.RESTClient, error) {
	own := rest.CopyConfig(cfg)
	own.GroupVersion = &group
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	own.APIPath = "/apis"
	if group.Group == "" {
		own.APIPath = "/api"
	}
	if group.Group != v1alpha1.Group && group.Group != gatewayv1.GroupName { // custom resources are JSON
		own.AcceptContentTypes, own.ContentType = runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON, runtime.ContentTypeProtobuf
	}
	client, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("connect to API group %q: %w", group, err)
	}
	return client, nil
}
