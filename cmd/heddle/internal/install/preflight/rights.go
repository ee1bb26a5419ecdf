package preflight

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// attributes are what an access review asks about (authorization.k8s.io,
// ResourceAttributes).
type attributes struct{ verb, group, resource, namespace, name string }

// Rights asks whether this user may make what is to be made: all, or each kind, or each
// object, and the roles, for whose content more is asked than the right to write them. That
// it cannot be asked is warned of. An error means that ctx is done.
func (c Cluster) Rights(ctx context.Context, p *Plan, r *health.Report) error {
	kinds, refused, err := c.refused(ctx, p)
	if err != nil {
		return Unseen(ctx, "rights", err, r)
	}
	const name, remedy = "rights", "ask for the rights of cluster-admin, or have an administrator install"
	if len(refused) > 0 {
		r.Bad(clusterPart, name, "you may not write "+strings.Join(refused, ", "), remedy)
		return nil
	}
	for _, o := range p.Objects {
		if o.GroupVersionKind().Group != "rbac.authorization.k8s.io" {
			continue
		}
		// Whoever gives rights needs them (Kubernetes' RBAC, privilege escalation prevention).
		// That its namespace is being deleted, Look says.
		if err := c.Try(ctx, o); apierrors.IsForbidden(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			r.Bad(clusterPart, name, fmt.Sprintf("you may not give the operator its rights, of %s %s: %v", o.GetKind(), o.GetName(), err), remedy)
			return nil
		}
	}
	r.Good(clusterPart, name, "you may write all %d kinds that installing writes", kinds)
	return nil
}

// refused returns how many kinds would be written, and those that may not be.
func (c Cluster) refused(ctx context.Context, p *Plan) (kinds int, refused []string, err error) {
	all, err := c.may(ctx, attributes{verb: "*", group: "*", resource: "*"})
	if err != nil {
		return 0, nil, err
	}
	var order []string
	of := map[string][]*unstructured.Unstructured{}
	for _, o := range p.Objects {
		about := strings.TrimSuffix(o.GetKind()+" "+o.GetNamespace(), " ")
		if of[about] == nil {
			order = append(order, about)
		}
		of[about] = append(of[about], o)
	}
	if all {
		return len(order), nil, nil
	}
	for _, about := range order {
		may, err := c.mayWrite(ctx, of[about])
		if err != nil {
			return 0, nil, err
		}
		if !may {
			refused = append(refused, about)
		}
	}
	return len(order), refused, nil
}

// mayWrite asks of objects of one kind and namespace: of all at once, and, where that is
// refused, of each by its name. What is there is not created.
func (c Cluster) mayWrite(ctx context.Context, objects []*unstructured.Unstructured) (bool, error) {
	kind := objects[0].GroupVersionKind()
	for _, verb := range []string{"get", "patch", "create"} {
		about := attributes{verb: verb, group: kind.Group, resource: resourceName(kind.Kind), namespace: objects[0].GetNamespace()}
		may, err := c.may(ctx, about)
		if err != nil {
			return false, err
		}
		for i := 0; !may && i < len(objects); i++ {
			if about.name = objects[i].GetName(); verb == "create" && c.isThere(ctx, objects[i]) {
				continue
			}
			if kind.Kind == "Namespace" { // as the API server has it of requests about one
				about.namespace = about.name
			}
			if named, err := c.may(ctx, about); !named || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// isThere reports whether an object is known to be there.
func (c Cluster) isThere(ctx context.Context, o *unstructured.Unstructured) bool {
	there, err := c.Get(ctx, o.GroupVersionKind(), o.GetNamespace(), o.GetName())
	return err == nil && there != nil
}

// may asks the API server (authorization.k8s.io, SelfSubjectAccessReview).
func (c Cluster) may(ctx context.Context, about attributes) (bool, error) {
	asked := map[string]any{"verb": about.verb, "group": about.group, "resource": about.resource}
	if about.namespace != "" {
		asked["namespace"] = about.namespace
	}
	if about.name != "" {
		asked["name"] = about.name
	}
	answer, err := c.Review(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": asked},
	}})
	if err != nil {
		return false, err
	}
	allowed, _, err := unstructured.NestedBool(answer.Object, "status", "allowed")
	return allowed, err
}

// resourceName is the plural of a kind of the chart.
func resourceName(kind string) string {
	switch name := strings.ToLower(kind); {
	case strings.HasSuffix(name, "sh"):
		return name + "es"
	case strings.HasSuffix(name, "y"):
		return strings.TrimSuffix(name, "y") + "ies"
	default:
		return name + "s"
	}
}
