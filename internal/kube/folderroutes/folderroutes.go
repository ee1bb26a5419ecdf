// Package folderroutes compiles the routes of a folder, as package routes does those of a
// cluster. There are no statuses in a folder: what they would say are problems, each with
// the file and line of its object.
//
// It is pure. Its functions may be called from any goroutine.
package folderroutes

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Compile compiles the routes of a folder. The error has every problem, joined, and then no
// route is in force: what was last good is what the folder was. References that lead nowhere
// are warned of: their share of the requests is answered with 500.
func Compile(objs *kube.Objects) (compiled *routes.Compiled, warnings []*problem.Problem, err error) {
	in, origins := Objects(objs)
	compiled = routes.Compile(in, nil)
	var problems []*problem.Problem
	for _, s := range compiled.Statuses {
		about := &subject{id: s.ID, origin: origins[s.ID], said: map[string]bool{}}
		delete(origins, s.ID)
		for i := range s.Parents {
			problems = append(problems, about.wrong(s.Parents[i].Conditions)...)
			warnings = append(warnings, about.doubtful(s.Parents[i].Conditions)...)
		}
	}
	for id, origin := range origins {
		about := &subject{id: id, origin: origin}
		warnings = append(warnings, about.problem("spec.parentRefs", "refer to a Service: write group: \"\", kind: Service and its name", "is attached to no Service: it does nothing"))
	}
	problem.Sort(warnings)
	if err := problem.Join(problems); err != nil {
		return nil, nil, err
	}
	return compiled, warnings, nil
}

// Origins are where the routes of a folder are written.
type Origins map[route.ID]problem.Origin

// Relay notes in the objects of a folder which ports its routes have connections passed on
// at, for kube.Compile. It is to be called before that.
func Relay(objs *kube.Objects) {
	in, _ := Objects(objs)
	objs.Relayed = routes.Relayed(routes.Compile(in, nil).Routes)
}

// Objects returns what package routes compiles of a folder, and where each route of it is written.
func Objects(objs *kube.Objects) (in *routes.Objects, origins Origins) {
	origins = Origins{}
	note(origins, route.HTTP, objs.HTTPRoutes)
	note(origins, route.GRPC, objs.GRPCRoutes)
	note(origins, route.TLS, objs.TLSRoutes)
	note(origins, route.TCP, objs.TCPRoutes)
	return &routes.Objects{HTTPRoutes: values(objs.HTTPRoutes), GRPCRoutes: values(objs.GRPCRoutes), TLSRoutes: values(objs.TLSRoutes), TCPRoutes: values(objs.TCPRoutes),
		Services: values(objs.Services), Grants: values(objs.Grants)}, origins
}

func values[T any](sourced []kube.Sourced[T]) []*T {
	all := make([]*T, 0, len(sourced))
	for _, s := range sourced {
		all = append(all, s.Value)
	}
	return all
}

func note[T any, P interface {
	*T
	metav1.Object
}](origins Origins, kind route.Kind, sourced []kube.Sourced[T]) {
	for _, s := range sourced {
		object := P(s.Value)
		origins[route.ID{Kind: kind, Key: keyed.Key{Namespace: object.GetNamespace(), Name: object.GetName()}}] = s.Origin
	}
}

// subject is the route that problems are about. Each is said once, of however many parents.
type subject struct {
	id     route.ID
	origin problem.Origin
	said   map[string]bool
}

func (s *subject) problem(field, remedy, text string) *problem.Problem {
	ref := problem.Ref{Kind: s.id.Kind.String(), Namespace: s.id.Namespace, Name: s.id.Name}
	return &problem.Problem{Origin: s.origin.At(field), Ref: ref, Object: problem.ObjectName(ref.Kind, ref.Namespace, ref.Name), Field: field, Text: text, Remedy: remedy}
}

// wrong returns what keeps a route, or a rule of it, from being in force.
func (s *subject) wrong(conditions []metav1.Condition) []*problem.Problem {
	return s.those(conditions, func(c *metav1.Condition) bool {
		return c.Type == string(gatewayv1.RouteConditionAccepted) && c.Status == metav1.ConditionFalse ||
			c.Type == string(gatewayv1.RouteConditionPartiallyInvalid) && c.Status == metav1.ConditionTrue
	})
}

// doubtful returns what a route refers to and is not there.
func (s *subject) doubtful(conditions []metav1.Condition) []*problem.Problem {
	return s.those(conditions, func(c *metav1.Condition) bool {
		return c.Type == string(gatewayv1.RouteConditionResolvedRefs) && c.Status == metav1.ConditionFalse
	})
}

// those makes problems of some conditions, whose messages have the field and the remedy. That
// a rule was dropped is not so: none of a folder is in force that has a problem.
func (s *subject) those(conditions []metav1.Condition, are func(*metav1.Condition) bool) (all []*problem.Problem) {
	for i := range conditions {
		if c := &conditions[i]; are(c) && !s.said[c.Message] {
			s.said[c.Message] = true
			message := strings.TrimPrefix(c.Message, "Dropped Rule: ")
			field, text, ok := strings.Cut(message, ": ")
			if !ok || !strings.HasPrefix(field, "spec.") || strings.Contains(field, " ") {
				field, text = "", message
			}
			all = append(all, s.problem(field, "", text))
		}
	}
	return all
}
