package analyze

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/network"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// KindUnread is the kind of warnings about policies that a cluster's network has of its own.
const KindUnread = "unread-policy"

// others are such policies, by their kind.
type others map[string][]mesh.Key

// mayNotRead has kinds of which there is nothing but a warning be none where they may not be listed.
func (o *Objects) mayNotRead(r schema.GroupVersionResource, err error) error {
	if apierrors.IsForbidden(err) && network.IsUnreadGroup(r.Group) {
		return nil
	}
	return err
}

// unreadPolicy adds an object, if it is such a policy.
func (o *Objects) unreadPolicy(u *unstructured.Unstructured) {
	kind := u.GroupVersionKind().GroupKind()
	if !network.IsUnread(kind) {
		return
	}
	if o.others == nil {
		o.others = others{}
	}
	key := mesh.Key{Namespace: u.GetNamespace(), Name: u.GetName()}
	if slices.ContainsFunc([]string{"Cluster", "Global", "Admin"}, func(word string) bool { return strings.Contains(kind.Kind, word) }) {
		key.Namespace = "" // a file's objects get one
	}
	o.others[kind.String()] = append(o.others[kind.String()], key)
}

// maxNamed bounds the policies that a warning names.
const maxNamed = 8

// unread warns of such policies in namespaces with enrolled pods, or of the whole cluster.
func (o *Objects) unread(enrolled []member) []Finding {
	namespaces := map[string]bool{}
	for _, m := range enrolled {
		namespaces[m.pod.Namespace] = true
	}
	var all []Finding
	for _, namespace := range slices.Sorted(maps.Keys(namespaces)) {
		for _, kind := range slices.Sorted(maps.Keys(o.others)) {
			var names []string
			for _, key := range o.others[kind] {
				if key.Namespace == namespace || key.Namespace == "" {
					names = append(names, key.Name)
				}
			}
			if len(names) == 0 {
				continue
			}
			slices.Sort(names)
			if len(names) > maxNamed {
				names = append(names[:maxNamed], "...")
			}
			all = append(all, Finding{
				Warning: true, Kind: KindUnread, Namespace: namespace, Object: kind + " " + strings.Join(names, ", "),
				Detail: fmt.Sprintf("the cluster's network holds it, and neither agents nor this command read it: between enrolled pods of different nodes it sees TCP port %d alone, on one node nothing, and holds nothing of what is inside", mesh.TunnelPort),
				Remedy: fmt.Sprintf("look whether it admits port %d between the pods of the mesh that it is about; and say what is to hold inside by an AuthorizationPolicy, or a NetworkPolicy", mesh.TunnelPort),
			})
		}
	}
	return all
}
