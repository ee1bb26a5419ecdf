// Package edit makes a change of YAML to what people have written of a mesh, and says what is wrong with
// it that was not wrong before. What it is given stays as it was.
//
// Its functions may be called from any goroutine.
package edit

import (
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Change is what agents decide by, and what they would.
type Change struct {
	Before, After *explain.Model
	// NotJudged says what of the change is passed over.
	NotJudged  []string
	namespaces []kube.Sourced[corev1.Namespace] // of both
}

// Make makes a change of files and folders, of in where "-" is named, and of objects that are deleted. One of which nothing is judged is none, and
// that nothing would break is not known then: that is an error, too. Errors match folders.ErrInvalid, or those about
// names in deleted reach.ErrUsage.
func Make(written explain.Written, in io.Reader, files, deleted []string) (*Change, error) {
	c, changed := &Change{}, written
	all, judged := routesOf(written.Objects, written.Routing), false
	var passed, gone []string
	for _, file := range files {
		objects, unfit, err := folders.Named(in, file)
		if err != nil {
			return nil, err
		}
		own := routesOf(objects, nil)
		all, passed = append(all, own...), append(passed, own...)
		if judges(objects) {
			judged = true
		} else if len(own) == 0 {
			c.NotJudged = append(c.NotJudged, "there is no object in "+folders.NameOf(file))
		}
		if changed, err = Apply(changed, objects, nil); err != nil {
			return nil, err
		}
		changed.Unfit = append(slices.Clone(changed.Unfit), unfit...)
	}
	for _, name := range deleted {
		if i := slices.IndexFunc(all, func(route string) bool { return strings.EqualFold(name, route) }); i >= 0 {
			passed = append(passed, all[i])
		} else {
			gone = append(gone, name)
		}
	}
	if len(passed) > 0 {
		c.NotJudged = append(c.NotJudged, "routes are not judged: "+strings.Join(passed, ", "))
	}
	changed, err := Apply(changed, &kube.Objects{}, gone)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", reach.ErrUsage, err)
	case !judged && len(gone) == 0:
		return nil, folders.Invalid(fmt.Errorf("nothing would change that is judged: %s; remedy: name files or folders with policies, Services, Namespaces, Workloads or a Mesh", strings.Join(c.NotJudged, "; ")))
	}
	c.namespaces = slices.Concat(written.Namespaces, changed.Namespaces)
	if c.Before, err = written.Model(); err == nil {
		c.After, err = changed.Model()
	}
	return c, err
}

// HasNamespace reports whether a namespace is there, before the change or after it, by itself or with a workload.
func (c *Change) HasNamespace(name string) bool {
	return HasNamespace(name, c.namespaces, c.Before, c.After)
}

// HasNamespace reports whether a namespace is among those, or has a workload in one of the models.
func HasNamespace(name string, among []kube.Sourced[corev1.Namespace], models ...*explain.Model) bool {
	return slices.ContainsFunc(among, func(ns kube.Sourced[corev1.Namespace]) bool { return ns.Value.Name == name }) ||
		slices.ContainsFunc(models, func(m *explain.Model) bool {
			return slices.ContainsFunc(m.Workloads(), func(w *mesh.Workload) bool { return w.Namespace == name })
		})
}

// Apply returns what is written with the changed objects added or in the place of those
// of their names, and without those that are deleted, each KIND/NAMESPACE/NAME or, of
// a Mesh or a Namespace, KIND/NAME. What is written stays as it was.
func Apply(written explain.Written, changed *kube.Objects, deleted []string) (explain.Written, error) {
	out := *written.Objects
	gone := map[string]bool{}
	for _, name := range deleted {
		gone[strings.ToLower(name)] = true
	}
	merge("Namespace", &out.Namespaces, changed.Namespaces, gone)
	merge("Service", &out.Services, changed.Services, gone)
	merge("Mesh", &out.Meshes, changed.Meshes, gone)
	merge("Workload", &out.Workloads, changed.Workloads, gone)
	merge("PeerAuthentication", &out.PeerAuthentications, changed.PeerAuthentications, gone)
	merge("AuthorizationPolicy", &out.AuthorizationPolicies, changed.AuthorizationPolicies, gone)
	merge("NetworkPolicy", &out.NetworkPolicies, changed.NetworkPolicies, gone)
	for _, name := range deleted {
		if gone[strings.ToLower(name)] {
			return explain.Written{}, fmt.Errorf("delete %q: there is no such object; write KIND/NAMESPACE/NAME, such as AuthorizationPolicy/shop/web", name)
		}
	}
	return explain.Written{Objects: &out, Unfit: written.Unfit, Cluster: written.Cluster, Routing: written.Routing}, nil
}

// judges reports whether there is an object by which connections are judged.
func judges(o *kube.Objects) bool {
	return len(o.Namespaces)+len(o.Services)+len(o.Meshes)+len(o.Workloads)+len(o.PeerAuthentications)+len(o.AuthorizationPolicies)+len(o.NetworkPolicies) > 0
}

// routesOf names the routes of a cluster, or without them those of a folder, and their grants: KIND/NAMESPACE/NAME.
func routesOf(folder *kube.Objects, in *routes.Objects) []string {
	if in == nil {
		in, _ = folderroutes.Objects(folder)
	}
	return slices.Concat(namesOf("HTTPRoute", in.HTTPRoutes), namesOf("GRPCRoute", in.GRPCRoutes), namesOf("TLSRoute", in.TLSRoutes), namesOf("TCPRoute", in.TCPRoutes),
		namesOf("ReferenceGrant", in.Grants))
}

func namesOf[T metav1.Object](kind string, all []T) (names []string) {
	for _, object := range all {
		names = append(names, kind+"/"+object.GetNamespace()+"/"+object.GetName())
	}
	return names
}

// merge strikes from gone what it has found there.
func merge[T any, P interface {
	*T
	metav1.Object
}](kind string, into *[]kube.Sourced[T], changed []kube.Sourced[T], gone map[string]bool) {
	name := func(s kube.Sourced[T]) string {
		object := P(s.Value)
		if object.GetNamespace() == "" {
			return kind + "/" + object.GetName()
		}
		return kind + "/" + object.GetNamespace() + "/" + object.GetName()
	}
	replaced := map[string]bool{}
	for _, s := range changed {
		replaced[name(s)] = true
	}
	all := slices.DeleteFunc(slices.Clone(*into), func(s kube.Sourced[T]) bool { return replaced[name(s)] })
	all = append(all, changed...)
	*into = slices.DeleteFunc(all, func(s kube.Sourced[T]) bool {
		key := strings.ToLower(name(s))
		_, deleted := gone[key]
		if deleted {
			gone[key] = false
		}
		return deleted
	})
}

// Warnings are about what a change leaves in force, and unlikely to do what is meant.
func Warnings(before, after *explain.Model) (all []string) {
	for _, p := range fresh(before.Warnings(), after.Warnings()) {
		all = append(all, p.Error())
	}
	return all
}

// Refused are the change's own problems, where a cluster's objects are compiled each by itself.
func Refused(before, after *explain.Model) error {
	if own := fresh(before.Refused(), after.Refused()); len(own) > 0 {
		return folders.Refused("the change would be refused", own)
	}
	return nil
}

// fresh are those of now that were not there before: the change's own.
func fresh(before, now []*kube.Problem) []*kube.Problem {
	return slices.DeleteFunc(slices.Clone(now), func(p *kube.Problem) bool {
		return slices.ContainsFunc(before, func(q *kube.Problem) bool { return q.Object == p.Object && q.Field == p.Field && q.Text == p.Text })
	})
}
