package agreement

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// trial is what is made smaller of what has failed.
type trial struct {
	Policies []*v1alpha1.AuthorizationPolicy
	Route    *gatewayv1.HTTPRoute
	Ask      question
}

// with is the configuration with other policies and another route.
func (s *state) with(c trial) *state {
	out := *s
	out.objects, out.policies, out.route = kube.Objects{}, c.Policies, c.Route
	out.collect()
	return &out
}

// smallest leaves out of what disagrees whatever it disagrees without, and returns it with its error.
func smallest(c trial, err error, disagreement func(trial) error) (trial, error) {
	for {
		next, why := smaller(c, disagreement)
		if why == nil {
			return c, err
		}
		c, err = next, why
	}
}

// smaller is the first that still disagrees of those that lack one thing; no error when there is none.
func smaller(c trial, disagreement func(trial) error) (trial, error) {
	text, err := json.Marshal(c)
	var whole any
	if err = errors.Join(err, json.Unmarshal(text, &whole)); err != nil {
		panic(err) // it is made of what JSON has
	}
	for _, less := range without(whole) {
		var next trial
		if text, err := json.Marshal(less); err != nil || json.Unmarshal(text, &next) != nil || slices.Contains(next.Policies, nil) {
			continue
		}
		if now, err := json.Marshal(next); err != nil || len(now) >= len(text) {
			continue // what is left out comes back as a zero
		}
		if why := disagreement(next); why != nil {
			return next, why
		}
	}
	return c, nil
}

// without returns a value with one entry of a list or of an object left out, for each, the large ones first.
func without(v any) (all []any) {
	switch v := v.(type) {
	case []any:
		for i := range v {
			all = append(all, slices.Delete(slices.Clone(v), i, i+1))
		}
		for i := range v {
			for _, less := range without(v[i]) {
				next := slices.Clone(v)
				next[i] = less
				all = append(all, next)
			}
		}
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		for _, key := range keys {
			next := maps.Clone(v)
			delete(next, key)
			all = append(all, next)
		}
		for _, key := range keys {
			for _, less := range without(v[key]) {
				next := maps.Clone(v)
				next[key] = less
				all = append(all, next)
			}
		}
	}
	return all
}

// smaller is the error about a connection with the smallest policies that documentation and evaluator disagree by.
func (s *state) smaller(a asked, err error) error {
	small, err := smallest(trial{Policies: s.policies}, err, func(c trial) error {
		next := s.with(c)
		view, err := next.compile("smaller")
		if err != nil {
			return nil
		}
		return judged(view, a, next.decide(a), next.probe(a))
	})
	return fmt.Errorf("%v: %w\nsmallest:\n%s", a, err, s.with(small))
}

// TestSmallest: of much that disagrees, what is left is what it disagrees by.
func TestSmallest(t *testing.T) {
	policy := func(name string, to ...v1alpha1.Destination) *v1alpha1.AuthorizationPolicy {
		p := &v1alpha1.AuthorizationPolicy{}
		p.Namespace, p.Name, p.Spec.Rules = "shop", name, []v1alpha1.Rule{{From: []v1alpha1.Source{{Namespaces: []string{"shop", "bank"}}}}, {To: to}}
		return p
	}
	c := trial{Policies: []*v1alpha1.AuthorizationPolicy{policy("a", v1alpha1.Destination{Methods: []string{"GET"}}), policy("b", v1alpha1.Destination{Paths: []string{"/x", "/admin", "/y"}, Hosts: []string{"h"}})},
		Ask: question{Port: 80, Message: message{Method: "GET", Target: "/admin", Headers: []string{"a: 1", "b: 2"}}}}
	tried := 0
	got, err := smallest(c, errors.New("at first"), func(c trial) error {
		tried++
		for _, p := range c.Policies {
			if text, _ := json.Marshal(p.Spec); strings.Contains(string(text), "/admin") && slices.Contains(c.Ask.Message.Headers, "b: 2") {
				return fmt.Errorf("%d policies", len(c.Policies))
			}
		}
		return nil
	})
	text, _ := json.Marshal(got)
	if err == nil || err.Error() != "1 policies" || strings.Join(got.Ask.Message.Headers, ",") != "b: 2" || len(got.Policies) != 1 || strings.Contains(string(text), `"/x"`) || strings.Contains(string(text), "bank") || strings.Contains(string(text), "GET") {
		t.Errorf("after %d tries, %v: %s", tried, err, text)
	}
}
