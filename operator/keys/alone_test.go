package keys

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// cluster is an API server with pods, and with keys once they are made. It answers lists
// with one pod at a time.
type cluster struct {
	pods []corev1.Pod
	kept *corev1.Secret
}

func (c *cluster) Secrets(string) typedcorev1.SecretInterface { return keyring{cluster: c} }
func (c *cluster) Pods(string) typedcorev1.PodInterface       { return podList{cluster: c} }

type keyring struct {
	typedcorev1.SecretInterface
	*cluster
}

func (k keyring) Get(context.Context, string, metav1.GetOptions) (*corev1.Secret, error) {
	if k.kept == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, SecretName)
	}
	return k.kept.DeepCopy(), nil
}

func (k keyring) Create(_ context.Context, made *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	k.kept = made.DeepCopy()
	return made, nil
}

type podList struct {
	typedcorev1.PodInterface
	*cluster
}

func (l podList) List(_ context.Context, how metav1.ListOptions) (*corev1.PodList, error) {
	selector, err := labels.Parse(how.LabelSelector)
	if err != nil {
		return nil, err
	}
	at := len(how.Continue) // a mark for each pod that was passed
	if at == len(l.pods) {
		return &corev1.PodList{}, nil
	}
	out := &corev1.PodList{}
	if out.Continue = how.Continue + "x"; selector.Matches(labels.Set(l.pods[at].Labels)) {
		out.Items = l.pods[at : at+1]
	}
	return out, nil
}

// program is a running pod of an agent or operator.
func program(namespace, component string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: component + "-1", Labels: map[string]string{"app.kubernetes.io/part-of": "heddle", "app.kubernetes.io/component": component}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// TestASecondHeddleMakesNoKeys while another one runs, which it names; when that is gone it
// does, and goes on with them whatever comes.
func TestASecondHeddleMakesNoKeys(t *testing.T) {
	cfg := identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")}
	now := metav1.Now()
	ending, ended, waypoint := program("first", "operator"), program("first", "agent"), program("shop", "waypoint")
	ending.DeletionTimestamp, ended.Status.Phase = &now, corev1.PodFailed
	nobody := []corev1.Pod{program("second", "operator"), program("second", "agent"), waypoint, ending, ended}
	for _, component := range []string{"operator", "agent"} {
		c := &cluster{pods: append(nobody, program("first", component))}
		_, err := Open(t.Context(), c, "second", cfg, nil)
		if !errors.Is(err, ErrAnother) || !strings.Contains(err.Error(), "namespace first (pod "+component+"-1)") || !strings.Contains(err.Error(), "heddle uninstall --system-namespace first") || c.kept != nil {
			t.Errorf("beside its %s: %v; made a Secret: %v", component, err, c.kept != nil)
		}
		c.pods = nobody
		made, err := Open(t.Context(), c, "second", cfg, nil)
		if err != nil {
			t.Fatalf("when it is gone: %v", err)
		}
		c.pods = append(nobody, program("third", component))
		if again, err := Open(t.Context(), c, "second", cfg, nil); err != nil || !again.Configuration.Equal(made.Configuration) {
			t.Errorf("with keys, beside a third: %v", err)
		}
	}
}
