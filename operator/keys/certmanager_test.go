package keys

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// secrets is an API server with one Secret.
type secrets struct {
	typedcorev1.SecretInterface
	typedcorev1.PodsGetter // nil: nobody asks for pods while there are keys
	kept                   *corev1.Secret
	first                  func() // runs before an update: somebody else is first
	updates                int
}

func (s *secrets) Secrets(string) typedcorev1.SecretInterface { return s }

func (s *secrets) Get(context.Context, string, metav1.GetOptions) (*corev1.Secret, error) {
	return s.kept.DeepCopy(), nil
}

func (s *secrets) Update(_ context.Context, to *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	if s.first != nil {
		s.first()
	}
	if to.ResourceVersion != s.kept.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, to.Name, errors.New("changed"))
	}
	s.updates++
	s.kept = to.DeepCopy()
	s.kept.ResourceVersion += "x"
	return s.kept.DeepCopy(), nil
}

// certManagers is a Secret as cert-manager writes it for a CA.
func certManagers(t *testing.T) (*secrets, identity.AuthorityConfig) {
	t.Helper()
	cfg := identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")}
	texts, err := identity.NewAuthorityTexts(cfg)
	if err != nil {
		t.Fatal(err)
	}
	delete(texts, "configuration.key")
	texts["ca.crt"] = texts["tls.crt"]
	return &secrets{kept: &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "heddle-system", Name: SecretName, ResourceVersion: "1", Annotations: map[string]string{certificateName: "heddle-ca"}},
		Type:       corev1.SecretTypeTLS, Data: texts,
	}}, cfg
}

// TestCertManagersSecret: it gets a configuration key, once, of whichever replica is
// first; and what cert-manager keeps is not changed.
func TestCertManagersSecret(t *testing.T) {
	s, cfg := certManagers(t)
	given := maps.Clone(s.kept.Data)
	kept, err := Open(t.Context(), s, "heddle-system", cfg, nil)
	if err != nil || len(kept.Configuration) == 0 || s.updates != 1 {
		t.Fatalf("%v, after %d updates", err, s.updates)
	}
	for name, text := range given {
		if string(s.kept.Data[name]) != string(text) {
			t.Errorf("%s was changed", name)
		}
	}
	again, err := Open(t.Context(), s, "heddle-system", cfg, nil)
	if err != nil || !again.Configuration.Equal(kept.Configuration) || s.updates != 1 {
		t.Errorf("%v, after %d updates", err, s.updates)
	}
	late, cfg := certManagers(t)
	late.first = func() {
		late.first = nil
		if _, err := late.Update(t.Context(), s.kept.DeepCopy(), metav1.UpdateOptions{}); err == nil {
			t.Error("a Secret of another version was written")
		}
		late.kept = s.kept.DeepCopy()
	}
	if taken, err := Open(t.Context(), late, "heddle-system", cfg, nil); err != nil || !taken.Configuration.Equal(kept.Configuration) {
		t.Errorf("the other replica's key is not taken: %v", err)
	}
	other, cfg := certManagers(t)
	delete(other.kept.Data, "tls.key")
	if _, err := Open(t.Context(), other, "heddle-system", cfg, nil); err == nil || other.updates != 0 {
		t.Errorf("a Secret without a CA: %v, %d updates", err, other.updates)
	}
}

// TestSecretMadeAnew: whoever runs puts back the configuration key that it signs with, and
// its base of epochs, before or after another replica does; and warns when there is another.
func TestSecretMadeAnew(t *testing.T) {
	s, cfg := certManagers(t)
	s.kept.Data[EpochKey] = []byte("7000")
	held, err := Open(t.Context(), s, "heddle-system", cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	store := NewStore(s, "heddle-system", held, slog.New(slog.NewTextHandler(&log, nil)))
	anew := func(uid types.UID) {
		s.kept.UID, s.updates = uid, 0
		delete(s.kept.Data, "configuration.key")
		delete(s.kept.Data, EpochKey)
	}
	anew("second")
	for range 2 {
		if _, version, err := store.Load(t.Context()); err != nil || s.updates != 1 || !strings.HasPrefix(version, "second/") || version != "second/"+s.kept.ResourceVersion {
			t.Fatalf("version %s, %d updates, %v", version, s.updates, err)
		}
	}
	if started, err := Open(t.Context(), s, "heddle-system", cfg, nil); err != nil || !started.Configuration.Equal(held.Configuration) || started.EpochBase != 7000 || s.updates != 1 {
		t.Errorf("a replica that starts has another key: %v", err)
	}
	text := s.kept.Data["configuration.key"]
	anew("third")
	s.first = func() { // another replica, which runs, too
		s.first, s.kept.ResourceVersion = nil, s.kept.ResourceVersion+"y"
		s.kept.Data["configuration.key"] = text
	}
	if texts, _, err := store.Load(t.Context()); err != nil || s.updates != 0 || !bytes.Equal(texts["configuration.key"], text) {
		t.Errorf("the other replica was first: %d updates, %v", s.updates, err)
	}
	if log.Len() > 0 {
		t.Errorf("warned of nothing: %s", &log)
	}
	anew("fourth")
	if other, err := Open(t.Context(), s, "heddle-system", cfg, nil); err != nil || other.Configuration.Equal(held.Configuration) {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := store.Load(t.Context()); err != nil || s.updates != 1 {
			t.Errorf("another's key was replaced: %d updates, %v", s.updates, err)
		}
	}
	if strings.Count(log.String(), "another configuration key") != 1 {
		t.Errorf("said: %q", log.String())
	}
}

// TestRotationOfCertManagers is refused: cert-manager would undo it. Its record and
// further roots may be written.
func TestRotationOfCertManagers(t *testing.T) {
	s, cfg := certManagers(t)
	held, err := Open(t.Context(), s, "heddle-system", cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.updates = 0
	store := NewStore(s, "heddle-system", held, slog.New(slog.DiscardHandler))
	texts, version, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if keeper := store.Keeper(); keeper != "heddle-system/heddle-ca" {
		t.Errorf("kept by %q", keeper)
	}
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		changed := maps.Clone(texts)
		changed[name] = []byte("another")
		if err := store.Save(t.Context(), changed, version); !errors.Is(err, ErrManaged) || !strings.Contains(err.Error(), "cmctl renew heddle-ca") {
			t.Errorf("%s: %v", name, err)
		}
	}
	changed := maps.Clone(texts)
	changed["roots.crt"] = texts["tls.crt"]
	if err := store.Save(t.Context(), changed, version); err != nil || s.updates != 1 {
		t.Errorf("%v, %d updates", err, s.updates)
	}
	s.kept.Annotations = nil
	if _, version, err = store.Load(t.Context()); err != nil || store.Keeper() != "" {
		t.Fatalf("%v, kept by %q", err, store.Keeper())
	}
	changed["tls.crt"] = []byte("another")
	if err := store.Save(t.Context(), changed, version); err != nil {
		t.Errorf("of a Secret of our own: %v", err)
	}
}
