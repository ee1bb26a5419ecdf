package keys

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// BundlesName is the ConfigMap's that keeps the bundles of other trust domains, an entry each.
const BundlesName = "heddle-federation"

// Bundles is an operator/federation.Store in a ConfigMap. All replicas write it: what one
// writes last holds, and all ask the same endpoints.
type Bundles struct {
	client    typedcorev1.ConfigMapsGetter
	namespace string
}

// NewBundles returns the Store of a namespace.
func NewBundles(client typedcorev1.ConfigMapsGetter, namespace string) *Bundles {
	return &Bundles{client, namespace}
}

// Load returns all entries; none when there is no ConfigMap.
func (b *Bundles) Load(ctx context.Context) (map[string]string, error) {
	now, err := b.client.ConfigMaps(b.namespace).Get(ctx, BundlesName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", b.namespace, BundlesName, err)
	}
	return now.Data, nil
}

// Save writes an entry, or takes it out when its text is "".
func (b *Bundles) Save(ctx context.Context, name, text string) error {
	var value any = text
	if text == "" {
		value = nil
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]any{name: value}})
	if err != nil {
		return fmt.Errorf("encode the bundle of %s: %w", name, err)
	}
	maps := b.client.ConfigMaps(b.namespace)
	_, err = maps.Patch(ctx, BundlesName, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		if text == "" {
			return nil
		}
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: BundlesName}, Data: map[string]string{name: text}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // another replica was first
			_, err = maps.Patch(ctx, BundlesName, types.MergePatchType, patch, metav1.PatchOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", b.namespace, BundlesName, err)
	}
	return nil
}
