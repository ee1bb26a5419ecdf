package agreement

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/share"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/proxyheader"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/requests"
	"github.com/heddle-mesh/heddle/waypoint/serve"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

var waypointKey = mesh.Key{Namespace: "shop", Name: "waypoint"}

// TestRequestsAgreement has documentation, evaluator and waypoint decide about HEDDLE_AGREEMENT_CONNECTIONS generated
// requests (3,000 without it). The waypoint is told its part of the configuration as
// the operator tells it, encoded and signed, and gets the requests over TCP, in both versions of
// HTTP; what it lets in comes to a server, which says what it got. Of each is also asked what
// the workload's node would say, which sees no request: whom it admits, the waypoint must.
// A disagreement is made as small as it can be.
func TestRequestsAgreement(t *testing.T) {
	most, seed := number(t, "HEDDLE_AGREEMENT_CONNECTIONS", 3_000), number(t, "HEDDLE_AGREEMENT_SEED", time.Now().UnixNano())
	t.Logf("HEDDLE_AGREEMENT_SEED=%d", seed)
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	w := newWaypoint(t)
	seen := map[string]int{}
	for i := int64(0); i < most; i += perState {
		s := generateRouted(r)
		view, err := s.compile(fmt.Sprint(i))
		if err == nil {
			err = w.take(s, view)
		}
		if err != nil {
			t.Fatalf("%v\nHEDDLE_AGREEMENT_SEED=%d, configuration:\n%s", err, seed, s)
		}
		for range min(perState, most-i) {
			q := s.request(r)
			why, err := w.agree(s, view, q)
			if seen[why]++; err != nil {
				t.Logf("%s\n%v", q, err)
				small, err := smallest(trial{s.policies, s.route, q}, err, func(c trial) error { return w.disagreement(s, c) })
				t.Fatalf("request %d: %v\nHEDDLE_AGREEMENT_SEED=%d; smallest:\n%s%s", i, err, seed, s.with(small), small.Ask)
			}
		}
	}
	t.Logf("%d requests: %v", most, seen)
	for _, why := range []string{"PolicyAllow", "PolicyDeny", "PolicyNoMatch", "NoPolicy", "ForeignIdentity", "NotFederated", "IdentityRevoked", "Waypoint", plan.BadPath, plan.ConnectRefused, "RequestUnseen", "rewritten", "HTTP/1.1", "HTTP/2"} {
		if most >= 5_000 && seen[why]+w.seen[why] < 20 {
			t.Errorf("%s: %d requests: too few to say anything", why, seen[why]+w.seen[why])
		}
	}
}

// generateRouted is a configuration with policies about requests, and perhaps a route.
func generateRouted(r *rand.Rand) *state {
	at := placed{netns: "/run/netns/server", addresses: []netip.Addr{netip.MustParseAddr("10.66.1.2"), netip.MustParseAddr("fd66:1::2")}}
	beside := placed{netns: "/run/netns/client", addresses: []netip.Addr{netip.MustParseAddr("10.66.2.2"), netip.MustParseAddr("fd66:2::2")}}
	s := generate(r, at, beside)
	s.waypoint, s.policies = r.IntN(8) > 0, s.policies[:min(len(s.policies), r.IntN(6))]
	for _, p := range s.policies {
		p.Namespace = "shop"
		if p.Spec.Selector != nil && r.IntN(2) == 0 {
			p.Spec.Selector = nil
		}
		aboutRequests(r, p)
	}
	if r.IntN(2) == 0 {
		s.route = routed(r)
	}
	s.objects.AuthorizationPolicies, s.objects.HTTPRoutes = nil, nil
	return s.with(trial{Policies: s.policies, Route: s.route})
}

// question is a request of a client to shop/server's service.
type question struct {
	Peer    string
	Source  netip.Addr
	Port    uint16 // the service's
	Message message
}

func (q question) String() string {
	return fmt.Sprintf("%s from %s to port %d, HTTP/%d: %s %q of %q %q", q.Peer, q.Source, q.Port, q.Message.Version, q.Message.Method, q.Message.Target, q.Message.Host, q.Message.Headers)
}

func (s *state) request(r *rand.Rand) question {
	q := question{Peer: one(r, identities...), Source: netip.MustParseAddr(one(r, outsiders...)), Port: one(r, uint16(portOld), portNew), Message: request(r)}
	if r.IntN(2) == 0 {
		q.Peer = one(r, identities[:3]...)
	}
	if q.Port == portNew && q.Message.Method == "get" {
		q.Message.Version = 2 // a port that says so is taken for HTTP/2, whatever is not known to begin otherwise
		q.Message.Headers = slices.DeleteFunc(q.Message.Headers, func(line string) bool { return strings.HasPrefix(line, "Connection:") })
	}
	if s.mesh.Spec.RevokedIdentities != nil && r.IntN(8) == 0 {
		q.Peer = one(r, s.mesh.Spec.RevokedIdentities...)
	}
	return q
}

// waypoint is shop/waypoint over loopback, and shop/server behind it.
type waypoint struct {
	store    *snapshot.Store
	flows    *requests.Log
	at       net.Addr
	key      ed25519.PrivateKey
	epoch    uint64
	last     uint64                  // flow
	backends map[uint16]*net.TCPAddr // by the workload's port
	seen     map[string]int

	mu  sync.Mutex
	got *message // guarded by mu; what came to the workload last
}

func newWaypoint(t *testing.T) *waypoint {
	w := &waypoint{store: snapshot.NewStore(waypointKey), backends: map[uint16]*net.TCPAddr{}, seen: map[string]int{}}
	var err error
	if _, w.key, err = ed25519.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	rules, err := sample.Parse([]string{"1"})
	if err != nil {
		t.Fatal(err)
	}
	w.flows = requests.New(requests.Config{Waypoint: waypointKey, Size: 4, Rules: rules})
	for _, port := range []uint16{portOld, portNew} {
		l := listen(t)
		w.backends[port] = l.Addr().(*net.TCPAddr)
		server := &http.Server{Handler: http.HandlerFunc(w.answer), DisableGeneralOptionsHandler: true, Protocols: &http.Protocols{}}
		server.Protocols.SetHTTP1(port == portOld)
		server.Protocols.SetUnencryptedHTTP2(port == portNew)
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(l) })
		t.Cleanup(func() { _ = server.Close(); serving.Wait() })
	}
	cfg := serve.Defaults()
	cfg.Store, cfg.Loops, cfg.Log, cfg.Sinks.Flows = w.store, 1, slog.New(slog.DiscardHandler), w.flows
	cfg.Metrics = telemetry.New(prometheus.NewRegistry(), plan.Reasons(), func() float64 { return 0 })
	cfg.Timeouts.DrainIdle = 50 * time.Millisecond
	cfg.Reach = func(at netip.AddrPort) netip.AddrPort {
		if b := w.backends[at.Port()]; b != nil {
			return b.AddrPort()
		}
		return at
	}
	server, err := serve.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	w.at = l.Addr()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Run(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

func listen(t *testing.T) *net.TCPListener {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// answer is shop/server.
func (w *waypoint) answer(_ http.ResponseWriter, r *http.Request) {
	got := &message{Version: r.ProtoMajor, Method: r.Method, Host: r.Host, Target: r.RequestURI}
	for name, values := range r.Header {
		for _, v := range values {
			got.Headers = append(got.Headers, strings.ToLower(name)+": "+v)
		}
	}
	w.mu.Lock()
	w.got = got
	w.mu.Unlock()
}

// take tells the waypoint a configuration: its part of it, over the operator's encoding.
func (w *waypoint) take(s *state, view *mesh.View) error {
	all, rest, err := encoded(view)
	if err != nil {
		return err
	}
	in, _ := folderroutes.Objects(&s.objects)
	compiled := routes.Compile(in, nil)
	if s.route != nil && (len(compiled.Routes) != 1 || len(compiled.Routes[0].Rules) != len(s.route.Spec.Rules)) {
		return fmt.Errorf("the route is not in force as it is written: %+v", compiled.Statuses)
	}
	listed, untold := share.NewRoutes(pointers(compiled.Routes))
	if len(untold) > 0 {
		return errors.Join(untold...)
	}
	told := share.New(share.Source{View: view, Routes: listed, Shared: resources.NewShared(all), Rest: resources.NewShared(rest)}).Waypoint(waypointKey)
	staging := resources.NewStaging(nil)
	for _, r := range told.All() {
		if err := staging.Add(r.Kind, r.Name, r.Version, r.Body); err != nil {
			return err
		}
	}
	w.epoch++
	commit := &resources.Commit{Node: discovery.WaypointName(waypointKey), Revision: fmt.Sprint(w.epoch), Epoch: w.epoch, Hash: told.Hash()}
	commit.Sign(w.key)
	set, as, refusal := staging.Close(commit, commit.Node, []ed25519.PublicKey{w.key.Public().(ed25519.PublicKey)}, nil)
	if refusal != nil {
		return refusal.Reason
	}
	var own []route.Route
	for _, r := range set.Routes() {
		own = append(own, *r)
	}
	return w.store.Set(commit.Revision, as, own)
}

// encoded is a configuration as the operator encodes it: what every node is told, and what only some are.
func encoded(view *mesh.View) (all, rest []*resources.Resource, err error) {
	note := func(to *[]*resources.Resource) func(*resources.Resource, error) {
		return func(r *resources.Resource, e error) {
			if err = errors.Join(err, e); e == nil {
				*to = append(*to, r)
			}
		}
	}
	note(&all)(resources.EncodeSettings(view.Settings()))
	for _, s := range view.Services() {
		note(&all)(resources.EncodeService(s))
	}
	for _, p := range view.Policies() {
		note(&rest)(resources.EncodePolicy(p))
	}
	return all, rest, err
}

func pointers[T any](list []T) (all []*T) {
	for i := range list {
		all = append(all, &list[i])
	}
	return all
}

// outcome is what becomes of a request at the waypoint.
type outcome struct {
	Status  int
	Verdict mesh.Verdict
	Reason  string
	Policy  string
	Rule    int
}

// expect is what the documentation says of a request: what the waypoint answers itself, or what policy says of what
// the workload gets, nil in the former case.
func (s *state) expect(q question) (out outcome, sent *message, a asked) {
	a = asked{peer: q.Peer, source: q.Source, port: q.Port}
	refuse := func(status int, why string) outcome { return outcome{Status: status, Reason: why, Rule: -1} }
	if stranger := s.decide(a); a.foreign() && stranger.Verdict == mesh.VerdictDeny && stranger.Reason != mesh.ReasonRequestUnseen {
		return refuse(403, stranger.Reason.String()), nil, a
	}
	if q.Message.Method == "CONNECT" {
		return refuse(405, plan.ConnectRefused), nil, a
	}
	raw, _, _ := strings.Cut(q.Message.Target, "?")
	path, ok := normal(raw)
	if !ok {
		return refuse(400, plan.BadPath), nil, a
	}
	if s.route != nil {
		rule := ruleFor(s.route, path)
		if rule == nil {
			return refuse(404, plan.NoRoute), nil, a
		}
		if len(rule.BackendRefs) == 0 {
			return refuse(500, plan.BackendBroken), nil, a
		}
		a.port = uint16(*rule.BackendRefs[0].Port)
	}
	sent = s.sent(q.Message, a)
	a.request = sent
	d := s.decide(a)
	out = outcome{Status: 200, Verdict: d.Verdict, Reason: d.Reason.String(), Rule: d.Rule}
	if d.Policy != (mesh.Key{}) {
		out.Policy = d.Policy.String()
	}
	if d.Verdict == mesh.VerdictDeny {
		out.Status = 403
	}
	return out, sent, a
}

// disagreement is agree of a configuration that may be none; it is nil then.
func (w *waypoint) disagreement(s *state, c trial) error {
	m := c.Ask.Message
	if c.Ask.Peer == "" || !c.Ask.Source.IsValid() || c.Ask.Port == 0 || m.Version == 0 || m.Method == "" || m.Host == "" || (m.Target == "") != (m.Method == "CONNECT") || !whole(c.Route) {
		return nil // it is no request any more
	}
	small := s.with(c)
	view, err := small.compile("smaller")
	if err != nil || w.take(small, view) != nil {
		return nil
	}
	_, err = w.agree(small, view, c.Ask)
	return err
}

// whole says of a route, if there is one, that it is still one of the kind that routed draws.
func whole(route *gatewayv1.HTTPRoute) bool {
	return route == nil || len(route.Spec.ParentRefs) == 1 && string(route.Spec.ParentRefs[0].Name) == "server" && len(route.Spec.Rules) > 0 && !slices.ContainsFunc(route.Spec.Rules, func(rule gatewayv1.HTTPRouteRule) bool {
		return len(rule.BackendRefs) != 1 || rule.BackendRefs[0].Name != "server" || rule.BackendRefs[0].Port == nil || len(rule.Matches) > 0 && prefixOf(&rule) == "/" ||
			slices.ContainsFunc(rule.Filters, func(f gatewayv1.HTTPRouteFilter) bool { return f.RequestHeaderModifier == nil && f.URLRewrite == nil })
	})
}

// agree has all decide about a request, and says how.
func (w *waypoint) agree(s *state, view *mesh.View, q question) (why string, err error) {
	want, sent, a := s.expect(q)
	if sent == nil {
		a.request = nil
	}
	// The node, who sees no request, must admit nobody whom the waypoint refuses.
	direct := asked{peer: a.peer, source: a.source, port: a.port}
	node := s.decide(direct)
	if err := judged(view, direct, node, false); err != nil {
		return want.Reason, fmt.Errorf("without the request: %w", err)
	}
	w.seen[map[bool]string{true: node.Reason.String()}[node.Reason == mesh.ReasonRequestUnseen]]++
	if sent != nil {
		d := s.decide(a)
		if err := judged(view, a, d, false); err != nil {
			return want.Reason, err
		}
		if node.Verdict != mesh.VerdictDeny && d.Verdict == mesh.VerdictDeny {
			return want.Reason, fmt.Errorf("the workload's node admits past the waypoint (%+v) what that refuses (%+v)", node, d)
		}
	}
	if !s.waypoint {
		return "without a waypoint", nil
	}
	w.seen[fmt.Sprintf("HTTP/%s", map[int]string{1: "1.1", 2: "2"}[q.Message.Version])]++
	w.mu.Lock()
	w.got = nil
	w.mu.Unlock()
	status, reason, err := w.exchange(q)
	if err != nil {
		return want.Reason, err
	}
	got, err := w.flow()
	if err != nil {
		return want.Reason, err
	}
	got.Status = status
	if diff := gocmp.Diff(want, got); diff != "" {
		return want.Reason, fmt.Errorf("the waypoint decides otherwise (-documentation +waypoint):\n%s", diff)
	}
	if refused := want.Status != 200; refused != (reason == want.Reason) {
		return want.Reason, fmt.Errorf("x-heddle-reason is %q, and the request was to be %+v", reason, want)
	}
	return want.Reason, w.came(want, sent, q)
}

// came compares what the workload got with what policy was asked about.
func (w *waypoint) came(want outcome, sent *message, q question) error {
	w.mu.Lock()
	got := w.got
	w.mu.Unlock()
	if want.Status != 200 {
		if got != nil {
			return fmt.Errorf("the workload got %+v, which was refused", got)
		}
		return nil
	}
	if got == nil {
		return errors.New("the workload got nothing")
	}
	kept := func(m *message) (all []string) {
		for _, line := range m.Headers {
			name, value := field(line)
			if name = strings.ToLower(name); slices.Contains([]string{"x-role", "x_role", "x-team", "x-by", "forwarded", "x-forwarded-for", "x-forwarded-client-cert"}, name) && name != "forwarded" {
				all = append(all, name+": "+value)
			}
		}
		slices.SortStableFunc(all, func(a, b string) int {
			return cmp.Compare(a[:strings.IndexByte(a, ':')], b[:strings.IndexByte(b, ':')])
		})
		return all
	}
	if sent.Target != q.Message.Target || sent.Host != q.Message.Host {
		w.seen["rewritten"]++
	}
	a, b := message{Method: sent.Method, Host: sent.Host, Target: sent.Target, Headers: kept(sent)}, message{Method: got.Method, Host: got.Host, Target: got.Target, Headers: kept(got)}
	if diff := gocmp.Diff(a, b, cmpopts.EquateEmpty()); diff != "" {
		return fmt.Errorf("the workload got another request than policy was asked about (-asked +got):\n%s", diff)
	}
	return nil
}

// flow is the next flow record.
func (w *waypoint) flow() (outcome, error) {
	for deadline := time.Now().Add(enough); time.Now().Before(deadline); time.Sleep(20 * time.Microsecond) {
		if last := w.flows.Last(1, &flow.Filter{}); len(last) == 1 && last[0].GetId() > w.last {
			f := last[0]
			w.last = f.GetId()
			out := outcome{Reason: f.GetReason(), Policy: f.GetPolicy(), Rule: -1}
			if f.Rule != nil {
				out.Rule = int(f.GetRule())
			}
			for _, v := range []mesh.Verdict{mesh.VerdictAllow, mesh.VerdictAudit} {
				if f.GetVerdict() == v.String() {
					out.Verdict = v
				}
			}
			return out, nil
		}
	}
	return outcome{}, errors.New("the waypoint shows no flow of the request")
}

// exchange sends a request as the waypoint's agent brings it, and returns the status and x-heddle-reason of the answer.
func (w *waypoint) exchange(q question) (status int, reason string, err error) {
	c, err := net.Dial("tcp", w.at.String())
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(enough))
	service := netip.AddrPortFrom(netip.MustParseAddr(serviceAddress), q.Port)
	head := proxyheader.Append(nil, proxyheader.Header{Client: netip.AddrPortFrom(q.Source, 4567), Service: service, Identity: q.Peer})
	if q.Message.Version == 2 {
		return exchange2(c, head, &q.Message)
	}
	m := &q.Message
	head = fmt.Appendf(head, "%s %s HTTP/1.1\r\nHost: %s\r\n", m.Method, cmp.Or(m.Target, m.Host), m.Host)
	for _, line := range m.Headers {
		head = append(head, line+"\r\n"...)
	}
	if _, err := c.Write(append(head, "\r\n"...)); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "", err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Heddle-Reason"), errors.Join(err, resp.Body.Close())
}

// exchange2 is exchange in HTTP/2, behind what is written first.
func exchange2(c net.Conn, first []byte, m *message) (status int, reason string, err error) {
	var out, block bytes.Buffer
	out.Write(first)
	out.WriteString(xhttp2.ClientPreface)
	f := xhttp2.NewFramer(&out, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	e := hpack.NewEncoder(&block)
	fields := [][2]string{{":method", m.Method}, {":authority", m.Host}}
	if m.Method != "CONNECT" {
		fields = append(fields, [2]string{":scheme", "http"}, [2]string{":path", m.Target})
	}
	for _, line := range m.Headers {
		name, value := field(line)
		fields = append(fields, [2]string{strings.ToLower(name), value})
	}
	for _, field := range fields {
		err = errors.Join(err, e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	err = errors.Join(err, f.WriteSettings(), f.WriteSettingsAck(), f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}))
	if _, e := c.Write(out.Bytes()); err != nil || e != nil {
		return 0, "", errors.Join(err, e)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return 0, "", err
		}
		if h, ok := frame.(*xhttp2.MetaHeadersFrame); ok {
			for _, field := range h.Fields {
				switch field.Name {
				case ":status":
					_, err = fmt.Sscan(field.Value, &status)
				case "x-heddle-reason":
					reason = field.Value
				}
			}
		}
		if over, ok := frame.(*xhttp2.RSTStreamFrame); ok {
			return 0, "", fmt.Errorf("the stream is reset: %v", over.ErrCode)
		}
		if h := frame.Header(); err != nil || h.StreamID == 1 && h.Flags.Has(xhttp2.FlagDataEndStream) && (h.Type == xhttp2.FrameData || h.Type == xhttp2.FrameHeaders) {
			return status, reason, err
		}
	}
}
