package analyze

import (
	"crypto/sha256"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// distinct has no two objects that mend findings be one by their name, nor one of them one
// that is there: it would take the other's place. Names come from what people call things,
// and are cut, so that two may be the same; from the second on they end in a hash of the object.
func (o *Objects) distinct(found []Finding) {
	holders := map[string]string{} // texts, by kind and name
	for i := range found {
		text := found[i].Fix
		if text == "" {
			continue
		}
		u, err := decode(text)
		if err != nil {
			continue // what is made here can be read
		}
		id := u.GetKind() + " " + nameOf(u.GetNamespace(), u.GetName())
		if holder, taken := holders[id]; holder == text || !taken && !o.has(u) {
			holders[id] = text
			continue
		}
		sum := sha256.Sum256([]byte(text))
		u.SetName(fmt.Sprintf("%s-%x", u.GetName(), sum[:4]))
		found[i].Fix = document(u.Object)
	}
}

// decode reads an object that mends a finding.
func decode(text string) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	return u, yaml.Unmarshal([]byte(text), &u.Object)
}

// has reports whether there is an object of the kind and name of u, which is of a kind that
// mends findings.
func (o *Objects) has(u *unstructured.Unstructured) bool {
	key := mesh.Key{Namespace: u.GetNamespace(), Name: u.GetName()}
	switch u.GetKind() {
	case "PeerAuthentication":
		return named(o.modes, key)
	case "AuthorizationPolicy":
		return named(o.authorizations, key)
	}
	return named(o.policies, key)
}

func named[T any, P interface {
	*T
	metav1.Object
}](objects []T, key mesh.Key) bool {
	for i := range objects {
		if p := P(&objects[i]); p.GetNamespace() == key.Namespace && p.GetName() == key.Name {
			return true
		}
	}
	return false
}
