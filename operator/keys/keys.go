// Package keys keeps the operator's CA and configuration key in a Secret, so that
// every replica signs with the same ones, and its roots in a ConfigMap, which
// agents mount. It signs nothing itself.
//
// The Secret has the names of an authority's directory: tls.key and tls.crt, what
// signs, of which cert-manager may be the writer; ca.crt and roots.crt, further roots to
// trust; configuration.key; and those of a
// rotation, see operator/rotation, whose Store it is. Besides, whoever restores a
// cluster may add epoch.base. Of replicas that begin together one creates it, and
// all use that one. To begin anew, delete it and restart replicas and agents. When
// somebody makes it anew while replicas run, as cert-manager does of one that was deleted,
// the first of them puts back the configuration key that it signs with.
//
// # Rights
//
// In the operator's own namespace: create on secrets, get and update on the one of
// the name; create on configmaps, and get and patch on the one of the name. In all: list
// on pods.
//
// Functions may be called from any goroutine.
package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

// Names in the operator's namespace.
const (
	// SecretName is that of the keys.
	SecretName = "heddle-ca"
	// RootsName is the ConfigMap's that agents mount; RootsKey is its one entry,
	// the roots in PEM.
	RootsName = "heddle-roots"
	RootsKey  = "roots.pem"
	// EpochKey is an entry of the Secret that may be there: a decimal number that
	// every replica adds to resource versions to make its epochs. A cluster that
	// is restored counts versions from the beginning; agents refuse what is older
	// than what they have.
	EpochKey = "epoch.base"
)

// maxEpochBase leaves room for resource versions above it.
const maxEpochBase = 1 << 62

// Kept is what a Secret has in it besides the CA.
type Kept struct {
	Configuration ed25519.PrivateKey
	EpochBase     uint64
}

// Client reads and writes Secrets, and sees pods.
type Client interface {
	typedcorev1.SecretsGetter
	typedcorev1.PodsGetter
}

// First makes the texts of a new authority.
type First func(context.Context) (map[string][]byte, error)

// Open returns what the Secret in a namespace has in it, and makes it when there
// is none, unless another Heddle runs (ErrAnother): first says of what, nil a root. In the
// Secret that is there a configuration key is put when it has none, as cert-manager's has not, and with first a CA in the place of one that
// has ended; else it is not changed: one that cannot be read is an error.
func Open(ctx context.Context, client Client, namespace string, cfg identity.AuthorityConfig, first First) (*Kept, error) {
	given := first
	if first == nil {
		first = func(context.Context) (map[string][]byte, error) { return identity.NewAuthorityTexts(cfg) }
	}
	secrets := client.Secrets(namespace)
	secret, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if err := alone(ctx, client, namespace); err != nil {
			return nil, err
		}
		secret, err = create(ctx, secrets, first)
	} else if err == nil && given != nil {
		secret, err = renew(ctx, secrets, secret, given)
	}
	if err != nil {
		return nil, fmt.Errorf("open Secret %s/%s: %w", namespace, SecretName, err)
	}
	if secret, err = complete(ctx, secrets, secret, Kept{}); err != nil {
		return nil, fmt.Errorf("put a configuration key into Secret %s/%s: %w", namespace, SecretName, err)
	}
	_, key, err := identity.AuthorityFromTexts(secret.Data, cfg)
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w; remedy: restore it from a backup, or delete it and restart operators and agents", namespace, SecretName, err)
	}
	base, err := epochBase(secret.Data[EpochKey])
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %s: %w; remedy: write a decimal number, or leave the entry out", namespace, SecretName, EpochKey, err)
	}
	return &Kept{Configuration: key, EpochBase: base}, nil
}

// complete puts a configuration key into the Secret of a CA that has none, and with it a
// base of epochs: those that are held, or with no key a new one. Another replica may be
// first: then its key is taken.
func complete(ctx context.Context, secrets typedcorev1.SecretInterface, secret *corev1.Secret, held Kept) (*corev1.Secret, error) {
	if len(secret.Data[corev1.TLSPrivateKeyKey]) == 0 {
		return secret, nil // not a CA's
	}
	with := secret.DeepCopy()
	added, err := identity.AddConfigurationKey(with.Data, held.Configuration)
	if err != nil || !added {
		return secret, err
	}
	if len(with.Data[EpochKey]) == 0 && held.EpochBase > 0 {
		with.Data[EpochKey] = strconv.AppendUint(nil, held.EpochBase, 10)
	}
	made, err := secrets.Update(ctx, with, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return secrets.Get(ctx, SecretName, metav1.GetOptions{})
	}
	return made, err
}

// renew puts another CA in the place of one that has ended. Another replica may be first:
// then its is taken.
func renew(ctx context.Context, secrets typedcorev1.SecretInterface, secret *corev1.Secret, first First) (*corev1.Secret, error) {
	texts, err := rotation.Texts(secret.Data).Anew(ctx, first, time.Now())
	if err != nil || texts == nil {
		return secret, err
	}
	if err := managed(secret, texts); err != nil {
		return nil, err
	}
	with := secret.DeepCopy()
	with.Data = texts
	made, err := secrets.Update(ctx, with, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return secrets.Get(ctx, SecretName, metav1.GetOptions{})
	}
	return made, err
}

// epochBase reads the entry; none is zero.
func epochBase(text []byte) (uint64, error) {
	if len(text) == 0 {
		return 0, nil
	}
	base, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, err
	}
	if base > maxEpochBase {
		return 0, fmt.Errorf("%d is larger than %d", base, uint64(maxEpochBase))
	}
	return base, nil
}

// create makes new keys. Another replica may be first: then its keys are taken.
func create(ctx context.Context, secrets typedcorev1.SecretInterface, first First) (*corev1.Secret, error) {
	texts, err := first(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := identity.AddConfigurationKey(texts, nil); err != nil {
		return nil, err
	}
	made, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: SecretName, Labels: map[string]string{"app.kubernetes.io/managed-by": "heddle-operator"}},
		Type:       corev1.SecretTypeOpaque, Data: texts,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return secrets.Get(ctx, SecretName, metav1.GetOptions{})
	}
	return made, err
}

// PublishRoots makes the ConfigMap hold these roots, and writes nothing when it
// does.
func PublishRoots(ctx context.Context, client typedcorev1.ConfigMapsGetter, namespace string, authority []*x509.Certificate) error {
	maps, roots := client.ConfigMaps(namespace), string(identity.CertificatesText(authority))
	now, err := maps.Get(ctx, RootsName, metav1.GetOptions{})
	switch {
	case err == nil && now.Data[RootsKey] == roots:
		return nil
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RootsName}, Data: map[string]string{RootsKey: roots}}, metav1.CreateOptions{})
	case err == nil:
		patch, encodeErr := json.Marshal(map[string]any{"data": map[string]string{RootsKey: roots}})
		if encodeErr != nil {
			return fmt.Errorf("encode roots: %w", encodeErr)
		}
		_, err = maps.Patch(ctx, RootsName, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("publish roots in ConfigMap %s/%s: %w", namespace, RootsName, err)
	}
	return nil
}
