package replay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
)

// TestAnotherOfTheName: a connection is of who opened it, whatever has that name by now; but
// one that the change itself gives another identity is who it will be.
func TestAnotherOfTheName(t *testing.T) {
	became := strings.Replace(shop(fmt.Sprintf(dbFor, "shop/web")), "serviceAccount: web,", "serviceAccount: root,", 1)
	h := &past.History{Summaries: []past.Summary{carried("shop/web", "shop/db", 3306, 5)}}
	const was = "1 client had another identity when it connected than it has now, such as shop/web (spiffe://m.test/ns/shop/sa/web): it is judged by the one it had"
	for name, c := range map[string]struct {
		have, change   string
		breaks, warned int
	}{
		"the old account is let in no more":       {became, fmt.Sprintf(dbFor, "shop/root"), 1, 1},
		"the old account is let in still":         {became, fmt.Sprintf(dbFor, "shop/web, shop/api"), 0, 1},
		"the change takes the account":            {shop(fmt.Sprintf(dbFor, "shop/web")), pod("shop", "web", "root", "10.1.0.1", "app: web", ""), 1, 0},
		"the change gives the account of then":    {became, pod("shop", "web", "web", "10.1.0.1", "app: web", ""), 0, 1},
		"as it was, and its account let in still": {shop(fmt.Sprintf(dbFor, "shop/web")), fmt.Sprintf(dbFor, "shop/web, shop/api"), 0, 0},
	} {
		r := simulate(t, written(t, c.have), h, c.change)
		if warned := slices.Contains(r.Warnings, was); len(r.Breaks) != c.breaks || warned != (c.warned > 0) || r.Judged != 1 {
			t.Errorf("%s: breaks %q, %d judged, %q", name, names(r.Breaks), r.Judged, r.Warnings)
		}
	}
	s, err := Suggest(model(t, written(t, became)), h, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s.Policies)
	if err != nil || !strings.Contains(string(text), `"serviceAccounts":["web"]`) || strings.Contains(string(text), "root") || !slices.Contains(s.Notes, was) {
		t.Errorf("suggested %s, %v\n%q", text, err, s.Notes)
	}
}

// TestChangedServices: what was dialled at a service that would lead elsewhere, or nowhere, is not judged, as the
// workload that it went to tells nothing of that; what that refuses breaks all the same.
func TestChangedServices(t *testing.T) {
	service := func(name, more, spec string) string {
		return "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: " + name + more + "}\nspec: {" + spec + "}\n"
	}
	const (
		to       = "selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 3306}]"
		hops     = "selector: {app: waypoint}, clusterIP: 10.96.0.2, ports: [{port: 15009}]"
		labelled = ", labels: {heddle.dev/waypoint: waypoint}"
		nothing  = "# nothing\n"
		deny     = "---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: nobody}\nspec: {selector: {matchLabels: {app: db}}}\n"
	)
	direct, through := carried("shop/web", "shop/db", 3306, 5), carried("shop/web", "shop/waypoint", 80, 5)
	direct.Service, direct.Direction = "shop/db", "outbound"
	through.Service, through.Reason = "shop/db", "Waypoint"
	plain, behind := service("db", "", to), pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+service("db", labelled, to)+service("waypoint", "", hops)
	for name, c := range map[string]struct {
		have     string
		recorded past.Summary
		change   string
		deleted  []string
		breaks   int
		why      why
	}{
		"the same":                        {plain, direct, plain, nil, 0, judged},
		"kept with one endpoint":          {plain, direct, service("db", "", to+", sessionAffinity: ClientIP"), nil, 0, judged},
		"another service":                 {plain, direct, service("api", "", "selector: {app: api}, clusterIP: 10.96.0.9, ports: [{port: 80}]"), nil, 0, judged},
		"gone":                            {plain, direct, nothing, []string{"Service/shop/db"}, 0, redirected},
		"another port":                    {plain, direct, strings.Replace(plain, "port: 80", "port: 81", 1), nil, 0, redirected},
		"another target":                  {plain, direct, strings.Replace(plain, "3306", "3307", 1), nil, 0, redirected},
		"another address":                 {plain, direct, strings.Replace(plain, "10.96.0.1", "10.96.0.7", 1), nil, 0, redirected},
		"other workloads":                 {plain, direct, strings.Replace(plain, "app: db", "app: api", 1), nil, 0, redirected},
		"nobody":                          {plain, direct, strings.Replace(plain, "app: db", "app: nobody", 1), nil, 0, redirected},
		"one workload more":               {plain, direct, pod("shop", "db2", "db2", "10.1.0.7", "app: db", ""), nil, 0, redirected},
		"a waypoint that is not there":    {plain, direct, service("db", labelled, to), nil, 0, redirected},
		"a policy beside it":              {plain, direct, deny + strings.Replace(plain, "port: 80", "port: 81", 1), nil, 1, judged},
		"the workload is gone":            {plain, direct, nothing, []string{"Workload/shop/db"}, 1, judged},
		"behind a waypoint: the same":     {behind, through, service("db", labelled, to), nil, 0, judged},
		"behind a waypoint: no more":      {behind, through, plain, nil, 0, redirected},
		"behind a waypoint: gone":         {behind, through, nothing, []string{"Service/shop/db"}, 0, redirected},
		"behind a waypoint: that is gone": {behind, through, nothing, []string{"Service/shop/waypoint"}, 0, redirected},
		"behind a waypoint: of others":    {behind, through, service("waypoint", "", strings.Replace(hops, "app: waypoint", "app: api", 1)), nil, 0, redirected},
		"behind a waypoint: a policy":     {behind, through, deny, nil, 1, judged},
	} {
		r := simulate(t, written(t, shop(c.have)), &past.History{Summaries: []past.Summary{c.recorded}}, c.change, c.deleted...)
		var unjudged why
		if len(r.Unjudged) > 0 {
			unjudged = why(r.Unjudged[0].Why)
		}
		if len(r.Breaks) != c.breaks || unjudged != c.why || len(r.Opens) > 0 {
			t.Errorf("%s: breaks %q, opens %q, not judged %+v", name, names(r.Breaks), names(r.Opens), r.Unjudged)
		}
		var text strings.Builder
		if err := r.Print(&text, false); err != nil || strings.Contains(text.String(), "Nothing would break.") != (c.why == judged && c.breaks == 0) {
			t.Errorf("%s: %v\n%s", name, err, &text)
		}
	}
}

// TestCommentsStayComments: what nodes say, and names of a file of flows, are others', and what is
// suggested is applied: whatever ends a line in YAML must not end a comment.
func TestCommentsStayComments(t *testing.T) {
	for _, end := range []string{"\n", "\r", "\r\n", "\u0085", "\u2028", "\u2029"} {
		s := &Suggestion{Notes: []string{"node n1: 2026.gz" + end + "apiVersion: v1" + end + "kind: Secret" + end + "metadata: {name: theirs}" + end}}
		var out bytes.Buffer
		if err := s.Print(&out, &past.History{}); err != nil {
			t.Fatal(err)
		}
		var found map[string]any
		if err := yaml.Unmarshal(out.Bytes(), &found); err != nil || len(found) > 0 {
			t.Errorf("%q: %v, %v", out.String(), found, err)
		}
	}
}
