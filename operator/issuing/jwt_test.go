package issuing

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
)

// says is JWTs that say for whom they would sign, or why not.
type says struct{ err error }

func (s says) Sign(id spiffeid.ID, audience []string) (string, time.Duration, error) {
	return fmt.Sprint(id, " for ", audience), time.Minute, s.err
}

func withJWTs(j JWTs) func(*identity.AuthorityConfig, *Config) {
	return func(_ *identity.AuthorityConfig, c *Config) { c.JWTs = j }
}

// TestSignJWT: a node gets tokens of its own workloads, for an audience within bounds, and of
// nobody else.
func TestSignJWT(t *testing.T) {
	o := startOperator(t, withJWTs(says{}))
	n1, n2 := o.join(t, "n1"), o.join(t, "n2")
	token, life, err := nodeauth.NewClient(n1.Conn()).SignJWT(t.Context(), web, []string{"b", "a", "b"})
	if err != nil || token != web.String()+" for [a b]" || life != time.Minute {
		t.Fatalf("%q for %v, %v", token, life, err)
	}
	many := make([]string, jwtkeys.MaxAudiences+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for name, c := range map[string]struct {
		node     *nodeauth.Node
		id       string
		audience []string
		code     codes.Code
	}{
		"no audience":         {n1, web.String(), nil, codes.InvalidArgument},
		"an empty audience":   {n1, web.String(), []string{"a", ""}, codes.InvalidArgument},
		"a long audience":     {n1, web.String(), []string{strings.Repeat("a", jwtkeys.MaxAudienceBytes+1)}, codes.InvalidArgument},
		"many audiences":      {n1, web.String(), many, codes.InvalidArgument},
		"another node's":      {n2, web.String(), []string{"a"}, codes.PermissionDenied},
		"the node's own":      {n1, n1.ID().String(), []string{"a"}, codes.PermissionDenied},
		"the operator's":      {n1, identity.OperatorID(td).String(), []string{"a"}, codes.PermissionDenied},
		"of another domain":   {n1, "spiffe://other.test/ns/shop/sa/web", []string{"a"}, codes.PermissionDenied},
		"no SPIFFE ID":        {n1, "web", []string{"a"}, codes.InvalidArgument},
		"a long one":          {n1, "spiffe://mesh.test/" + strings.Repeat("a", identity.MaxIDBytes), []string{"a"}, codes.InvalidArgument},
		"of nobody":           {n1, "spiffe://mesh.test/ns/shop/sa/nobody", []string{"a"}, codes.PermissionDenied},
		"the longest of both": {n1, web.String(), []string{strings.Repeat("a", jwtkeys.MaxAudienceBytes)}, codes.OK},
	} {
		_, err := meshpb.NewIssuingClient(c.node.Conn()).SignJWT(t.Context(), &meshpb.SignJWTRequest{Identity: c.id, Audience: c.audience})
		if status.Code(err) != c.code {
			t.Errorf("%s: %v, want %v", name, err, c.code)
		}
	}
	if _, err := meshpb.NewIssuingClient(dial(t, o, nil)).SignJWT(t.Context(), &meshpb.SignJWTRequest{Identity: web.String(), Audience: []string{"a"}}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a certificate: %v", err)
	}
	if issued, refused := o.requests("jwt", "Issued"), o.requests("jwt", "NotOnNode"); issued != 2 || refused != 5 {
		t.Errorf("%v were counted as issued, %v as not on the node", issued, refused)
	}
	o.view.Store(&fakeView{onNode: map[string]spiffeid.ID{"n1": web}, revoked: map[spiffeid.ID]bool{web: true}})
	if _, _, err := nodeauth.NewClient(n1.Conn()).SignJWT(t.Context(), web, []string{"a"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("of a revoked identity: %v", err)
	}
	if log := o.log.String(); strings.Contains(log, token) {
		t.Errorf("the audit log has the token:\n%s", log)
	}
}

// TestNoJWTs: whoever cannot have a token hears why, in a code of its own.
func TestNoJWTs(t *testing.T) {
	for name, c := range map[string]struct {
		jwts JWTs
		code codes.Code
		want string
	}{
		"none":     {nil, codes.Unimplemented, "signs no JWT-SVIDs"},
		"withheld": {says{fmt.Errorf("%w: SPIRE does", ErrJWTsWithheld)}, codes.Unimplemented, "SPIRE does"},
		"no key":   {says{ErrNoJWTKey}, codes.Unavailable, "no key"},
		"broken":   {says{errors.New("a secret of the operator's")}, codes.Internal, "its log says why"},
	} {
		o := startOperator(t, withJWTs(c.jwts))
		_, _, err := nodeauth.NewClient(o.join(t, "n1").Conn()).SignJWT(t.Context(), web, []string{"a"})
		if status.Code(err) != c.code || !strings.Contains(fmt.Sprint(err), c.want) || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%s: %v, want %v %q", name, err, c.code, c.want)
		}
	}
}

// TestJWTRateLimit: a node's tokens have a limit of their own.
func TestJWTRateLimit(t *testing.T) {
	o := startOperator(t, withJWTs(says{}), func(_ *identity.AuthorityConfig, c *Config) { c.SignRate, c.SignBurst = 0.001, 3 })
	n1, n2 := o.join(t, "n1"), o.join(t, "n2")
	limited := 0
	for range 5 {
		if _, _, err := nodeauth.NewClient(n1.Conn()).SignJWT(t.Context(), web, []string{"a"}); status.Code(err) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited != 2 {
		t.Errorf("%d of 5 were limited, the burst is 3", limited)
	}
	csr, _ := newCSR(t, web)
	if _, _, err := n1.Sign(t.Context(), web, csr); err != nil {
		t.Errorf("the node's certificates suffer: %v", err)
	}
	if _, _, err := nodeauth.NewClient(n2.Conn()).SignJWT(t.Context(), db, []string{"a"}); err != nil {
		t.Errorf("another node suffers: %v", err)
	}
}
