package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// called is what servers of gRPC were asked, by the names of their workloads.
type called struct {
	mu    sync.Mutex
	calls map[string][]string // the method, and the sizes of its messages
}

func (c *called) note(workload, call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[workload] = append(c.calls[workload], call)
}

func (c *called) of(workload string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.calls[workload]...)
}

// answering is a service of gRPC that knows every method: it sends back each message as it comes, and says before that which
// workload it is, and in headers got-... what it was sent.
func (c *called) answering(t *testing.T, name string, address netip.Addr, n int) *backend {
	t.Helper()
	return servingCalls(t, name, address, n, func(i int) *grpc.Server {
		workload := fmt.Sprintf("%s-%d", name, i)
		return grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(s)
			sent, _ := metadata.FromIncomingContext(s.Context())
			said := metadata.Pairs("x-workload", workload, "x-secret", "1", "x-version", "theirs")
			for header, values := range sent {
				if !strings.HasPrefix(header, ":") {
					said.Append("got-"+header, values...)
				}
			}
			if err := s.SendHeader(said); err != nil {
				return err
			}
			for {
				message := &pb.Payload{}
				if err := s.RecvMsg(message); errors.Is(err, io.EOF) {
					c.note(workload, method)
					return nil
				} else if err != nil {
					return err
				}
				method += fmt.Sprintf(" %d", len(message.Body))
				if err := s.SendMsg(message); err != nil {
					return err
				}
			}
		}))
	})
}

// callers are a client of gRPC, and the world it calls through.
type callers struct {
	*world
	*called
	conn *grpc.ClientConn
}

// call makes a call with a message of 3 bytes: who answers, or with which status, and the headers of the answer.
func (c *callers) call(t *testing.T, method string, headers ...string) (by string, header metadata.MD) {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), headers...), 10*time.Second)
	defer cancel()
	answer := &pb.Payload{}
	if err := c.conn.Invoke(ctx, method, payload(3), answer, grpc.Header(&header)); err != nil {
		return status.Code(err).String() + " " + status.Convert(err).Message(), header
	}
	if len(answer.Body) != 3 {
		t.Errorf("%s is answered with %d bytes", method, len(answer.Body))
	}
	return strings.Join(header["x-workload"], ","), header
}

// want makes calls, each "method header: value ... = who answers, or with which status".
func (c *callers) want(t *testing.T, calls ...string) {
	t.Helper()
	for _, call := range calls {
		asked, want, _ := strings.Cut(call, " = ")
		fields := strings.Fields(asked)
		for i := 1; i < len(fields); i += 2 {
			fields[i] = strings.TrimSuffix(fields[i], ":")
		}
		if by, _ := c.call(t, fields[0], fields[1:]...); by != want {
			t.Errorf("%s: it is %q that answers, want %q", asked, by, want)
		}
	}
}

// turns makes calls one after another, and says who answered each.
func (c *callers) turns(t *testing.T, n int) (all []string) {
	t.Helper()
	for range n {
		by, _ := c.call(t, "/shop.Cart/Get")
		all = append(all, by)
	}
	return all
}

// share wants of every 100 answers in a row as many to be by one as its share is, rounded down or up.
func share(t *testing.T, all []string, by string, weight, of int) {
	t.Helper()
	least, most := 100*weight/of, (100*weight+of-1)/of
	for from := range len(all) - 99 {
		n := 0
		for _, a := range all[from : from+100] {
			if a == by {
				n++
			}
		}
		if n < least || n > most {
			t.Fatalf("of the calls %d to %d, %d are answered by %s, want %d to %d", from, from+99, n, by, least, most)
		}
	}
}

// stream is a call in both directions.
type stream struct {
	t *testing.T
	grpc.ClientStream
}

// stream begins one.
func (c *callers) stream(t *testing.T, method string) stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	s, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	return stream{t, s}
}

// with wants it to be answered by a workload.
func (s stream) with(workload string) {
	s.t.Helper()
	if h, err := s.Header(); err != nil || strings.Join(h["x-workload"], ",") != workload {
		s.t.Fatalf("a stream is with %v, %v, want %s", h["x-workload"], err, workload)
	}
}

// says sends messages, one on the other, and then reads as many.
func (s stream) says(sizes ...int32) {
	s.t.Helper()
	for _, n := range sizes {
		if err := s.SendMsg(payload(n)); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, n := range sizes {
		got := &pb.Payload{}
		if err := s.RecvMsg(got); err != nil || len(got.Body) != int(n) {
			s.t.Fatalf("%d bytes come back as %d, %v", n, len(got.Body), err)
		}
	}
}

// ends ends it.
func (s stream) ends() {
	s.t.Helper()
	if err := s.CloseSend(); err != nil {
		s.t.Fatal(err)
	}
	if err := s.RecvMsg(&pb.Payload{}); !errors.Is(err, io.EOF) {
		s.t.Fatalf("a stream ends with %v", err)
	}
}

// grpcRoute is a route of cart.
func grpcRoute(name, rules string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {namespace: shop, name: %s}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: cart}]\n  rules:\n", name) + rules
}

// older is the same route, of that time.
func older(route, created string) string {
	return strings.Replace(route, "{namespace: shop, ", `{namespace: shop, creationTimestamp: "`+created+`", `, 1)
}

// grant lets routes of a kind in shop refer to the Services of bank.
func grant(kind string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {namespace: bank, name: shop}\nspec:\n"+
		"  from: [{group: gateway.networking.k8s.io, kind: %s, namespace: shop}]\n  to: [{group: \"\", kind: Service}]\n", kind)
}

// streamsTo are rules for streams.
func streamsTo(backend string) string {
	return fmt.Sprintf(`
  - matches: [{method: {service: shop.Cart, method: Watch}}]
    backendRefs: [{name: %s, port: 80}]
  - matches: [{method: {service: shop.Cart, method: Upload}}]
    backendRefs: [{name: both, port: 80}]
`, backend)
}

// sessionsOfCalls: the calls of a session stay with its workload, each rule has sessions of its own, and one that asks for
// none has none.
func sessionsOfCalls(t *testing.T, c *callers) {
	cookie := func(h metadata.MD) string {
		for _, text := range h["set-cookie"] {
			if set, err := http.ParseSetCookie(text); err == nil && set.Name == "sid" {
				return "sid=" + set.Value
			}
		}
		return ""
	}
	header := func(h metadata.MD) string { return strings.Join(h["x-session"], ",") }
	for _, of := range []struct {
		method, name, others string
		token                func(metadata.MD) string
	}{{"/shop.Cart/ByHeader", "x-session", "/shop.Cart/ByCookie", header}, {"/shop.Cart/ByCookie", "cookie", "/shop.Cart/ByHeader", cookie}} {
		begun := map[string]bool{}
		for range 16 { // by chance, all are with one of three less than once in ten million times
			at, h := c.call(t, of.method)
			token := of.token(h)
			begun[at] = true
			if token == "" {
				t.Fatalf("%s begins with %s, and has no token in %v", of.method, at, h)
			}
			for range 3 {
				if by, h := c.call(t, of.method, of.name, token); by != at || of.token(h) != "" {
					t.Fatalf("a session of %s with %s is answered by %s, with the token %q", of.method, at, by, of.token(h))
				}
			}
			if _, h := c.call(t, of.others, of.name, token); header(h)+cookie(h) == "" {
				t.Errorf("%s goes on with a session of %s", of.others, of.method)
			}
			if _, h := c.call(t, "/shop.Cart/Get", of.name, token); header(h)+cookie(h) != "" {
				t.Errorf("a rule without sessions has the token %q", header(h)+cookie(h))
			}
		}
		if len(begun) < 2 {
			t.Errorf("16 sessions of %s are with %v", of.method, begun)
		}
	}
}

// TestGRPCRoute: GRPCRoutes, as they are written, decide what becomes of the calls of gRPC's own client: who answers, what
// arrives, and with which status a call ends that goes nowhere. One connection has them all, one after another.
func TestGRPCRoute(t *testing.T) {
	log := &called{calls: map[string][]string{}}
	backends := []*backend{log.answering(t, "cart", cartAddr, 3), {name: "empty", port: "http", target: servicePort}}
	for _, name := range []string{"exact", "service", "services", "method", "methods", "both", "header", "headers", "most", "lang", "rest", "shadow", "sample", "copy", "none", "pay"} {
		backends = append(backends, log.answering(t, name, netip.Addr{}, 1))
	}
	backends[len(backends)-1].namespace = "bank"
	w := newWorld(t, backends)
	c := &callers{w, log, w.caller()}
	const abroad = "  - backendRefs: [{name: pay, namespace: bank, port: 80}]\n"
	for _, test := range []struct {
		name, objects string
		check         func(t *testing.T, c *callers)
	}{
		{"matches", grpcRoute("calls", `
  - backendRefs: [{name: rest, port: 80}]
  - matches: [{method: {method: Get}}]
    backendRefs: [{name: method, port: 80}]
  - matches: [{method: {type: RegularExpression, method: "(Get|List).*"}}]
    backendRefs: [{name: methods, port: 80}]
  - matches: [{method: {type: RegularExpression, service: 'shop\.v[12]\..*'}}]
    backendRefs: [{name: services, port: 80}]
  - matches: [{method: {service: shop.v1.Cart}}]
    backendRefs: [{name: service, port: 80}]
  - matches: [{method: {type: RegularExpression, service: 'bank\..*', method: "Pay(Back)?"}}, {method: {service: bank.Safe, method: Open}}]
    backendRefs: [{name: both, port: 80}]
  - matches: [{method: {service: shop.v1.Cart, method: Get}}]
    backendRefs: [{name: exact, port: 80}]
  - matches: [{method: {service: shop.v1.Cart, method: Get}, headers: [{name: Version, value: "2"}]}]
    backendRefs: [{name: header, port: 80}]
  - matches: [{method: {service: shop.v1.Cart, method: Get}, headers: [{type: RegularExpression, name: color, value: "red|blue"}]}]
    backendRefs: [{name: headers, port: 80}]
  - matches: [{method: {service: shop.v1.Cart, method: Get}, headers: [{name: version, value: "2"}, {name: lang, value: en}]}]
    backendRefs: [{name: most, port: 80}]
  - matches: [{headers: [{name: lang, value: de}]}]
    backendRefs: [{name: lang, port: 80}]
`), func(t *testing.T, c *callers) {
			c.want(t, "/shop.v1.Cart/Get = exact-0", "/shop.v1.Cart/get = service-0", "/shop.v1.Cart/Put = service-0", "/shop.v1.cart/Get = services-0", "/shop.v2.Cart/Get = services-0",
				"/shop.v3.Cart/Get = method-0", "/shop.v3.Cart/GetAll = methods-0", "/shop.v3.Cart/List = methods-0", "/shop.v3.Cart/Relist = rest-0", "/ashop.v1.Cart/Put = rest-0",
				"/bank.Pay/Pay = both-0", "/bank.Pay/PayBack = both-0", "/bank.Safe/Open = both-0", "/bank.Safe/Close = rest-0",
				"/shop.v1.Cart/Get version: 2 = header-0", "/shop.v1.Cart/Get version: 3 = exact-0", "/shop.v1.Cart/Get color: blue = headers-0", "/shop.v1.Cart/Get color: bluer = exact-0",
				"/shop.v1.Cart/Get color: red version: 2 = header-0", // of two alike, the first
				"/shop.v1.Cart/Get lang: en version: 2 = most-0", "/shop.v1.Cart/Get lang: en = exact-0", "/shop.v1.Cart/Get lang: de = exact-0", "/a.B/C lang: de = lang-0", "/a.B/C version: 2 = rest-0")
		}},
		{"the older route", older(grpcRoute("a", "  - backendRefs: [{name: rest, port: 80}]\n"), "2026-01-02T00:00:00Z") + older(grpcRoute("b", `
  - backendRefs: [{name: exact, port: 80}]
  - matches: [{method: {service: a.B}}]
    backendRefs: [{name: service, port: 80}]
`), "2026-01-01T00:00:00Z") + grpcRoute("c", "  - matches: [{method: {service: a.B, method: C}}]\n    backendRefs: [{name: both, port: 80}]\n"), func(t *testing.T, c *callers) {
			c.want(t, "/x.Y/Z = exact-0", "/a.B/D = service-0", "/a.B/C = both-0")
		}},
		{"nothing matches", grpcRoute("calls", "  - matches: [{method: {service: shop.Cart}}]\n    backendRefs: [{name: exact, port: 80}]\n"), func(t *testing.T, c *callers) {
			c.want(t, "/shop.Cart/Get = exact-0", "/shop.Carts/Get = Unimplemented heddle: NoRoute", "/shop.Cart/Put = exact-0")
			if resp, _ := c.get(c.client2(), "/shop.Cart/Get"); resp.StatusCode != http.StatusNotFound {
				t.Errorf("what is no call is answered with %d", resp.StatusCode)
			}
		}},
		{"headers change", grpcRoute("calls", `
  - filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: x-add, value: "2"}], remove: [x-gone]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Version, value: ours}], add: [{name: x-new, value: "3"}], remove: [x-secret]}}
    backendRefs:
    - name: exact
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-backend, value: exact}]}}]
`), func(t *testing.T, c *callers) {
			by, h := c.call(t, "/shop.Cart/Get", "x-set", "old", "x-add", "1", "x-gone", "1", "x-own", "1")
			if got := fmt.Sprint([]string{by}, h["got-x-set"], h["got-x-add"], h["got-x-gone"], h["got-x-own"], h["got-x-backend"]); got != "[exact-0] [new] [1 2] [] [1] [exact]" {
				t.Errorf("what arrives is %s", got)
			}
			if got := fmt.Sprint(h["x-version"], h["x-new"], h["x-secret"]); got != "[ours] [3] []" {
				t.Errorf("what is answered is %s", got)
			}
		}},
		{"mirror", grpcRoute("calls", `
  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, percent: 20}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: sample, port: 80}, fraction: {numerator: 1, denominator: 50}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}, percent: 0}}
    backendRefs: [{name: exact, port: 80}]
`), func(t *testing.T, c *callers) {
			share(t, c.turns(t, 100), "exact-0", 1, 1)
			mirrored := map[string]int{"shadow-0": 20, "sample-0": 2, "copy-0": 100, "none-0": 0}
			eventually(t, "all copies have been sent", func() bool { return c.value("heddle_waypoint_mirrored_total", "outcome", "sent") >= 122 })
			for workload, want := range mirrored {
				got := c.of(workload)
				if len(got) != want {
					t.Errorf("%s has %d copies, want %d", workload, len(got), want)
				}
				for _, call := range got {
					if call != "/shop.Cart/Get 3" {
						t.Errorf("%s has the copy %q", workload, call)
					}
				}
			}
		}},
		{"weights", grpcRoute("calls", `
  - backendRefs: [{name: exact, port: 80, weight: 1}, {name: rest, port: 80, weight: 30}, {name: none, port: 80, weight: 0}, {name: both, port: 80, weight: 69}]
`), func(t *testing.T, c *callers) {
			all := c.turns(t, 200)
			for by, weight := range map[string]int{"exact-0": 1, "rest-0": 30, "none-0": 0, "both-0": 69} {
				share(t, all, by, weight, 100)
			}
		}},
		{"weights that do not come out even", grpcRoute("calls", `
  - backendRefs: [{name: exact, port: 80, weight: 2}, {name: rest, port: 80, weight: 5}, {name: missing, port: 80, weight: 4}]
`), func(t *testing.T, c *callers) {
			all := c.turns(t, 200)
			for by, weight := range map[string]int{"exact-0": 2, "rest-0": 5, "Unavailable heddle: BackendBroken": 4} {
				share(t, all, by, weight, 11)
			}
		}},
		{"no backend", grpcRoute("calls", `
  - matches: [{method: {method: None}}]
  - matches: [{method: {method: Zero}}]
    backendRefs: [{name: exact, port: 80, weight: 0}]
  - matches: [{method: {method: Missing}}]
    backendRefs: [{name: missing, port: 80}]
  - matches: [{method: {method: NoSuchPort}}]
    backendRefs: [{name: exact, port: 81}]
  - matches: [{method: {method: Empty}}]
    backendRefs: [{name: empty, port: 80}]
`), func(t *testing.T, c *callers) {
			c.want(t, "/a.B/None = Unavailable heddle: BackendBroken", "/a.B/Zero = Unavailable heddle: BackendBroken", "/a.B/Missing = Unavailable heddle: BackendBroken",
				"/a.B/NoSuchPort = Unavailable heddle: BackendBroken", "/a.B/Empty = Unavailable heddle: NoEndpoint")
		}},
		{"no grant", grpcRoute("calls", abroad), func(t *testing.T, c *callers) {
			c.want(t, "/bank.Pay/Pay = Unavailable heddle: BackendBroken")
		}},
		{"a grant to others", grpcRoute("calls", abroad) + grant("HTTPRoute"), func(t *testing.T, c *callers) {
			c.want(t, "/bank.Pay/Pay = Unavailable heddle: BackendBroken")
		}},
		{"a grant", grpcRoute("calls", abroad) + grant("GRPCRoute"), func(t *testing.T, c *callers) {
			c.want(t, "/bank.Pay/Pay = pay-0")
		}},
		{"sessions of rules", grpcRoute("calls", `
  - matches: [{method: {method: ByHeader}}]
    sessionPersistence: {type: Header, sessionName: x-session}
    backendRefs: [{name: cart, port: 80}]
  - matches: [{method: {method: ByCookie}}]
    sessionPersistence: {sessionName: sid}
    backendRefs: [{name: cart, port: 80}]
  - backendRefs: [{name: cart, port: 80}]
`), sessionsOfCalls},
		{"streams", grpcRoute("calls", streamsTo("exact")), func(t *testing.T, c *callers) {
			kept := c.stream(t, "/shop.Cart/Watch")
			kept.says(1)
			kept.with("exact-0")
			both := c.stream(t, "/shop.Cart/Upload")
			both.says(1, 30_000, 0, 20_000) // several frames each, before anything is read
			both.with("both-0")
			both.ends()
			if err := c.stream(t, "/shop.Cart/None").RecvMsg(&pb.Payload{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("a stream that no rule matches ends with %v", err)
			}
			c.apply(grpcRoute("calls", streamsTo("rest")))
			kept.says(2, 3)
			next := c.stream(t, "/shop.Cart/Watch")
			next.says(4)
			next.with("rest-0")
			kept.says(5)
			next.ends()
			kept.ends()
			for workload, want := range map[string]string{"exact-0": "/shop.Cart/Watch 1 2 3 5", "rest-0": "/shop.Cart/Watch 4", "both-0": "/shop.Cart/Upload 1 30000 0 20000"} {
				if got := c.of(workload); len(got) == 0 || got[len(got)-1] != want {
					t.Errorf("%s was last asked %v, want %s", workload, got, want)
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			c.apply(test.objects)
			test.check(t, c)
		})
		w.t = t
	}
}
