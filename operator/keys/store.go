package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

// Store is the Secret as a rotation.Store. Entries that it does not know stay. It is safe
// for concurrent use.
type Store struct {
	client    typedcorev1.SecretsGetter
	namespace string
	held      Kept
	log       *slog.Logger
	told      atomic.Pointer[string] // the version that was warned of
	keeper    atomic.Pointer[string] // of what was read last
}

// NewStore returns the Store of the Secret in a namespace, from which Open has returned
// what is held.
func NewStore(client typedcorev1.SecretsGetter, namespace string, held *Kept, log *slog.Logger) *Store {
	return &Store{client: client, namespace: namespace, held: *held, log: log}
}

// Keeper implements rotation.Store.
func (s *Store) Keeper() string {
	if keeper := s.keeper.Load(); keeper != nil {
		return *keeper
	}
	return ""
}

// String implements rotation.Store.
func (s *Store) String() string { return "Secret " + s.namespace + "/" + SecretName }

// Load implements rotation.Store; the version is the Secret's. Into one that was made anew
// without a configuration key it puts the one that is held, so that a replica that
// starts does not make another. It logs once that there is another.
func (s *Store) Load(ctx context.Context) (rotation.Texts, string, error) {
	secrets := s.client.Secrets(s.namespace)
	secret, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", s, err)
	}
	if secret, err = complete(ctx, secrets, secret, s.held); err != nil {
		return nil, "", fmt.Errorf("put the configuration key back into %s: %w", s, err)
	}
	version := string(secret.UID) + "/" + secret.ResourceVersion
	s.compare(secret.Data[configurationKey], version)
	keeper := secret.Annotations[certificateName]
	if keeper != "" {
		keeper = secret.Namespace + "/" + keeper
	}
	s.keeper.Store(&keeper)
	return secret.Data, version, nil
}

const configurationKey = "configuration.key"

// compare warns of another configuration key than the one that is held. What is no key is
// for whoever reads the texts to refuse.
func (s *Store) compare(text []byte, version string) {
	key, err := cakey.Parse(configurationKey, text)
	if err != nil || s.held.Configuration.Equal(key) {
		return
	}
	if told := s.told.Swap(&version); told == nil || *told != version {
		s.log.Error("another configuration key is kept than this replica signs with: replicas that started before and after it sign differently, and agents refuse one of the two; "+
			"remedy: put the one before back, or restart all operators and agents", "store", s.String(), "entry", configurationKey)
	}
}

// Save implements rotation.Store.
func (s *Store) Save(ctx context.Context, texts rotation.Texts, version string) error {
	secrets := s.client.Secrets(s.namespace)
	secret, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if string(secret.UID)+"/"+secret.ResourceVersion != version {
		return rotation.ErrConflict
	}
	if err := managed(secret, texts); err != nil {
		return err
	}
	secret.Data = maps.Clone(texts) // the texts are what Load returned, changed
	_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
	switch {
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", rotation.ErrConflict, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w; remedy: `heddle upgrade` gives the operator the right to update it", err)
	}
	return err
}

// certificateName is the annotation by which cert-manager says whose Secret it is.
const certificateName = "cert-manager.io/certificate-name"

// ErrManaged is matched when the CA is somebody else's to change.
var ErrManaged = errors.New("the CA is cert-manager's")

// managed refuses to change what cert-manager would change back.
func managed(secret *corev1.Secret, texts rotation.Texts) error {
	name := secret.Annotations[certificateName]
	if name == "" {
		return nil
	}
	for _, entry := range [...]string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey, "ca.crt"} {
		if !bytes.Equal(secret.Data[entry], texts[entry]) {
			return fmt.Errorf("%w, of its Certificate %s/%s, and would be written back; remedy: have cert-manager issue it anew (`cmctl renew %s`), from the same root or one that %s has",
				ErrManaged, secret.Namespace, name, name, "roots.crt")
		}
	}
	return nil
}

var _ rotation.Store = (*Store)(nil)
