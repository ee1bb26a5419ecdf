// Package asked says what a waypoint does with one request, by the code that waypoints decide
// with: which route and rule it goes by, to which backends, what their workloads get of it, and
// which policy lets it in or refuses it. It sends nothing, and knows nothing of connections that do
// not come to a waypoint.
//
// Its functions may be called from any goroutine; those of a Request do not change it.
package asked

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/reason"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Request is a request as a client sends it. Host may be empty, for that of the service.
type Request struct {
	Method  string   `json:"method"`
	Host    string   `json:"host"`
	Path    string   `json:"path"` // with the query
	Headers []Header `json:"headers,omitempty"`
}

// Header is one line of a request's head.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// String is the request in one line.
func (r *Request) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s of %s", r.Method, r.Path, r.Host))
}

// Parse makes a Request of what flags say: --method, --host, --path, and --header as NAME=VALUE. The error names the flag
// with what is wrong.
func Parse(method, host, path string, headers []string) (*Request, error) {
	r := &Request{Method: cmp.Or(method, "GET"), Host: host, Path: path}
	if r.Path == "" && r.Method != "CONNECT" {
		r.Path = "/"
	}
	for _, text := range headers {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--header %q: write NAME=VALUE, such as x-role=admin", text)
		}
		if strings.EqualFold(name, "host") {
			return nil, fmt.Errorf("--header %q: write --host %s", text, value)
		}
		if _, why := http1.CheckField([]byte(name), []byte(value)); why != 0 {
			return nil, fmt.Errorf("--header %q: is no field of a request (%s)", text, why)
		}
		r.Headers = append(r.Headers, Header{name, value})
	}
	if _, why := r.head("a"); why != 0 {
		return nil, r.wrong(why)
	}
	return r, nil
}

// wrong names the flag for which a waypoint would refuse the request before it looks where it goes.
func (r *Request) wrong(why http1.Reason) error {
	switch why {
	case reason.BadRequestLine, reason.MethodTooLong:
		return fmt.Errorf("--method %q: is no method (%s): write one such as GET", r.Method, why)
	case reason.TraceRefused:
		return fmt.Errorf("--method %q: waypoints refuse it (%s)", r.Method, why)
	case reason.BadTarget, reason.TargetTooLong:
		return fmt.Errorf("--path %q: is no path (%s): write one such as /cart?id=1", r.Path, why)
	case reason.BadHost, reason.HostMissing, reason.HostDiffers:
		return fmt.Errorf("--host %q: is no host (%s): write one such as cart.shop or cart.shop:8080", r.Host, why)
	}
	return fmt.Errorf("--header: waypoints refuse a request with these (%s)", why)
}

// head is the request as waypoints have it, by the rules of HTTP/2.
func (r *Request) head(host string) (*http1.Head, http1.Reason) {
	h := &http1.Head{}
	h.Begin()
	socket := false
	for _, line := range r.Headers {
		if strings.EqualFold(line.Name, "upgrade") && strings.EqualFold(line.Value, "websocket") {
			socket = true
			continue
		}
		f, why := http1.CheckField([]byte(line.Name), []byte(line.Value))
		if why != 0 {
			return nil, why
		}
		h.Fields = append(h.Fields, f)
	}
	var path []byte // none, of a CONNECT
	if host = cmp.Or(r.Host, host); r.Path != "" {
		path = []byte(r.Path)
	} else if !strings.Contains(host, ":") {
		host += ":80"
	}
	if why := h.JudgeRequest(http1.Defaults(), []byte(r.Method), []byte(host), path, true); why != 0 {
		return nil, why
	}
	if socket {
		h.AskWebSocket()
	}
	return h, 0
}

// Answer is what becomes of a request.
type Answer struct {
	Request
	// Seen says that a waypoint judges it. Else nobody knows of it, and Verdict and Reason are its connection's.
	Seen bool `json:"seen"`
	// Route is the kind, the namespace, the name and the rule of what decides where it goes; "" without one.
	Route string `json:"route,omitempty"`
	// Status is that of an answer of the waypoint's own; 0 when a workload is asked.
	Status int `json:"status,omitempty"`
	// Verdict is "allow", "deny", or "mixed" when backends or their endpoints differ; Reason is that of the first that is
	// refused, if one is: of the mesh, or one of a waypoint's own.
	Verdict  string    `json:"verdict"`
	Reason   string    `json:"reason"`
	Backends []Backend `json:"backends,omitempty"`
	// Mirrors are who gets a copy, as NAMESPACE/NAME:PORT; their policies judge that by itself.
	Mirrors []string `json:"mirrors,omitempty"`
}

// Backend is one of those among which the rule shares requests, or the service itself.
type Backend struct {
	Service string `json:"service"` // NAMESPACE/NAME:PORT
	// Weight is its share, of the sum of all.
	Weight uint32 `json:"weight"`
	// Host and Path are what its workloads get.
	Host string `json:"host,omitempty"`
	Path string `json:"path,omitempty"`
	// Status and Reason are those of an answer of the waypoint's own; 0 when there is none.
	Status    int        `json:"status,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is a workload that may get it, and what policy says of that.
type Endpoint struct {
	Workload string `json:"workload"`
	Port     uint16 `json:"port"`
	Verdict  string `json:"verdict"`
	Reason   string `json:"reason"`
	// Policy is NAMESPACE/NAME of the policy that decided, Rule its rule from 0.
	Policy  string   `json:"policy,omitempty"`
	Rule    *int     `json:"rule,omitempty"`
	Audited []string `json:"audited,omitempty"`
	// Selecting are the policies that the workload is selected by, of a Behind only.
	Selecting []string `json:"selecting,omitempty"`
}

// Routes are what a waypoint is told of routes.
type Routes = []route.Route

// Client is whose connection it is.
type Client = plan.Client

// Waypoint is where a request comes to: the waypoint's Service, with what it goes by.
type Waypoint struct {
	Service mesh.Key
	View    *mesh.View
	Routes  []route.Route
}

// Opaque says why a client's connection is passed on as it is, so that its requests are not seen; "" when it is not.
func (w *Waypoint) Opaque(c *plan.Client) (string, error) {
	p, _, err := w.planner(w.Routes)
	if err != nil {
		return "", err
	}
	if kind, ok := p.Kind(c); ok && !kind.Requests() {
		return fmt.Sprintf("%ss are about the port: the waypoint passes its connections on as they are", kind), nil
	}
	if at, to, ok := p.Parent(c); ok && opaque(to.Service, at.Port) && !w.seen(at) {
		return fmt.Sprintf("the service says by name or appProtocol that port %d is no HTTP: the waypoint passes its connections on as they are", at.Port), nil
	}
	return "", nil
}

// planner is the waypoint's, with routes that may be narrowed.
func (w *Waypoint) planner(routes []route.Route) (*plan.Planner, *snapshot.Snapshot, error) {
	store := snapshot.NewStore(w.Service)
	if err := store.Set("explain", w.View, routes); err != nil {
		return nil, nil, err
	}
	p := plan.New(telemetry.New(nil, plan.Reasons(), func() float64 { return 0 }))
	p.Use(store.Load())
	return p, store.Load(), nil
}

// Judge says what becomes of a client's request. Of several backends each is looked at. Host is what a request without one
// is of.
func (w *Waypoint) Judge(c *plan.Client, r *Request, host string) (*Answer, error) {
	a := &Answer{Request: *r, Seen: true}
	a.Host = cmp.Or(r.Host, host)
	head, why := r.head(host)
	if why != 0 {
		return nil, r.wrong(why)
	}
	p, snap, err := w.planner(w.Routes)
	if err != nil {
		return nil, err
	}
	one, asked := w.one(p, c, head)
	a.Route = asked.route
	d := snap.Table.Match(&asked.Request.Request)
	if asked.route == "" || d.Outcome != route.Routed {
		a.Backends = []Backend{one}
		a.conclude()
		return a, nil
	}
	for i, b := range d.Target.Rule.Backends {
		if b.Weight == 0 {
			a.Backends = append(a.Backends, Backend{Service: fmt.Sprintf("%s:%d", b.Service, b.Port)})
			continue
		}
		p, _, err := w.planner(narrowed(w.Routes, d.Target, i))
		if err != nil {
			return nil, err
		}
		one, _ := w.one(p, c, head)
		one.Service, one.Weight = fmt.Sprintf("%s:%d", b.Service, b.Port), b.Weight
		a.Backends = append(a.Backends, one)
	}
	if !slices.ContainsFunc(a.Backends, func(b Backend) bool { return b.Weight > 0 }) {
		a.Backends = []Backend{one}
	}
	for _, f := range d.Target.Rule.Filters {
		if m := f.Mirror; m != nil {
			a.Mirrors = append(a.Mirrors, fmt.Sprintf("%s:%d", m.Service, m.Port))
		}
	}
	a.conclude()
	return a, nil
}

// narrowed are routes whose rule has one of its backends only.
func narrowed(routes []route.Route, at *route.Target, backend int) []route.Route {
	routes = slices.Clone(routes)
	for i := range routes {
		if routes[i].ID == at.Route {
			rules := slices.Clone(routes[i].Rules)
			rules[at.Index].Backends = rules[at.Index].Backends[backend : backend+1]
			routes[i].Rules = rules
		}
	}
	return routes
}

// planned is a request that was planned, and the route that it goes by.
type planned struct {
	plan.Request
	route string
}

// one plans a request, and judges it for each workload that it may go to.
func (w *Waypoint) one(p *plan.Planner, c *plan.Client, head *http1.Head) (b Backend, asked planned) {
	var out plan.Plan
	remove := asked.Request.Read(head, nil)
	p.Plan(&out, c, &asked.Request, time.Now())
	asked.route = out.Route
	if out.Way == nil {
		return Backend{Status: cmp.Or(out.Reply.Counted, out.Reply.Status), Reason: out.Reply.Reason}, asked
	}
	e := &http1.Edit{Remove: append(remove, out.Way.Request.Remove...)} // as package serve makes it
	e.Add, _ = p.Forwarded(slices.Clone(out.Way.Request.Add), nil, c)
	b = Backend{Service: out.Way.Backend, Host: cmp.Or(out.Way.Host, string(head.Host)), Path: cmp.Or(out.Path, string(head.Path))}
	if out.Path != "" {
		e.Path = []byte(out.Path)
	}
	if out.Way.Host != "" {
		e.Host = []byte(out.Way.Host)
	}
	if head.CheckEdit(e) != nil {
		b.Status, b.Reason = 500, plan.BadEdit
		return b, asked
	}
	for _, to := range out.To.Candidates {
		port := out.To.PortOf(to)
		b.Endpoints = append(b.Endpoints, endpoint(to, port, p.AuthorizeSent(w.View, c, to, port, head, e)))
	}
	return b, asked
}

func endpoint(w *mesh.Workload, port uint16, d mesh.Decision) Endpoint {
	e := Endpoint{Workload: w.Key.String(), Port: port, Verdict: "allow", Reason: d.Reason.String()}
	if d.Verdict == mesh.VerdictDeny {
		e.Verdict = "deny"
	}
	if d.Policy != (mesh.Key{}) {
		e.Policy = d.Policy.String()
	}
	if d.Rule >= 0 {
		e.Rule = &d.Rule
	}
	for _, key := range d.Audited {
		e.Audited = append(e.Audited, key.String())
	}
	return e
}

// conclude sums the backends up; what is the same answer of the waypoint's own for all is its answer.
func (a *Answer) conclude() {
	shares := slices.DeleteFunc(slices.Clone(a.Backends), func(b Backend) bool { return b.Weight == 0 && len(a.Backends) > 1 })
	verdict, reasons := map[string]string{}, []string{}
	note := func(v, why string) {
		if _, known := verdict[v]; !known {
			verdict[v], reasons = why, append(reasons, v)
		}
	}
	for _, b := range shares {
		switch {
		case b.Status != 0 && b.Reason == "": // the route's own, such as a redirect
			note("allow", "")
		case b.Status != 0:
			note("deny", b.Reason)
		}
		for _, e := range b.Endpoints {
			note(e.Verdict, e.Reason)
		}
	}
	a.Verdict = "mixed"
	if len(reasons) == 1 {
		a.Verdict = reasons[0]
	}
	if a.Reason = verdict["allow"]; len(verdict) > 1 || a.Verdict == "deny" {
		a.Reason = verdict["deny"]
	}
	if first := shares[0]; first.Status != 0 && !slices.ContainsFunc(shares, func(b Backend) bool { return b.Status != first.Status || b.Reason != first.Reason }) {
		a.Status, a.Backends = first.Status, nil
	}
}

// Passed is what becomes of a request whose connection the waypoint passes on, at the workloads that this may go to.
func (w *Waypoint) Passed(c *Client, r *Request, host string) *Answer {
	b := w.Behind(c)
	return r.Unseen(host, b.Verdict, b.Reason)
}

// Hint says what to do about a request that is refused; "" for nothing.
func (a *Answer) Hint() string {
	switch {
	case a.Verdict == "allow":
	case a.Reason == mesh.ReasonPolicyNoMatch.String():
		return "no rule of the ALLOW policies that select the workload admits the request as it is sent: add one that names it, or look at what the route makes of it"
	case a.Reason == plan.NoRoute:
		return "routes are about the port, and none has a rule for this request: it is answered with 404"
	case a.Reason == plan.BadPath:
		return "the path has a character that no path has: it is answered with 400"
	}
	return ""
}

// Unseen is a request that no waypoint sees: its connection decides.
func (r *Request) Unseen(host, verdict, reason string) *Answer {
	a := &Answer{Request: *r, Verdict: verdict, Reason: reason}
	a.Host = cmp.Or(r.Host, host)
	return a
}
