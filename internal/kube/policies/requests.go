package policies

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
	"github.com/heddle-mesh/heddle/internal/mesh/spoken"
)

// AboutRequests reports whether a policy says anything of requests; nil says nothing.
func AboutRequests(ap *v1alpha1.AuthorizationPolicy) bool {
	return ap != nil && slices.ContainsFunc(ap.Spec.Rules, func(r v1alpha1.Rule) bool {
		return slices.ContainsFunc(r.To, func(to v1alpha1.Destination) bool { return ofRequests(&to) })
	})
}

// ofRequests reports whether an entry of to says anything of requests.
func ofRequests(to *v1alpha1.Destination) bool {
	return to.Hosts != nil || to.NotHosts != nil || to.Methods != nil || to.NotMethods != nil || to.Paths != nil || to.NotPaths != nil || to.Headers != nil
}

// requests returns what an entry of to says of requests; nil for nothing.
func (s Subject) requests(at string, to *v1alpha1.Destination) *mesh.RequestMatch {
	if !ofRequests(to) {
		return nil
	}
	if isUDP(to) {
		s.Problem(at+".protocol", "take it out, or what is said of requests", "is UDP, and a datagram is no HTTP request")
	}
	m := &mesh.RequestMatch{
		Hosts: s.hosts(at+".hosts", to.Hosts), NotHosts: s.hosts(at+".notHosts", to.NotHosts),
		Methods: s.texts(at+".methods", to.Methods, "write it as GET or POST", request.CheckMethod), NotMethods: s.texts(at+".notMethods", to.NotMethods, "write it as GET or POST", request.CheckMethod),
		Paths: s.paths(at+".paths", to.Paths), NotPaths: s.paths(at+".notPaths", to.NotPaths),
	}
	s.NotEmpty(at+".headers", to.Headers != nil && len(to.Headers) == 0)
	s.atMost(at+".headers", len(to.Headers), request.MaxHeaders)
	for i := range to.Headers {
		name, field := strings.ToLower(to.Headers[i].Name), fmt.Sprintf("%s.headers[%d]", at, i)
		if err := request.CheckHeader(name); err != nil {
			s.Problem(field+".name", "write the name of a header, such as x-role", "%v", err)
		}
		values := s.texts(field+".values", to.Headers[i].Values, `write a value, or one such as admin* or *`, request.CheckValue)
		m.Headers = append(m.Headers, request.HeaderMatch{Name: name, Values: request.Patterns(values)})
	}
	return m
}

func (s Subject) hosts(field string, texts []string) []request.Pattern {
	texts = slices.Clone(texts)
	for i := range texts {
		texts[i] = strings.ToLower(texts[i])
	}
	return request.Patterns(s.texts(field, texts, "write a name such as api.shop or *.example.org; for a port write ports", request.CheckHost))
}

func (s Subject) paths(field string, texts []string) []request.Pattern {
	return request.Patterns(s.texts(field, texts, "write a path such as /admin, /admin* or *.css", request.CheckPath))
}

func (s Subject) texts(field string, texts []string, remedy string, check func(string) error) []string {
	s.NotEmpty(field, texts != nil && len(texts) == 0)
	s.atMost(field, len(texts), request.MaxEntries)
	for i, text := range texts {
		if err := check(text); err != nil {
			s.Problem(fmt.Sprintf("%s[%d]", field, i), remedy, "%q %v", text, err)
		}
	}
	return texts
}

func (s Subject) atMost(field string, n, most int) {
	if n > most {
		s.Problem(field, "write several entries of to", "has %d entries, more than %d", n, most)
	}
}

// Unseen reports where requests that a policy names would be seen by no waypoint: workloads
// that it selects, and ports of them, to which no service leads that is behind one, or none
// over HTTP. Services are those of its namespace; relayed are the ports of services that are
// routed as connections (kube.Objects.Relayed). Waypoints' own workloads are left out, as
// who uses a waypoint is judged by the policies of the workloads behind it.
//
// The policy is told all the same: of what its requests are about, nobody is let in there.
func Unseen(s Subject, ap *v1alpha1.AuthorizationPolicy, selected []*mesh.Workload, services []*mesh.Service, relayed map[mesh.Key][]uint16) {
	come := "what it names is refused there"
	if ap.Spec.Action == v1alpha1.ActionAudit {
		come = "all that it could name is audited there"
	}
	for _, w := range selected {
		if !w.Enrolled || slices.ContainsFunc(services, func(front *mesh.Service) bool { return front.Owns(w.Key) && isWaypoint(front, services) }) {
			continue
		}
		seen := seenPorts(w, services, relayed)
		for i := range ap.Spec.Rules {
			for j := range ap.Spec.Rules[i].To {
				if !s.seen(fmt.Sprintf("spec.rules[%d].to[%d]", i, j), &ap.Spec.Rules[i].To[j], w, seen, come) {
					return // one is enough to find the others by
				}
			}
		}
	}
}

func isWaypoint(front *mesh.Service, services []*mesh.Service) bool {
	return slices.ContainsFunc(services, func(s *mesh.Service) bool { return s.HasWaypoint() && s.Waypoint == front.Key })
}

// seenPorts are the ports of a workload at which a waypoint sees requests.
func seenPorts(w *mesh.Workload, services []*mesh.Service, relayed map[mesh.Key][]uint16) (ports []uint16) {
	for _, s := range services {
		if !s.HasWaypoint() || !s.Owns(w.Key) {
			continue
		}
		one := *s
		for i := range s.Ports {
			if said, _ := spoken.Port(s.Ports[i].Name, s.Ports[i].AppProtocol); said == spoken.Opaque || slices.Contains(relayed[s.Key], s.Ports[i].Port) {
				continue
			}
			one.Ports = s.Ports[i : i+1]
			one.EachTarget(w.Key, func(port uint16) { ports = append(ports, port) })
		}
	}
	return ports
}

// seen reports a destination whose requests no waypoint sees at a workload, and what will come
// of that.
func (s Subject) seen(at string, to *v1alpha1.Destination, w *mesh.Workload, seen []uint16, come string) bool {
	const remedy = "put the Service behind a waypoint (the label heddle.dev/waypoint), with a port that is HTTP and of no TLSRoute or TCPRoute, or narrow the selector or the ports"
	if !ofRequests(to) || isUDP(to) {
		return true
	}
	for _, port := range to.Ports {
		if !slices.ContainsFunc(seen, func(one uint16) bool { return v1alpha1.Port(one) == port }) {
			s.Problem(at, remedy, "is about requests to port %d of workload %s, and no waypoint sees these: %s", port, w.Key, come)
			return false
		}
	}
	if !slices.ContainsFunc(seen, func(port uint16) bool { return !slices.Contains(to.NotPorts, v1alpha1.Port(port)) }) {
		s.Problem(at, remedy, "is about requests to workload %s, and no waypoint sees these: %s", w.Key, come)
		return false
	}
	return true
}
