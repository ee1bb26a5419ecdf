package field

import (
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
)

// FromRequests encodes what a policy says of requests; nil for nothing.
func FromRequests(m *mesh.RequestMatch) *meshpb.RequestMatch {
	if m == nil {
		return nil
	}
	to := &meshpb.RequestMatch{Hosts: texts(m.Hosts), NotHosts: texts(m.NotHosts), Methods: m.Methods, NotMethods: m.NotMethods, Paths: texts(m.Paths), NotPaths: texts(m.NotPaths)}
	for i := range m.Headers {
		to.Headers = append(to.Headers, &meshpb.HeaderCondition{Name: m.Headers[i].Name, Values: texts(m.Headers[i].Values)})
	}
	return to
}

// Requests decodes what a policy says of requests, which may be what no request could meet;
// nil for nothing.
func Requests(m *meshpb.RequestMatch) *mesh.RequestMatch {
	if m == nil {
		return nil
	}
	to := &mesh.RequestMatch{Hosts: request.Patterns(m.GetHosts()), NotHosts: request.Patterns(m.GetNotHosts()), Methods: m.GetMethods(), NotMethods: m.GetNotMethods(), Paths: request.Patterns(m.GetPaths()), NotPaths: request.Patterns(m.GetNotPaths())}
	for _, h := range m.GetHeaders() {
		to.Headers = append(to.Headers, request.HeaderMatch{Name: h.GetName(), Values: request.Patterns(h.GetValues())})
	}
	return to
}

func texts(all []request.Pattern) (to []string) {
	for _, p := range all {
		to = append(to, string(p))
	}
	return to
}
