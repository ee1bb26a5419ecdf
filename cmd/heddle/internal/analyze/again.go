package analyze

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// lookAgain analyzes as if everything that mends a finding were there, the youngest of all,
// which an older one may hold against. What is found once more has nothing that mends it.
func (o *Objects) lookAgain(found []Finding, only string) ([]Finding, error) {
	fixes := Fixes(found)
	if len(fixes) == 0 {
		return found, nil
	}
	with := *o
	with.modes, with.authorizations, with.policies = slices.Clone(o.modes), slices.Clone(o.authorizations), slices.Clone(o.policies)
	for _, text := range fixes {
		u, err := decode(text)
		if err != nil {
			return nil, fmt.Errorf("read what mends a finding: %w", err)
		}
		u.SetCreationTimestamp(metav1.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
		if err := with.Add(u); err != nil {
			return nil, err
		}
	}
	left, model, err := with.look(only)
	if err != nil {
		return nil, err
	}
	for _, f := range left {
		if f.Fix == "" {
			continue // and had none before
		}
		i := slices.IndexFunc(found, func(before Finding) bool {
			return before.Kind == f.Kind && before.Namespace == f.Namespace && before.Object == f.Object && before.Detail == f.Detail
		})
		tried := fixes
		if i < 0 { // some of the ports, or of the pods
			found = append(found, f)
			i = len(found) - 1
		} else {
			tried = []string{found[i].Fix}
		}
		found[i].Fix, found[i].Remedy = "", unmended(model, tried)
	}
	slices.SortStableFunc(found, byObject)
	return found, nil
}

// unmended is the remedy where no object beside the others is one.
func unmended(model *judge.Judge, tried []string) string {
	var why []string
	for _, text := range tried {
		if u, err := decode(text); err == nil {
			for _, reason := range model.Said(u.GetKind(), mesh.Key{Namespace: u.GetNamespace(), Name: u.GetName()}) {
				why = append(why, u.GetKind()+" "+nameOf(u.GetNamespace(), u.GetName())+" "+reason)
			}
		}
	}
	if len(why) == 0 {
		return "change what is named here, or what it is about: no object beside those that are there mends it"
	}
	return "take out what holds against an object that would mend it, and look again: " + strings.Join(why, "; ")
}
