// Package keep finds which fields of an object somebody else has set by now, and leaves
// them to whoever that is: the Mesh is its people's, once it is there. It talks to nobody.
package keep

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Field is a field that another field manager has set.
type Field struct {
	Path []string // "spec", "dns", "mode"
	// By is who has set it, as the API server has it: "kubectl-patch".
	By string
}

// String returns "spec.dns.mode".
func (f Field) String() string { return strings.Join(f.Path, ".") }

// value is the name that the chart has for a field of the Mesh; nil for one that the
// chart does not ask for.
func (f Field) value() []string {
	switch f.String() {
	case "spec.defaults.peerAuthentication":
		return []string{"mesh", "peerAuthentication"}
	case "spec.egress.mode":
		return []string{"mesh", "egress"}
	case "spec.dns.mode":
		return []string{"mesh", "dns"}
	}
	return nil
}

// plain is a path of names, without an element of a list in it.
var plain = regexp.MustCompile(`^(\.[A-Za-z][A-Za-z0-9]*)+$`)

// Fields returns the fields that applying was refused for, when all of them can be left:
// fields of the Mesh that the chart has a value for, of which given, what was asked for
// this time, does not speak. Otherwise it returns none.
func Fields(object *unstructured.Unstructured, refused error, given map[string]any) []Field {
	status := apierrors.APIStatus(nil)
	if object.GetKind() != "Mesh" || !apierrors.IsConflict(refused) || !errors.As(refused, &status) || status.Status().Details == nil {
		return nil
	}
	var all []Field
	for _, cause := range status.Status().Details.Causes {
		f := Field{By: setBy(cause.Message)}
		if cause.Type == metav1.CauseTypeFieldManagerConflict && plain.MatchString(cause.Field) {
			f.Path = strings.Split(cause.Field[1:], ".")
		}
		if f.value() == nil || asked(given, f.value()) {
			return nil
		}
		if !slices.ContainsFunc(all, func(g Field) bool { return g.String() == f.String() }) {
			all = append(all, f)
		}
	}
	return all
}

// setBy reads who has a field from what the API server says of it:
// conflict with "kubectl-patch" using heddle.dev/v1alpha1.
func setBy(message string) string {
	if parts := strings.Split(message, `"`); len(parts) >= 3 && parts[1] != "" {
		return parts[1]
	}
	return "someone"
}

func asked(given map[string]any, path []string) bool {
	_, found, err := unstructured.NestedFieldNoCopy(given, path...)
	return found || err != nil
}

// Without returns the object without those fields: applying it leaves them to others.
func Without(object *unstructured.Unstructured, fields []Field) *unstructured.Unstructured {
	object = object.DeepCopy()
	for _, f := range fields {
		unstructured.RemoveNestedField(object.Object, f.Path...)
	}
	return object
}

// Say says of a field that it was left, and what it is in after, the object as it is now.
func Say(f Field, after *unstructured.Unstructured) string {
	now, _, err := unstructured.NestedFieldNoCopy(after.Object, f.Path...)
	if err != nil {
		now = "what it was"
	}
	return fmt.Sprintf("%s stays %v, as %s has set it: --set %s=VALUE with --force-conflicts changes it", f, now, f.By, strings.Join(f.value(), "."))
}
