package workloadapi

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"math"
	"net"
	runtimemetrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/agent/workloadapi/tokencache"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// signer is the operator's part.
type signer struct {
	told jwtkeys.Store // to the agent

	signing struct {
		sync.Mutex
		asked int
		life  time.Duration
		err   error
		keys  []*ecdsa.PrivateKey // the last one signs
		by    tokencache.Sign     // instead, unless it is nil
	}
}

func newJWTKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyName(i int) string { return "key" + string(rune('0'+i)) }

// rekey adds a key, which signs from now on, and tells the agent of all.
func (s *signer) rekey(t testing.TB) {
	t.Helper()
	s.signing.Lock()
	defer s.signing.Unlock()
	s.signing.keys = append(s.signing.keys, newJWTKey(t))
	all := map[string]crypto.PublicKey{}
	for i, k := range s.signing.keys {
		all[keyName(i)] = k.Public()
	}
	document, err := jwtkeys.Document(all)
	if err == nil {
		_, err = s.told.Take(spiffeid.RequireTrustDomainFromString("mesh.test"), &meshpb.JWTKeys{Jwks: document})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func token(t testing.TB, key *ecdsa.PrivateKey, kid string, claims any, change ...func(*jose.SignerOptions)) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	for _, c := range change {
		c(options)
	}
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, options)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(by).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func claimsOf(id string, after time.Duration, audience ...string) jwt.Claims {
	return jwt.Claims{Subject: id, Audience: audience, Expiry: jwt.NewNumericDate(time.Now().Add(after)), IssuedAt: jwt.NewNumericDate(time.Now().Add(-30 * time.Minute))}
}

// signJWT is a tokencache.Sign.
func (w *world) signJWT(ctx context.Context, id spiffeid.ID, audience []string) (string, time.Duration, error) {
	w.signing.Lock()
	defer w.signing.Unlock()
	w.signing.asked++
	if w.signing.by != nil {
		return w.signing.by(ctx, id, audience)
	}
	if w.signing.err != nil {
		return "", 0, w.signing.err
	}
	last := len(w.signing.keys) - 1
	if last < 0 {
		return "", 0, status.Error(codes.Unavailable, "there is no key yet")
	}
	return token(w.t, w.signing.keys[last], keyName(last), claimsOf(id.String(), w.signing.life, audience...)), w.signing.life, nil
}

func (w *world) asked() int {
	w.signing.Lock()
	defer w.signing.Unlock()
	return w.signing.asked
}

func newJWTWorld(t *testing.T, limits Limits) *world {
	t.Helper()
	w := newWorld(t, limits)
	w.signing.life = 5 * time.Minute
	w.rekey(t)
	w.label("web", Enabled, "api", Enabled)
	return w
}

// TestJWT: go-spiffe's client gets a token of the pod's own identity, and the bundle by which
// it and the other pod's agent find it valid; a token of a key before stays valid.
func TestJWT(t *testing.T) {
	w := newJWTWorld(t, Limits{})
	web, api := w.client("web"), w.client("api")
	svid, err := web.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api", ExtraAudiences: []string{"db", "api"}, Subject: w.id("web")})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != w.id("web") || !slices.Equal(svid.Audience, []string{"api", "db"}) {
		t.Errorf("web is given %+v", svid)
	}
	got, err := api.ValidateJWTSVID(t.Context(), svid.Marshal(), "db")
	if err != nil || got.ID != w.id("web") || got.Claims["sub"] != w.id("web").String() {
		t.Errorf("api finds %+v, %v", got, err)
	}
	_, err = api.ValidateJWTSVID(t.Context(), svid.Marshal(), "other")
	wantCode(t, "another audience", err, codes.InvalidArgument)
	w.rekey(t)
	bundles, err := api.FetchJWTBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := bundles.Get(w.td); !ok || len(b.JWTAuthorities()) != 2 {
		t.Errorf("api is given the bundles %v", bundles)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"api"}); err != nil {
		t.Errorf("a token of the key before: %v", err)
	}
	if _, err := api.ValidateJWTSVID(t.Context(), svid.Marshal(), "db"); err != nil {
		t.Errorf("a token of the key before: %v", err)
	}
	for j, want := range map[jwtOutcome]float64{signed: 1, cached: 0, failed: 0, valid: 2, rejected: 1} {
		if n := testutil.ToFloat64(w.server.metrics.jwts.WithLabelValues(string(j))); n != want {
			t.Errorf("%v are counted as %s, not %v", n, j, want)
		}
	}
}

// TestJWTCached: who asks for the same gets the same, and the operator is asked once; who asks
// for other audiences does not.
func TestJWTCached(t *testing.T) {
	w := newJWTWorld(t, Limits{})
	fetch := func(pod, audience string, extra ...string) string {
		t.Helper()
		svid, err := w.client(pod).FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience, ExtraAudiences: extra})
		if err != nil {
			t.Fatal(err)
		}
		return svid.Marshal()
	}
	first := fetch("web", "a", "b")
	if fetch("web", "b", "a", "a") != first || w.asked() != 1 {
		t.Errorf("signed %d times for one set of audiences", w.asked())
	}
	if fetch("web", "a") == first || fetch("api", "a", "b") == first || w.asked() != 3 {
		t.Errorf("signed %d times for three", w.asked())
	}
	// The operator is away: what is half gone is given on.
	w.signing.Lock()
	w.signing.err = status.Error(codes.Unavailable, "away")
	w.signing.Unlock()
	if fetch("web", "a", "b") != first {
		t.Error("another token, though nobody signs")
	}
	_, err := w.client("web").FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "new"})
	wantCode(t, "a new audience with nobody to sign", err, codes.Unavailable)
}

// TestJWTRefused: what the specification calls an error has its code.
func TestJWTRefused(t *testing.T) {
	w := newJWTWorld(t, Limits{Patience: 200 * time.Millisecond, JWTs: 1})
	c := w.raw("web")
	ctx := withHeader(t.Context(), header, headerValue)
	ask := func(what string, want codes.Code, req *workload.JWTSVIDRequest) {
		t.Helper()
		_, err := c.FetchJWTSVID(ctx, req)
		wantCode(t, what, err, want)
	}
	ask("no audience", codes.InvalidArgument, &workload.JWTSVIDRequest{})
	ask("an empty one", codes.InvalidArgument, &workload.JWTSVIDRequest{Audience: []string{""}})
	ask("no SPIFFE ID", codes.InvalidArgument, &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "web"})
	counted := func(o outcome) float64 {
		return testutil.ToFloat64(w.server.metrics.outcomes.WithLabelValues(string(o)))
	}
	_, err := c.FetchJWTSVID(t.Context(), &workload.JWTSVIDRequest{Audience: []string{"a"}})
	wantCode(t, "no header", err, codes.InvalidArgument)
	testenv.Eventually(t, 10*time.Second, "three are counted as invalid, one as without the header", func() bool { return counted(malformed) == 3 && counted(noHeader) == 1 })
	ask("another's", codes.PermissionDenied, &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: w.id("api").String()})
	ask("its own", codes.OK, &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: w.id("web").String()})
	for _, code := range []codes.Code{codes.PermissionDenied, codes.ResourceExhausted} {
		w.signing.Lock()
		w.signing.err = status.Error(code, "the operator says so")
		w.signing.Unlock()
		ask("the operator refuses", code, &workload.JWTSVIDRequest{Audience: []string{code.String()}})
	}
	w.signing.Lock()
	w.signing.err = errors.New("of no status")
	w.signing.Unlock()
	ask("the operator fails", codes.Unavailable, &workload.JWTSVIDRequest{Audience: []string{"x"}})
	w.signing.Lock()
	w.signing.err = nil
	w.signing.Unlock()
	limited := 0
	for i := range 20 {
		if _, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"of " + string(rune('a'+i))}}); status.Code(err) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited == 0 || limited == 20 {
		t.Errorf("%d of 20 that had to be signed were refused", limited)
	}
	ask("what was given before", codes.OK, &workload.JWTSVIDRequest{Audience: []string{"a"}})
	w.revoke(w.id("web"))
	ask("a revoked identity", codes.PermissionDenied, &workload.JWTSVIDRequest{Audience: []string{"a"}})
	_, err = c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
	wantCode(t, "a revoked identity validates", err, codes.PermissionDenied)
	_, err = receive(c.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{}))
	wantCode(t, "a revoked identity asks for bundles", err, codes.PermissionDenied)
}

// older is an operator of a version before JWT-SVIDs, which knows no method to sign one.
func older(t *testing.T) *grpc.ClientConn {
	t.Helper()
	desc := meshpb.Issuing_ServiceDesc
	desc.Methods = slices.DeleteFunc(slices.Clone(desc.Methods), func(m grpc.MethodDesc) bool { return m.MethodName == "SignJWT" })
	if len(desc.Methods)+1 != len(meshpb.Issuing_ServiceDesc.Methods) {
		t.Fatal("the method has another name")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	server.RegisterService(&desc, meshpb.UnimplementedIssuingServer{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); server.Stop(); serving.Wait() })
	return conn
}

// TestJWTOlderOperator: an agent that is newer than its operator tells clients to ask again, and
// has a token for them as soon as the operator is replaced. Only what will never be is Unimplemented.
func TestJWTOlderOperator(t *testing.T) {
	w := newJWTWorld(t, Limits{})
	c := w.raw("web")
	for _, step := range []struct {
		by   tokencache.Sign
		want codes.Code
		says string
	}{
		{nodeauth.NewClient(older(t)).SignJWT, codes.Unavailable, "the operator is of a version before JWT-SVIDs"},
		{nil, codes.OK, ""}, // it was replaced
		{unsigned, codes.Unimplemented, "nobody who signs"},
	} {
		w.signing.Lock()
		w.signing.by = step.by
		w.signing.Unlock()
		_, err := c.FetchJWTSVID(withHeader(t.Context(), header, headerValue), &workload.JWTSVIDRequest{Audience: []string{step.want.String()}})
		if wantCode(t, "FetchJWTSVID", err, step.want); err != nil && !strings.Contains(err.Error(), step.says) {
			t.Errorf("%v, want %q", err, step.says)
		}
	}
}

// TestJWTWithheld: where the keys are somebody else's, or not there yet, each method says so.
func TestJWTWithheld(t *testing.T) {
	w := newWorld(t, Limits{Patience: 50 * time.Millisecond})
	w.label("web", Enabled)
	ask := func(bundles, validated codes.Code, says string) {
		t.Helper()
		c := w.client("web")
		_, err := c.FetchJWTBundles(t.Context())
		wantCode(t, "FetchJWTBundles", err, bundles)
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		_, err = c.ValidateJWTSVID(t.Context(), "e30.e30.", "api")
		wantCode(t, "ValidateJWTSVID", err, validated)
	}
	ask(codes.Unavailable, codes.Unavailable, "the operator has not said")
	if _, err := w.told.Take(w.td, &meshpb.JWTKeys{Withheld: "they are SPIRE's"}); err != nil {
		t.Fatal(err)
	}
	ask(codes.Unimplemented, codes.Unimplemented, "they are SPIRE's")
	_, err := w.client("web").FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"})
	wantCode(t, "FetchJWTSVID", err, codes.Unimplemented)
	if w.asked() != 0 {
		t.Error("the operator is asked to sign")
	}
}

// TestJWTBundlesFollow: a stream has each change of the keys, and those of federated trust
// domains while they are believed; and tokens of these are validated.
func TestJWTBundlesFollow(t *testing.T) {
	w := newJWTWorld(t, Limits{})
	stream, err := w.raw("web").FetchJWTBundles(withHeader(t.Context(), header, headerValue), &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want map[string]int) {
		t.Helper()
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for name, document := range m.GetBundles() {
			td := spiffeid.RequireTrustDomainFromString(name)
			b, err := jwtbundle.Parse(td, document)
			if err != nil {
				t.Fatal(err)
			}
			got[td.Name()] = len(b.JWTAuthorities())
		}
		if len(got) != len(want) || got["mesh.test"] != want["mesh.test"] || got["other.test"] != want["other.test"] {
			t.Errorf("the bundles are %v, want %v", got, want)
		}
	}
	next(map[string]int{"mesh.test": 1})
	w.rekey(t)
	next(map[string]int{"mesh.test": 2})
	other, key := spiffeid.RequireTrustDomainFromString("other.test"), newJWTKey(t)
	authority, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: other})
	if err != nil {
		t.Fatal(err)
	}
	bundle := spiffebundle.FromX509Bundle(authority.Bundle())
	if err := bundle.AddJWTAuthority("theirs", key.Public()); err != nil {
		t.Fatal(err)
	}
	document, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	domain, err := federated.Parse(other, document)
	if err != nil {
		t.Fatal(err)
	}
	theirs := token(t, key, "theirs", claimsOf("spiffe://other.test/ns/x/sa/y", time.Minute, "web"))
	_, err = w.client("web").ValidateJWTSVID(t.Context(), theirs, "web")
	wantCode(t, "of a trust domain that is not believed", err, codes.InvalidArgument)
	w.source.SetFederated(federated.NewSet(domain))
	next(map[string]int{"mesh.test": 2, "other.test": 1})
	if svid, err := w.client("web").ValidateJWTSVID(t.Context(), theirs, "web"); err != nil || svid.ID.TrustDomain() != other {
		t.Errorf("of one that is: %v, %v", svid, err)
	}
	ours := token(t, key, "theirs", claimsOf(w.id("web").String(), time.Minute, "web"))
	_, err = w.client("web").ValidateJWTSVID(t.Context(), ours, "web")
	wantCode(t, "another trust domain's word about us", err, codes.InvalidArgument)
	w.source.SetFederated(federated.NewSet())
	next(map[string]int{"mesh.test": 2})
}

// TestInvalidJWTs: no token is valid that is not signed by a key of its trust domain, for the
// audience, and in time.
func TestInvalidJWTs(t *testing.T) {
	w := newJWTWorld(t, Limits{Rate: 1000})
	c := w.raw("api")
	ctx := withHeader(t.Context(), header, headerValue)
	key, id := w.signing.keys[0], w.id("web").String()
	good := token(t, key, keyName(0), claimsOf(id, time.Minute, "api"))
	parts := strings.Split(good, ".")
	encode := base64.RawURLEncoding.EncodeToString
	without := func(name string) map[string]any {
		all := map[string]any{"sub": id, "aud": []string{"api"}, "exp": time.Now().Add(time.Minute).Unix()}
		delete(all, name)
		return all
	}
	check := func(what, text, audience string, want codes.Code) {
		t.Helper()
		_, err := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: text})
		wantCode(t, what, err, want)
	}
	check("a good one", good, "api", codes.OK)
	check("one that a clock 50 s ahead finds ended", token(t, key, keyName(0), claimsOf(id, -50*time.Second, "api")), "api", codes.OK)
	for what, text := range map[string]string{
		"expired":             token(t, key, keyName(0), claimsOf(id, -2*time.Minute, "api")),
		"issued in an hour":   token(t, key, keyName(0), jwt.Claims{Subject: id, Audience: jwt.Audience{"api"}, Expiry: jwt.NewNumericDate(time.Now().Add(2 * time.Hour)), IssuedAt: jwt.NewNumericDate(time.Now().Add(time.Hour))}),
		"another audience":    token(t, key, keyName(0), claimsOf(id, time.Minute, "web")),
		"another key":         token(t, newJWTKey(t), keyName(0), claimsOf(id, time.Minute, "api")),
		"an unknown key":      token(t, key, keyName(7), claimsOf(id, time.Minute, "api")),
		"no key ID":           token(t, key, "", claimsOf(id, time.Minute, "api")),
		"another type":        token(t, key, keyName(0), claimsOf(id, time.Minute, "api"), func(o *jose.SignerOptions) { o.WithType("dpop+jwt") }),
		"no expiry":           token(t, key, keyName(0), without("exp")),
		"no audience":         token(t, key, keyName(0), without("aud")),
		"no subject":          token(t, key, keyName(0), without("sub")),
		"no SPIFFE ID":        token(t, key, keyName(0), claimsOf("web", time.Minute, "api")),
		"another domain":      token(t, key, keyName(0), claimsOf("spiffe://other.test/x", time.Minute, "api")),
		"nothing":             "",
		"not signed":          parts[0] + "." + parts[1] + ".",
		"of no algorithm":     encode([]byte(`{"alg":"none","kid":"key0","typ":"JWT"}`)) + "." + parts[1] + ".",
		"by a shared secret":  encode([]byte(`{"alg":"HS256","kid":"key0","typ":"JWT"}`)) + "." + parts[1] + "." + parts[2],
		"changed":             parts[0] + "." + encode([]byte(`{"sub":"`+w.id("api").String()+`","aud":["api"],"exp":4102444800}`)) + "." + parts[2],
		"of the JSON form":    `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"more than is needed": good + ".x",
	} {
		check(what, text, "api", codes.InvalidArgument)
	}
	check("for nobody", good, "", codes.InvalidArgument)
	check("too large", strings.Repeat("a", maxRequestBytes), "api", codes.ResourceExhausted) // before it is read
	w.revoke(w.id("web"))
	check("a revoked identity's", good, "api", codes.InvalidArgument)
}

// bombs are texts of JSON that cost a parser more than others of their size, of n bytes at most.
func bombs(n int) map[string]string {
	const object = `{"sub":"spiffe://mesh.test/ns/shop/sa/web","aud":["api"],"exp":`
	return map[string]string{
		"lists":        strings.Repeat("[", n),
		"deep lists":   `{"a":` + strings.Repeat("[", n/2-8) + strings.Repeat("]", n/2-8) + `}`,
		"deep objects": strings.Repeat(`{"a":`, n/6-1) + "1" + strings.Repeat("}", n/6-1),
		"many names":   `{"a":0` + strings.Repeat(`,"":0`, n/5-4) + `}`,
		"one exponent": object + `1e` + strings.Repeat("9", n-len(object)-3) + `}`,
		"one number":   object + strings.Repeat("9", n-len(object)-1) + `}`,
		"escapes":      `{"a":"` + strings.Repeat(`\u0000`, n/6-2) + `"}`,
		"audiences":    `{"sub":"spiffe://mesh.test/ns/shop/sa/web","exp":4102444800,"aud":[` + strings.Repeat(`"",`, n/3-40) + `""]}`,
	}
}

// compact is a token of a header, claims and a signature, which nobody has made.
func compact(header, claims, signature string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(header)) + "." + encode([]byte(claims)) + "." + signature
}

// The bounds of what a token costs that is asked about, whatever is in it: memory in bytes, which
// is not held afterwards, and time, which a machine with other work to do multiplies.
const (
	maxValidateBytes = 4 << 20
	maxValidateTime  = 100 * time.Millisecond
)

// cost runs fn, and returns what it took: the least of some runs, as others run beside it.
func cost(fn func()) (memory uint64, took time.Duration) {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	read := func() uint64 { runtimemetrics.Read(sample); return sample[0].Value.Uint64() }
	memory, took = math.MaxUint64, math.MaxInt64
	for range 5 {
		before, began := read(), time.Now()
		fn()
		took, memory = min(took, time.Since(began)), min(memory, read()-before)
		if memory <= maxValidateBytes && took <= maxValidateTime {
			break
		}
	}
	return memory, took
}

// TestTokensAreNoBombs: a token of the largest size that is asked about, of JSON that is made to
// cost much, in its header or in its claims, costs little; a larger one is not looked into.
func TestTokensAreNoBombs(t *testing.T) {
	key, td := newJWTKey(t), spiffeid.RequireTrustDomainFromString("mesh.test")
	keys := jwtbundle.FromJWTAuthorities(td, map[string]crypto.PublicKey{"k": key.Public()})
	const room = jwtkeys.MaxToken*3/4 - 200 // base64 makes four bytes of three
	for what, text := range bombs(room) {
		for where, token := range map[string]string{"header": compact(text, "{}", "AA"), "claims": compact(`{"alg":"ES256","kid":"k","typ":"JWT"}`, text, "AA")} {
			if len(token) > jwtkeys.MaxToken || len(token) < jwtkeys.MaxToken*3/4 {
				t.Fatalf("%s: %d bytes", what, len(token))
			}
			var err error
			memory, took := cost(func() {
				_, err = validate(keys, &workload.ValidateJWTSVIDRequest{Svid: token, Audience: "api"}, func(spiffeid.ID) bool { return false })
			})
			if err == nil || memory > maxValidateBytes || took > maxValidateTime {
				t.Errorf("%s in the %s: %v; it took %d bytes and %v, %d and %v are the bounds", what, where, err, memory, took, maxValidateBytes, maxValidateTime)
			}
		}
	}
	large := compact(strings.Repeat("[", jwtkeys.MaxToken), "{}", "AA")
	if _, err := validate(keys, &workload.ValidateJWTSVIDRequest{Svid: large, Audience: "api"}, nil); err == nil || !strings.Contains(err.Error(), "are possible") {
		t.Errorf("a token that is too large: %v", err)
	}
}

// FuzzValidate: whatever a pod gives to be validated is refused, at a bounded cost, or is a token
// that was signed. It is given as it is, and as a token of a header and claims of JSON.
func FuzzValidate(f *testing.F) {
	key, td := newJWTKey(f), spiffeid.RequireTrustDomainFromString("mesh.test")
	keys := jwtbundle.FromJWTAuthorities(td, map[string]crypto.PublicKey{"k": key.Public()})
	good := token(f, key, "k", claimsOf("spiffe://mesh.test/ns/shop/sa/web", time.Hour, "api"))
	const header = `{"alg":"ES256","kid":"k","typ":"JWT"}`
	f.Add(good, header, `{"sub":"spiffe://mesh.test/ns/shop/sa/web","aud":["api"],"exp":4102444800}`, "api")
	f.Add(strings.Replace(good, ".", "..", 1), `{"alg":"none"}`, "{}", "api")
	f.Add("e30.e30.", "", "", "")
	f.Add(`{"payload":"e30"}`, header, `{"sub":[],"aud":{},"exp":1e999}`, "api")
	for _, text := range bombs(600) {
		f.Add("", header, text, "api")
		f.Add("", text, "{}", "api")
	}
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td}, nil, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text, header, claims, audience string) {
		for _, token := range []string{text, compact(header, claims, good[strings.LastIndex(good, ".")+1:])} {
			var answer *workload.ValidateJWTSVIDResponse
			var err error
			memory, took := cost(func() {
				answer, err = validate(keys, &workload.ValidateJWTSVIDRequest{Svid: token, Audience: audience}, view.Revoked)
			})
			if memory > maxValidateBytes || took > maxValidateTime {
				t.Errorf("%d bytes for %q took %d bytes and %v", len(token), audience, memory, took)
			}
			if err == nil && (answer.GetSpiffeId() != "spiffe://mesh.test/ns/shop/sa/web" || audience != "api" || len(token) > jwtkeys.MaxToken) {
				t.Errorf("%q for %q is valid: %v", token, audience, answer)
			}
		}
	})
}

// TestJWTPodGoes: a pod that has left is given nothing, not even what was cached for it.
func TestJWTPodGoes(t *testing.T) {
	w := newJWTWorld(t, Limits{})
	e := &endpoint{Server: w.server, pod: Pod{Key: mesh.Key{Namespace: "shop", Name: "web"}}, ended: t.Context()}
	c := w.raw("web")
	w.label("web", "disabled")
	_, err := e.FetchJWTSVID(t.Context(), &workload.JWTSVIDRequest{Audience: []string{"a"}})
	wantCode(t, "a pod that does not ask", err, codes.PermissionDenied)
	testenv.Eventually(t, 10*time.Second, "nothing listens", func() bool {
		_, err := c.FetchJWTSVID(withHeader(t.Context(), header, headerValue), &workload.JWTSVIDRequest{Audience: []string{"a"}})
		return status.Code(err) == codes.Unavailable
	})
}
