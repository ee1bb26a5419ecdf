package cluster

import (
	"errors"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestTakesUDP: whether an operator takes policies about UDP is read as it reads it.
func TestTakesUDP(t *testing.T) {
	of := func(container string, env map[string]string, args ...string) *Cluster {
		c := corev1.Container{Name: container, Args: args}
		for name, value := range env {
			c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
		}
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "heddle-system", Name: "heddle-operator"}}
		d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "other", Args: []string{"--udp-by-identity"}}, c}
		return &Cluster{Core: fake.NewSimpleClientset(d), namespace: "heddle-system"}
	}
	for name, c := range map[string]struct {
		cluster *Cluster
		on      bool
	}{
		"off":                      {of("operator", nil, "--kubernetes"), false},
		"by a flag":                {of("operator", nil, "--kubernetes", "--udp-by-identity"), true},
		"by a value":               {of("operator", nil, "--udp-by-identity=true"), true},
		"off by a value":           {of("operator", nil, "--udp-by-identity=false"), false},
		"off by the last":          {of("operator", nil, "--udp-by-identity", "--udp-by-identity=false"), false},
		"by the environment":       {of("operator", map[string]string{"HEDDLE_UDP_BY_IDENTITY": "true"}), true},
		"off by a flag before it":  {of("operator", map[string]string{"HEDDLE_UDP_BY_IDENTITY": "true"}, "--udp-by-identity=false"), false},
		"by the name of before":    {of("operator", nil, "--experimental-udp"), true},
		"by its environment":       {of("operator", map[string]string{"HEDDLE_EXPERIMENTAL_UDP": "1"}), true},
		"by that of another one's": {of("sidecar", nil, "--udp-by-identity"), false},
	} {
		if on, err := c.cluster.TakesUDP(t.Context()); err != nil || on != c.on {
			t.Errorf("%s: %v, %v", name, on, err)
		}
	}
	none := &Cluster{Core: fake.NewSimpleClientset(), namespace: "heddle-system"}
	if _, err := none.TakesUDP(t.Context()); !apierrors.IsNotFound(errors.Unwrap(err)) {
		t.Errorf("without a Deployment: %v", err)
	}
	refusing := fake.NewSimpleClientset()
	refusing.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Group: "apps", Resource: "deployments"}, "heddle-operator", nil)
	})
	if _, err := (&Cluster{Core: refusing, namespace: "heddle-system"}).TakesUDP(t.Context()); err == nil || !strings.Contains(err.Error(), "ask an administrator") {
		t.Errorf("without the right: %v", err)
	}
}

// TestForbiddenIsAKind: what this user may not do is known by the API server's answer, and not by a word that may be a name.
func TestForbiddenIsAKind(t *testing.T) {
	c := &Cluster{config: &rest.Config{}}
	pods := schema.GroupResource{Resource: "pods"}
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{c.Explain("list pods", apierrors.NewForbidden(pods, "", errors.New("no"))), true},
		{c.Explain("get pod", apierrors.NewNotFound(pods, "forbidden")), false},
		{c.whyNot(Program{Pod: "a"}, errors.New(`unable to upgrade connection: pods "a" is forbidden: User "guest" cannot create resource "pods/exec"`), ""), true},
		{c.whyNot(Program{Pod: "a"}, errors.New("dial forbidden.example: no such host"), ""), false},
	} {
		if errors.Is(tc.err, admin.ErrForbidden) != tc.want || strings.Contains(tc.err.Error(), "ask an administrator") != tc.want {
			t.Errorf("want it to be refused: %v, and it is: %v", tc.want, tc.err)
		}
	}
}
