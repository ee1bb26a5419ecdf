package agent_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// jwts is what go-spiffe's client in the pod gets of tokens and of what verifies them.
func (p *podNS) jwts(t *testing.T) *workloadapi.JWTSource {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := workloadapi.NewJWTSource(ctx, p.inside())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// tokens: a process of web has a token of its identity, for an audience; one of api verifies it
// by the bundle that it was given, and by its agent; also when it is of the key before.
func (w *world) tokens(t *testing.T) {
	webs, apis := w.pods["web"].jwts(t), w.pods["api"].jwts(t)
	fetch := func() *jwtsvid.SVID {
		t.Helper()
		svid, err := webs.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api", Subject: shopID("web")})
		if err != nil {
			t.Fatal(err)
		}
		return svid
	}
	first := fetch()
	if first.ID != shopID("web") || fetch().Marshal() != first.Marshal() {
		t.Errorf("web is given %v, and another the next time", first.ID)
	}
	// A source validates by the bundle that it follows.
	verify := func(what string, svid *jwtsvid.SVID) {
		t.Helper()
		if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), apis, []string{"api"}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	verify("of the first key", first)
	_, err := webs.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api", Subject: shopID("db")})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("of another identity: %v", err)
	}
	if _, err := jwtsvid.ParseAndValidate(first.Marshal(), apis, []string{"db"}); err == nil {
		t.Error("valid for another audience")
	}
	keys := func() (all []*meshpb.JWTKey) {
		w.operator(t, func(c meshpb.OperatorAdminClient) error {
			answer, err := c.Certificates(t.Context(), &meshpb.CertificatesRequest{})
			all = answer.GetJwtKeys()
			return err
		})
		return all
	}
	before := keys()
	if len(before) != 1 || before[0].GetState() != "signs" {
		t.Fatalf("the operator has %v", before)
	}
	w.age(t, 31*24*time.Hour)
	testenv.Eventually(t, 30*time.Second, "the next key is in api's bundle", func() bool {
		b, err := apis.GetJWTBundleForTrustDomain(shopID("web").TrustDomain())
		return err == nil && len(b.JWTAuthorities()) == 2
	})
	w.age(t, time.Hour)
	testenv.Eventually(t, 30*time.Second, "the next key signs", func() bool { return keys()[0].GetId() != before[0].GetId() })
	// Another audience is another token, which nothing has kept.
	second, err := webs.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api", ExtraAudiences: []string{"later"}})
	if err != nil {
		t.Fatal(err)
	}
	if header(first) == header(second) {
		t.Error("both are of one key")
	}
	verify("of the key before", first)
	verify("of the next key", second)
}

// header is a token's first part, which names its key.
func header(s *jwtsvid.SVID) string { part, _, _ := strings.Cut(s.Marshal(), "."); return part }

// age has the keys of JWT-SVIDs be older than they are.
func (w *world) age(t *testing.T, by time.Duration) {
	t.Helper()
	path := filepath.Join(w.dir, "operator", "ca", "jwt.key")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var kept struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(text, &kept); err != nil {
		t.Fatal(err)
	}
	for _, k := range kept.Keys {
		for _, name := range []string{"made", "signs", "retired"} {
			if at, err := time.Parse(time.RFC3339, k[name]); err == nil {
				k[name] = at.Add(-by).Format(time.RFC3339)
			}
		}
	}
	if text, err = json.Marshal(kept); err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}
