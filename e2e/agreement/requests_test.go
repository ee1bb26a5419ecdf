package agreement

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The Service of shop/server: its ports lead to two of the workload's three, one for each version of HTTP.
const (
	serviceAddress   = "10.66.200.1"
	portOld, portNew = 80, 8080
	waypointIdentity = "spiffe://example.org/ns/shop/sa/waypoint"
)

// The words of what policies say of requests, and of requests.
var (
	hostPatterns   = []string{"server.shop", "*.shop", "SERVER*", "api.example.org", "*example.org", "[fd00::1]", "*"}
	policyMethods  = []string{"GET", "POST", "DELETE", "OPTIONS", "CONNECT"}
	pathPatterns   = []string{"/", "/*", "*", "/admin", "/admin*", "/admin/*", "/public/*", "*.css", "*admin", "*2Fadmin", "/a/b", "/users*"}
	headerNames    = []string{"x-role", "X-Team", "x-by", "x-forwarded-for", "x-forwarded-client-cert"}
	valuePatterns  = []string{"admin", "user*", "*n", "*", "admin, guest", "10.1.2.3", "*sa/web", "rule"}
	requestMethods = []string{"GET", "GET", "GET", "POST", "DELETE", "get", "PATCH"}
	requestHosts   = []string{"server.shop", "SERVER.shop.", "server.shop:80", "server.shop.:80", "api.example.org", "evilexample.org", "[FD00:0::1]:80", "[fd00::1]", "other.bank"}
	requestPaths   = []string{"/", "/admin", "/public/x", "/public/../admin", "/public/..%2Fadmin", "//admin", "/admin;x", "/%61dmin", "/a/b", "/a//b", "/style.css", "/admin;%2F../users",
		"/a/%2F../b", "/x%2Fadmin", "/admin/", "/users?x=/admin", "/moved/admin", "/moved", "/movedx", "/a%5Cb", "/%5c", "/x|y", "/%c3%a9"}
	pathParts   = []string{"/", "/", "/", "admin", "public", "users", "a", "b", "moved", "..", ".", "%2F", "%2f", "%2e", "%61", ";x", ";", "%3B", ".css", "%25", "?q"}
	headerLines = []string{"X-Role: admin", "x-role: user1", "x-role: admin, guest", "X-ROLE: guest", "x_role: admin", "x-role:", "x-team: nn", "X-Team: admin", "x-by: client", "X-Forwarded-For: 10.1.2.3",
		"Forwarded: for=10.1.2.3", "x-role: " + strings.Repeat("user1,", 70) + "guest", "x-role: " + strings.Repeat("admin,", 63) + "admin"}
)

// message is a request. Version is that of HTTP, 1 or 2.
type message struct {
	Version              int
	Method, Host, Target string
	Headers              []string // lines, "name: value"
}

// request draws one.
func request(r *rand.Rand) message {
	m := message{Version: 1 + r.IntN(2), Method: one(r, requestMethods...), Host: one(r, requestHosts...), Target: one(r, requestPaths...)}
	switch r.IntN(8) {
	case 0:
		m.Method, m.Target = "OPTIONS", "*"
	case 1:
		if r.IntN(4) == 0 {
			m.Method, m.Host, m.Target = "CONNECT", "server.shop:80", ""
		}
	case 2, 3, 4:
		m.Target = "/"
		for range r.IntN(7) {
			m.Target += one(r, pathParts...)
		}
	}
	m.Headers = some(r, 3, headerLines)
	if m.Version == 1 && r.IntN(8) == 0 {
		m.Headers = append(m.Headers, "Connection: "+one(r, "x-role", "X-Team", "close"))
	}
	return m
}

// aboutRequests makes some of what a policy says be about requests.
func aboutRequests(r *rand.Rand, p *v1alpha1.AuthorizationPolicy) {
	for i := range p.Spec.Rules {
		rule := &p.Spec.Rules[i]
		if len(rule.To) == 0 && r.IntN(3) > 0 {
			rule.To = make([]v1alpha1.Destination, 1+r.IntN(2))
		}
		for j := range rule.To {
			to := &rule.To[j]
			bare := len(to.Ports)+len(to.NotPorts) == 0 && to.Protocol == nil
			if !bare && r.IntN(3) == 0 || isUDP(to) {
				continue
			}
			conditions(r, to)
			if bare && !ofRequests(to) {
				to.Methods = []string{"GET"}
			}
		}
	}
}

func conditions(r *rand.Rand, to *v1alpha1.Destination) {
	if r.IntN(3) == 0 {
		to.Hosts, to.NotHosts = some(r, 2, hostPatterns), some(r, 1, hostPatterns)
	}
	if r.IntN(3) == 0 {
		to.Methods, to.NotMethods = some(r, 2, policyMethods), some(r, 1, policyMethods)
	}
	if r.IntN(2) == 0 {
		to.Paths, to.NotPaths = some(r, 3, pathPatterns), some(r, 1, pathPatterns)
	}
	if r.IntN(3) == 0 {
		for range 1 + r.IntN(2) {
			to.Headers = append(to.Headers, v1alpha1.HeaderMatch{Name: one(r, headerNames...), Values: some(r, 2, valuePatterns)})
		}
	}
}

// routed draws what is written of the service's requests: a rule for some paths, and one for the rest.
func routed(r *rand.Rand) *gatewayv1.HTTPRoute {
	kind, group := gatewayv1.Kind("Service"), gatewayv1.Group("")
	port := gatewayv1.PortNumber(one(r, portOld, portNew))
	backends := []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{Group: &group, Kind: &kind, Name: "server", Port: &port}}}}
	route := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "server"}}
	route.Spec.ParentRefs = []gatewayv1.ParentReference{{Group: &group, Kind: &kind, Name: "server"}}
	headers := func() []gatewayv1.HTTPRouteFilter {
		f := &gatewayv1.HTTPHeaderFilter{Remove: some(r, 1, []string{"X-Role", "x-team"})}
		if r.IntN(2) == 0 {
			f.Set = []gatewayv1.HTTPHeader{{Name: "X-By", Value: "rule"}}
		}
		if r.IntN(2) == 0 || len(f.Set)+len(f.Remove) == 0 {
			f.Add = []gatewayv1.HTTPHeader{{Name: "x-team", Value: "nn"}}
			f.Remove = slices.DeleteFunc(f.Remove, func(name string) bool { return name == "x-team" }) // a name is changed in one way
		}
		return []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterRequestHeaderModifier, RequestHeaderModifier: f}}
	}
	moved, prefix, to := gatewayv1.PathMatchPathPrefix, "/moved", one(r, "/public", "/admin", "/a")
	change := &gatewayv1.HTTPPathModifier{Type: gatewayv1.PrefixMatchHTTPPathModifier, ReplacePrefixMatch: &to}
	if r.IntN(2) == 0 {
		change = &gatewayv1.HTTPPathModifier{Type: gatewayv1.FullPathHTTPPathModifier, ReplaceFullPath: &to}
	}
	rewrite := &gatewayv1.HTTPURLRewriteFilter{Path: change}
	if r.IntN(2) == 0 {
		host := gatewayv1.PreciseHostname(one(r, "api.example.org", "server.shop"))
		rewrite.Hostname = &host
	}
	route.Spec.Rules = []gatewayv1.HTTPRouteRule{
		{Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: &moved, Value: &prefix}}}, BackendRefs: backends,
			Filters: append(headers(), gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterURLRewrite, URLRewrite: rewrite})},
		{BackendRefs: backends},
	}
	if r.IntN(2) == 0 {
		route.Spec.Rules[1].Filters = headers()
	}
	return route
}

// waypointWorkload is the workload of shop/waypoint, on another node.
func waypointWorkload() *v1alpha1.Workload {
	w := placed{netns: "/run/netns/waypoint"}.workload("waypoint-1", "waypoint")
	w.Labels, w.Spec.Node, w.Spec.Addresses = map[string]string{"serves": "waypoint"}, "n2", waypoints
	return w
}

// services are shop/server and its waypoint.
func (s *state) services() (all []kube.Sourced[corev1.Service]) {
	for name, ports := range map[string][]corev1.ServicePort{"server": {{Name: "http", Port: portOld}, {Name: "http2", Port: portNew}}, "waypoint": {{Port: mesh.WaypointPort}}} {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		service.Spec.Selector, service.Spec.Ports = map[string]string{"serves": name}, ports
		service.Spec.ClusterIP = map[string]string{"server": serviceAddress, "waypoint": "10.66.200.2"}[name]
		service.Spec.ClusterIPs = []string{service.Spec.ClusterIP}
		if name == "server" && s.waypoint {
			service.Labels = map[string]string{v1alpha1.LabelWaypoint: "waypoint"}
		}
		all = append(all, kube.Sourced[corev1.Service]{Value: service})
	}
	return all
}

// The documentation of requests, from here on: docs/configuration.md ("Requests"), docs/routing.md ("How values are
// compared") and ADR 116, as plainly as they can be written down.

// sentOn: the waypoint of the workload's service is let in at the ports that the service leads to, where policy is asked at all.
func (s *state) sentOn(a asked) bool {
	asks := a.foreign() || slices.ContainsFunc(s.policies, func(p *v1alpha1.AuthorizationPolicy) bool {
		return p.Namespace == "shop" && s.selects(p.Spec.Selector) && aboutTCP(p)
	})
	return asks && s.waypoint && a.peer == waypointIdentity && (a.port == portOld || a.port == portNew)
}

func ofRequests(d *v1alpha1.Destination) bool {
	return len(d.Hosts)+len(d.NotHosts)+len(d.Methods)+len(d.NotMethods)+len(d.Paths)+len(d.NotPaths)+len(d.Headers) > 0
}

// known says whether a rule that matches does so whatever the requests of a connection are.
func known(rule *v1alpha1.Rule, a asked) bool {
	return a.request != nil || len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(d v1alpha1.Destination) bool {
		port := v1alpha1.Port(a.port)
		return !isUDP(&d) && !ofRequests(&d) && (len(d.Ports) == 0 || slices.Contains(d.Ports, port)) && !slices.Contains(d.NotPorts, port)
	})
}

// wouldLetIn is the first ALLOW policy, with its rule, that lets in some request of a connection of which none is known.
func (s *state) wouldLetIn(a asked) (*v1alpha1.AuthorizationPolicy, int) {
	if a.request != nil {
		return nil, -1
	}
	for _, p := range s.selecting(v1alpha1.ActionAllow) {
		if rule := matchingIf(p, a, true); rule >= 0 {
			return p, rule
		}
	}
	return nil, -1
}

// namesRequest says whether what an entry of to says of requests is so, for a policy that lets in or for one that does not.
func namesRequest(d *v1alpha1.Destination, m *message, lets bool) bool {
	switch {
	case !ofRequests(d):
		return true
	case m == nil: // what is not known lets nobody in
		return !lets
	case m.Method == "CONNECT" && !(lets && slices.Contains(d.Methods, "CONNECT")):
		return !lets
	}
	exact, fold := slices.Contains[[]string], func(list []string, text string) bool {
		return slices.ContainsFunc(list, func(one string) bool { return strings.EqualFold(one, text) })
	}
	in, out := fold, exact // a DENY rule about GET refuses get, too
	if lets {
		in, out = exact, fold
	}
	host := oneHost(m.Host)
	return (len(d.Hosts) == 0 || named(lower(d.Hosts), host)) && !named(lower(d.NotHosts), host) && (len(d.Methods) == 0 || in(d.Methods, m.Method)) && !out(d.NotMethods, m.Method) &&
		pathNamed(d, m, lets) && !slices.ContainsFunc(d.Headers, func(h v1alpha1.HeaderMatch) bool { return !headerNamed(&h, m, lets) })
}

func lower(texts []string) (all []string) {
	for _, text := range texts {
		all = append(all, strings.ToLower(text))
	}
	return all
}

// named: "*" stands for the rest.
func named(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if strings.HasSuffix(p, "*") {
			return strings.HasPrefix(text, strings.TrimSuffix(p, "*"))
		}
		return p == text || strings.HasPrefix(p, "*") && strings.HasSuffix(text, p[1:])
	})
}

// oneHost is a host as it is compared: without port and last dots, and of one case.
func oneHost(host string) string {
	host = strings.ToLower(portAtEnd.ReplaceAllString(host, ""))
	if address, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && strings.HasPrefix(host, "[") {
		return "[" + address.String() + "]"
	}
	return strings.TrimRight(host, ".")
}

// pathNamed: an ALLOW rule wants all readings, another one any; of what has more than two, nothing is known.
func pathNamed(d *v1alpha1.Destination, m *message, lets bool) bool {
	if len(d.Paths)+len(d.NotPaths) == 0 {
		return true
	}
	readings, ok := readingsOf(m.Target)
	if !ok {
		return !lets || slices.Contains(d.Paths, "*") && len(d.NotPaths) == 0
	}
	in, out := 0, 0
	for _, path := range readings {
		if len(d.Paths) == 0 || pathIs(d.Paths, path) {
			in++
		}
		if pathIs(d.NotPaths, path) {
			out++
		}
	}
	if lets {
		return in == len(readings) && out == 0
	}
	return in > 0 && out < len(readings)
}

// pathIs is named; the end of a path does not begin in the middle of an escape.
func pathIs(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if !named([]string{p}, path) {
			return false
		}
		if end, is := strings.CutPrefix(p, "*"); is && end != "" {
			before := strings.TrimSuffix(path, end)
			return !strings.HasSuffix(before, "%") && !(len(before) > 1 && before[len(before)-2] == '%')
		}
		return true
	})
}

var (
	escape    = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	portAtEnd = regexp.MustCompile(`:[0-9]*$`)
	parameter = regexp.MustCompile(`;[^/]*`)
	slashes   = regexp.MustCompile(`//+`)
	notPlain  = regexp.MustCompile(`[^a-z0-9]`)
)

// normal is a path in the form in which it is matched and forwarded; false for what is none.
func normal(path string) (string, bool) {
	if path == "*" {
		return path, true
	}
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\\#? ") || strings.Contains(escape.ReplaceAllString(path, ""), "%") {
		return "", false
	}
	bad := false
	path = escape.ReplaceAllStringFunc(path, func(e string) string {
		n, _ := strconv.ParseUint(e[1:], 16, 8)
		bad = bad || n == 0 || n == '\\'
		if n < 0x80 && (n >= '0' && n <= '9' || n >= 'a' && n <= 'z' || n >= 'A' && n <= 'Z' || strings.ContainsRune("-._~!$&'()*,=:@", rune(n))) {
			return string(rune(n))
		}
		return strings.ToUpper(e)
	})
	var b strings.Builder
	for i := range len(path) {
		if c := path[i]; c >= 0x80 || strings.IndexByte("\"<>^`{|}[]", c) >= 0 {
			b.WriteString("%" + strings.ToUpper(strconv.FormatUint(uint64(c), 16)))
		} else {
			b.WriteByte(c)
		}
	}
	return dotless(b.String()), !bad
}

// dotless resolves "." and "..".
func dotless(path string) string {
	kept := []string{}
	segments := strings.Split(path, "/")[1:]
	for i, s := range segments {
		if s == ".." && len(kept) > 0 {
			kept = kept[:len(kept)-1]
		}
		if s != "." && s != ".." {
			kept = append(kept, s)
		} else if i == len(segments)-1 {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// readingsOf are the forms of a path that policies look at; false when nothing is known of it.
func readingsOf(target string) (readings []string, ok bool) {
	raw, _, _ := strings.Cut(target, "?")
	path, ok := normal(raw)
	if !ok || path == "*" {
		return nil, false
	}
	semicolon, escaped, slash, double := strings.Contains(path, ";"), strings.Contains(path, "%3B"), strings.Contains(path, "%2F"), strings.Contains(path, "//")
	if semicolon && (slash || escaped || double) || escaped && (slash || double) {
		return nil, false // who reads it how depends on the order
	}
	lenient := strings.ReplaceAll(strings.ReplaceAll(path, "%2F", "/"), "%3B", ";")
	lenient = parameter.ReplaceAllString(lenient, "")
	if (semicolon || escaped) && strings.Contains(lenient, "//") {
		return nil, false // of a segment nothing is left
	}
	if lenient = slashes.ReplaceAllString(lenient, "/"); dotless(lenient) != lenient {
		return nil, false
	}
	return slices.Compact([]string{path, lenient}), true
}

// headerNamed: every value is to be named for an ALLOW rule, any for others; x_role is x-role to some servers.
func headerNamed(h *v1alpha1.HeaderMatch, m *message, lets bool) bool {
	alike := func(name string) string {
		return notPlain.ReplaceAllString(strings.ToLower(name), "-")
	}
	there, looked := false, 0
	for _, line := range m.Headers {
		name, value := field(line)
		if alike(name) != alike(h.Name) {
			continue
		}
		is := strings.EqualFold(name, h.Name)
		there = there || is || !lets
		if len(h.Values) == 0 {
			continue
		}
		whole := slices.ContainsFunc(h.Values, func(p string) bool { return named([]string{p}, value) && (!lets || !strings.Contains(p, "*")) })
		if whole && !lets {
			return true
		}
		if whole {
			continue
		}
		for _, one := range strings.Split(value, ",") {
			looked++
			if is := looked <= 64 && named(h.Values, strings.TrimSpace(one)); lets && !is {
				return false
			} else if !lets && (is || looked > 64) {
				return true
			}
		}
	}
	return there && (lets || len(h.Values) == 0)
}

func field(line string) (name, value string) {
	name, value, _ = strings.Cut(line, ":")
	return name, strings.TrimSpace(value)
}

// request is what the evaluator is asked about; nil of none.
func (m *message) request() *mesh.Request {
	if m == nil {
		return nil
	}
	r := &mesh.Request{Host: m.Host, Method: m.Method}
	for _, line := range m.Headers {
		name, value := field(line)
		r.Headers = append(r.Headers, mesh.RequestHeader{Name: name, Value: value})
	}
	path, _, _ := strings.Cut(m.Target, "?")
	r.SetPath(path)
	return r
}

// sent is what the workload gets of a request of a client: as the route makes it, with the fields that say who the client
// is as the waypoint writes them, and without those that are about one connection.
func (s *state) sent(m message, a asked) *message {
	out := message{Version: m.Version, Method: m.Method, Host: m.Host}
	raw, query, asks := strings.Cut(m.Target, "?")
	path, _ := normal(raw)
	gone := []string{"connection", "forwarded", "x-forwarded-for", "x-forwarded-client-cert"}
	for _, line := range m.Headers {
		if name, value := field(line); strings.EqualFold(name, "connection") {
			gone = append(gone, strings.ToLower(value))
		}
	}
	changes := rewrite{}
	if s.route != nil && s.waypoint {
		changes = rewriteOf(s.route, path)
	}
	gone = append(gone, changes.remove...)
	for _, line := range m.Headers {
		if name, _ := field(line); !slices.Contains(gone, strings.ToLower(name)) {
			out.Headers = append(out.Headers, line)
		}
	}
	out.Headers = append(out.Headers, changes.add...)
	out.Headers = append(out.Headers, "x-forwarded-for: "+a.source.String(), "x-forwarded-client-cert: By="+waypointIdentity+";URI="+a.peer)
	out.Host, out.Target = cmp.Or(changes.host, m.Host), cmp.Or(changes.path, path)
	if asks {
		out.Target += "?" + query
	}
	return &out
}

// rewrite is what a rule of a route changes in a request: "" leaves what it was.
type rewrite struct {
	host, path  string
	add, remove []string
}

// ruleFor is the rule for a path: the one for /moved, by whole segments, or that for the rest; nil without one.
func ruleFor(route *gatewayv1.HTTPRoute, path string) *gatewayv1.HTTPRouteRule {
	for i := range route.Spec.Rules {
		rule := &route.Spec.Rules[i]
		if prefix := prefixOf(rule); prefix == "/" || path == prefix || strings.HasPrefix(path, prefix+"/") {
			return rule
		}
	}
	return nil
}

func prefixOf(rule *gatewayv1.HTTPRouteRule) string {
	for _, m := range rule.Matches {
		if m.Path != nil && m.Path.Value != nil {
			return *m.Path.Value
		}
	}
	return "/"
}

// rewriteOf is what the rule for a path changes.
func rewriteOf(route *gatewayv1.HTTPRoute, path string) (out rewrite) {
	if rule := ruleFor(route, path); rule != nil {
		for _, f := range rule.Filters {
			if h := f.RequestHeaderModifier; h != nil {
				for _, set := range h.Set {
					out.remove, out.add = append(out.remove, strings.ToLower(string(set.Name))), append(out.add, string(set.Name)+": "+set.Value)
				}
				for _, add := range h.Add {
					out.add = append(out.add, string(add.Name)+": "+add.Value)
				}
				for _, name := range h.Remove {
					out.remove = append(out.remove, strings.ToLower(name))
				}
			}
			if u := f.URLRewrite; u != nil {
				if u.Hostname != nil {
					out.host = string(*u.Hostname)
				}
				if u.Path != nil && u.Path.ReplaceFullPath != nil {
					out.path = *u.Path.ReplaceFullPath
				} else if u.Path != nil && u.Path.ReplacePrefixMatch != nil {
					out.path = *u.Path.ReplacePrefixMatch + strings.TrimPrefix(path, prefixOf(rule))
				}
			}
		}
	}
	return out
}
