package replay

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const head = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: m.test, clusterRanges: ["10.0.0.0/8"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: out}
`

func pod(namespace, name, account, addr, labels, more string) string {
	return fmt.Sprintf(`---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: %s, name: %s, labels: {%s}}
spec: {node: n1, serviceAccount: %s, addresses: [%q], networkNamespace: /run/netns/%[2]s-%[1]s%[6]s}
`, namespace, name, labels, account, addr, more)
}

// written reads objects, which are a folder's.
func written(t *testing.T, text string) explain.Written {
	t.Helper()
	return explain.Written{Objects: objects(t, text)}
}

func objects(t *testing.T, text string) *kube.Objects {
	t.Helper()
	file := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := kube.LoadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func model(t *testing.T, w explain.Written) *explain.Model {
	t.Helper()
	m, err := w.Model()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// simulate tries a change.
func simulate(t *testing.T, base explain.Written, h *past.History, change string, deleted ...string) *Result {
	t.Helper()
	after, err := edit.Apply(base, objects(t, change), deleted)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Simulate(model(t, base), model(t, after), h)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var day = func() time.Time { return time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC) }

// carried is a connection as its server's agent has it.
func carried(from, to string, port uint16, count uint64) past.Summary {
	s := past.Summary{Hour: day(), First: day(), Last: day().Add(time.Minute), Node: "n1", Direction: "inbound", Verdict: "allow", Reason: "NoPolicy", Transport: "tunnel",
		Destination: past.End{Workload: to}, Port: port, Count: count}
	if strings.Contains(from, "/") {
		namespace, name, _ := strings.Cut(from, "/")
		s.Source = past.End{Workload: from, Identity: "spiffe://m.test/ns/" + namespace + "/sa/" + name}
	} else {
		s.Source, s.Transport = past.End{Address: from}, "plaintext"
	}
	return s
}

func shop(more string) string {
	return head + pod("shop", "web", "web", "10.1.0.1", "app: web", "") + pod("shop", "api", "api", "10.1.0.2", "app: api", "") +
		pod("shop", "db", "db", "10.1.0.3", "app: db", "") + pod("bank", "till", "till", "10.2.0.1", "app: till", "") + pod("out", "old", "old", "10.3.0.1", "app: old", "") + more
}

const dbFor = `---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: db}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - {from: [{serviceAccounts: [%s]}], to: [{ports: [3306]}]}
`

func names(changes []Change) (all []string) {
	for _, c := range changes {
		all = append(all, fmt.Sprintf("%s>%s:%d*%d %s|%s", c.Source.Name, c.Destination.Name, c.Port, c.Count, c.Before.text(), c.After.text()))
	}
	return all
}

func TestSimulate(t *testing.T) {
	refused := carried("bank/till", "shop/db", 3306, 9)
	refused.Verdict, refused.Reason = "deny", "PolicyNoMatch"
	// The client's agent counts what the server's counts.
	outbound := carried("shop/api", "shop/db", 3306, 5)
	outbound.Direction, outbound.Source.Identity = "outbound", ""
	// What the gate dropped is no connection that a policy is about.
	datagram, unstamped := carried("shop/web", "shop/db", 3306, 100), carried("shop/web", "shop/db", 3306, 1000)
	datagram.Direction, datagram.Verdict, datagram.Reason, datagram.Protocol = "kernel", "deny", "KernelUDP", 17
	unstamped.Direction, unstamped.Verdict, unstamped.Reason = "kernel", "deny", "KernelUnstamped"
	h := &past.History{Summaries: []past.Summary{carried("shop/web", "shop/db", 3306, 3), carried("shop/web", "shop/db", 3306, 4), carried("shop/api", "shop/db", 3306, 5),
		datagram, unstamped, outbound, carried("shop/web", "shop/db", 15008, 1), carried("shop/web", "shop/api", 80, 1), refused, carried("shop/web", "shop/gone", 80, 2), carried("bank/former", "shop/db", 3306, 6)}}
	base := written(t, shop(fmt.Sprintf(dbFor, "web, api, bank/former")))
	for _, tc := range []struct {
		name, change  string
		deleted       []string
		breaks, opens []string
	}{
		{name: "the same", change: fmt.Sprintf(dbFor, "api, bank/former, web")},
		{name: "less", change: fmt.Sprintf(dbFor, "web"), breaks: []string{"bank/former>shop/db:3306*6 allow PolicyAllow shop/db[0]|deny PolicyNoMatch",
			"shop/api>shop/db:3306*5 allow PolicyAllow shop/db[0]|deny PolicyNoMatch"}},
		{name: "more", change: fmt.Sprintf(dbFor, "web, api, bank/former, bank/till"), opens: []string{"bank/till>shop/db:3306*9 deny PolicyNoMatch|allow PolicyAllow shop/db[0]"}},
		{name: "deleted", change: "# nothing\n", deleted: []string{"authorizationpolicy/shop/db"}, opens: []string{"bank/till>shop/db:3306*9 deny PolicyNoMatch|allow NoPolicy"}},
		{name: "a DENY", change: strings.Replace(strings.Replace(fmt.Sprintf(dbFor, "web"), "name: db", "name: never", 1), "  rules", "  action: DENY\n  rules", 1),
			breaks: []string{"shop/web>shop/db:3306*7 allow PolicyAllow shop/db[0]|deny PolicyDeny shop/never[0]"}},
		{name: "the workload", change: "# nothing\n", deleted: []string{"Workload/shop/api"}, breaks: []string{"shop/web>shop/api:80*1 allow NoPolicy|deny UnknownDestination"}},
	} {
		r := simulate(t, base, h, tc.change, tc.deleted...)
		if got := names(r.Breaks); !slices.Equal(got, tc.breaks) {
			t.Errorf("%s: breaks %q, want %q", tc.name, got, tc.breaks)
		}
		if got := names(r.Opens); !slices.Equal(got, tc.opens) {
			t.Errorf("%s: opens %q, want %q", tc.name, got, tc.opens)
		}
		if len(r.Unjudged) != 1 || r.Unjudged[0].Destination.Name != "shop/gone" || r.Unjudged[0].Why != string(goneServer) || r.Judged != 5 || r.Connections != 7+5+1+9+6 {
			t.Errorf("%s: %d judged, %d connections, not %+v", tc.name, r.Judged, r.Connections, r.Unjudged)
		}
	}
	if _, err := edit.Apply(base, &kube.Objects{}, []string{"AuthorizationPolicy/shop/none"}); err == nil || !strings.Contains(err.Error(), "KIND/NAMESPACE/NAME") {
		t.Errorf("deleted what is not there: %v", err)
	}
}

// TestSimulateForeign: what went to a workload of another trust domain breaks when its
// declaration, or the federation, is taken back, and opens when it is declared.
func TestSimulateForeign(t *testing.T) {
	const billing = "spiffe://other.test/billing"
	declared := func(workloads string) string {
		return fmt.Sprintf("apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {trustDomain: m.test, clusterRanges: [\"10.0.0.0/8\"], federation: [{trustDomain: other.test, endpoint: \"https://other.test/\", profile: https_web%s}]}\n", workloads)
	}
	with := declared(`, workloads: [{identity: "` + billing + `", addresses: [10.200.0.1]}]`)
	went := past.Summary{Hour: day(), First: day(), Last: day(), Node: "n1", Direction: "outbound", Verdict: "allow", Reason: "NoPolicy", Transport: "tunnel",
		Source: past.End{Workload: "shop/web", Identity: "spiffe://m.test/ns/shop/sa/web"}, Destination: past.End{Identity: billing, Address: "10.200.0.1"}, Port: 443, Count: 7}
	h := &past.History{Summaries: []past.Summary{went}}
	base := written(t, strings.Replace(shop(""), strings.SplitN(head, "---", 2)[0], with, 1))
	if r := simulate(t, base, h, with); r.Judged != 1 || len(r.Breaks)+len(r.Opens)+len(r.Unjudged) != 0 {
		t.Errorf("the same: %+v", r)
	}
	for name, change := range map[string]string{"not declared": declared(""), "not federated": strings.SplitN(head, "---", 2)[0]} {
		r := simulate(t, base, h, change)
		if want := []string{"shop/web>[" + billing + "]:443*7 allow NoPolicy|deny UnknownDestination"}; !slices.Equal(names(r.Breaks), want) {
			t.Errorf("%s: breaks %q, want %q", name, names(r.Breaks), want)
		}
	}
	refused := went
	refused.Verdict, refused.Reason, refused.Destination.Identity = "deny", "UnknownDestination", ""
	if r := simulate(t, written(t, shop("")), &past.History{Summaries: []past.Summary{refused}}, with); len(r.Opens) != 1 || len(r.Breaks) != 0 {
		t.Errorf("declared: %+v", r)
	}
}

// TestModes: what comes without an identity breaks when its port becomes STRICT; it is
// judged by its address.
func TestModes(t *testing.T) {
	const permissive = "---\napiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: p}\nspec: {mode: PERMISSIVE}\n"
	base := written(t, shop(permissive))
	nobody := carried("192.0.2.1", "shop/web", 80, 2)
	nobody.Source = past.End{}
	unenrolled := carried("10.3.0.1", "shop/web", 80, 7)
	unenrolled.Source.Workload = "out/old"
	former := carried("10.3.0.9", "shop/web", 80, 7)
	former.Source.Workload = "out/former"
	h := &past.History{Summaries: []past.Summary{carried("192.0.2.7", "shop/web", 80, 3), nobody, unenrolled, former}}
	r := simulate(t, base, h, strings.Replace(permissive, "PERMISSIVE", "STRICT", 1))
	want := []string{"192.0.2.7>shop/web:80*3 allow Permissive|deny StrictPlaintext", "out/old>shop/web:80*7 allow Permissive|deny StrictPlaintext"}
	if got := names(r.Breaks); !slices.Equal(got, want) || len(r.Unjudged) != 2 {
		t.Errorf("%q, %+v", got, r.Unjudged)
	}
	enrolled := strings.Replace(permissive, "PERMISSIVE", "STRICT", 1) + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: out, labels: {heddle.dev/mesh: enabled}}\n"
	if got := names(simulate(t, base, h, enrolled).Breaks); !slices.Equal(got, want[:1]) {
		t.Errorf("with the client enrolled: %q", got)
	}
	closed := strings.Replace(head[:strings.Index(head, "---")], "spec: {", "spec: {egress: {mode: DENY}, ", 1)
	leaving := carried("shop/web", "x/x", 443, 4)
	leaving.Direction, leaving.Destination = "outbound", past.End{Address: "192.0.2.9"}
	h = &past.History{Summaries: []past.Summary{leaving}}
	want = []string{"shop/web>192.0.2.9:443*4 allow EgressAllowed|deny EgressDenied"}
	if got := names(simulate(t, base, h, closed).Breaks); !slices.Equal(got, want) {
		t.Errorf("out of the mesh: %q", got)
	}
}

// TestSeveral: of a client that had too many destinations only some are known, and what
// is not is said: by simulate, by suggest for each namespace that it may have reached,
// and by history.
func TestSeveral(t *testing.T) {
	base := written(t, shop(""))
	ports, anywhere := carried("bank/till", "shop/db", 0, 5), carried("bank/till", "x/x", 0, 6)
	anywhere.Direction, anywhere.Destination = "outbound", past.End{}
	refused := anywhere
	refused.Source, refused.Verdict, refused.Reason = past.End{Workload: "shop/web"}, "deny", "EgressDenied"
	h := &past.History{Summaries: []past.Summary{ports, anywhere, refused, carried("bank/till", "shop/db", 3306, 4)}}
	h.Only("shop", time.Time{})
	r := simulate(t, base, h, fmt.Sprintf(dbFor, "web"))
	var got []string
	for _, u := range r.Unjudged {
		got = append(got, fmt.Sprintf("%s>%s*%d", u.Source.Name, to(u.Destination, u.Port), u.Count))
		if !strings.Contains(u.Why, "too many") {
			t.Errorf("%+v", u)
		}
	}
	want := []string{"bank/till>several destinations*6", "bank/till>shop/db:**5", "shop/web>several destinations*6"}
	if breaks := names(r.Breaks); !slices.Equal(got, want) || !slices.Equal(breaks, []string{"bank/till>shop/db:3306*4 allow NoPolicy|deny PolicyNoMatch"}) {
		t.Errorf("%q, want %q; breaks %q", got, want, breaks)
	}
	s, err := Suggest(model(t, base), h, "shop", true)
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(s.Notes, "\n")
	if len(s.Notes) != 2 || !strings.Contains(notes, "6 connections of bank/till to several destinations not considered: which ports") ||
		!strings.Contains(notes, "5 connections of bank/till to shop/db:* not considered") {
		t.Errorf("%q", s.Notes)
	}
	var b bytes.Buffer
	if err := PrintHistory(h, &b, false); err != nil || !strings.Contains(b.String(), "shop/db:*") || strings.Count(b.String(), "several destinations") != 2 {
		t.Errorf("%v:\n%s", err, b.String())
	}
	b.Reset()
	if err := h.Write(&b); err != nil {
		t.Fatal(err)
	}
	if again, err := past.Read(&b); err != nil || len(again.Summaries) != len(h.Summaries) {
		t.Errorf("%v", err)
	}
	anywhere.Port = 80
	b.Reset()
	if err := (&past.History{Summaries: []past.Summary{anywhere}}).Write(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := past.Read(&b); err == nil || !strings.Contains(err.Error(), "line 1: destination") {
		t.Errorf("a port of nothing: %v", err)
	}
}

// TestStandIns: pods come and go, and their successors are judged in their place.
func TestStandIns(t *testing.T) {
	base := written(t, head+pod("shop", "web-7d9f8b6c5d-x2x4z", "web", "10.1.0.1", "app: web", "")+pod("shop", "db-0", "db", "10.1.0.3", "app: db", ""))
	from := carried("shop/web", "shop/db-1", 3306, 3)
	from.Source.Workload = "shop/web-6b474476c4-qwzxc"
	other := from
	other.Source.Workload = "shop/web-7d9f8b6c5d-x2x4z"
	h := &past.History{Summaries: []past.Summary{from, other}}
	got := names(simulate(t, base, h, fmt.Sprintf(dbFor, "api")).Breaks)
	if want := []string{"shop/web>shop/db:3306*6 allow NoPolicy|deny PolicyNoMatch"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestNotJudgedIsSaid: that nothing would break is not said of what could not be judged.
func TestNotJudgedIsSaid(t *testing.T) {
	known, gone := carried("shop/web", "shop/db", 3306, 3), carried("shop/web", "shop/gone", 80, 2)
	base := written(t, shop(""))
	for want, summaries := range map[string][]past.Summary{"Nothing would break.": {known}, "Nothing that could be judged would break.": {known, gone}, "There is no recorded connection to judge by.": {gone}} {
		var b bytes.Buffer
		if err := simulate(t, base, &past.History{Summaries: summaries}, fmt.Sprintf(dbFor, "web")).Print(&b, false); err != nil || !strings.Contains(b.String(), "\n"+want+"\n") {
			t.Errorf("%v, no %q in\n%s", err, want, &b)
		}
	}
}

// TestRefusedChange: what would not be in force is not tried.
func TestRefusedChange(t *testing.T) {
	base := written(t, shop(""))
	bad := strings.Replace(fmt.Sprintf(dbFor, "web"), "ports: [3306]", "ports: [0]", 1)
	after, err := edit.Apply(base, objects(t, bad), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := after.Model(); err == nil || !strings.Contains(err.Error(), "ports[0]") {
		t.Errorf("of a folder: %v", err)
	}
	base.Cluster, after.Cluster = true, true
	if _, err := Simulate(model(t, base), model(t, after), &past.History{}); err == nil || !strings.Contains(err.Error(), "ports[0]") {
		t.Errorf("of a cluster: %v", err)
	}
}

// TestRefusedOfSeveral: of several that are given, it is said which is not in order.
func TestRefusedOfSeveral(t *testing.T) {
	good := fmt.Sprintf(dbFor, "web")
	dir := t.TempDir()
	for name, text := range map[string]string{"one": good, "other": strings.NewReplacer("name: db", "name: db2", "ports: [3306]", "ports: [0]").Replace(good)} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o700), os.WriteFile(filepath.Join(dir, name, "policy.yaml"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := edit.Make(written(t, shop("")), nil, []string{filepath.Join(dir, "one"), filepath.Join(dir, "other")}, nil)
	if place := filepath.Join(dir, "other", "policy.yaml:"); !strings.Contains(fmt.Sprint(err), place) || strings.Contains(fmt.Sprint(err), filepath.Join(dir, "one")) {
		t.Errorf("%v, want what is wrong at %s", err, place)
	}
}

// TestWarningsAreTheChanges: a policy that selects nobody breaks nothing, and is told of; what
// was so before is not.
func TestWarningsAreTheChanges(t *testing.T) {
	const nobodys = `{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: %s}, spec: {selector: {matchLabels: {app: dv}}, action: DENY, rules: [{}]}}`
	base := written(t, shop("---\n"+fmt.Sprintf(nobodys, "old")))
	after, err := edit.Apply(base, objects(t, fmt.Sprintf(nobodys, "new")), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Simulate(model(t, base), model(t, after), &past.History{Summaries: []past.Summary{carried("shop/web", "shop/db", 3306, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "shop/new: spec.selector.matchLabels: picks no workload") {
		t.Errorf("%q", r.Warnings)
	}
	var b strings.Builder
	if err := r.Print(&b, false); err != nil || strings.Count(b.String(), "warning: ") != 1 {
		t.Errorf("%v: %s", err, b.String())
	}
}

// TestWarnsOfGaps: what is said of a history that may lack something is said with that, to programs, too.
func TestWarnsOfGaps(t *testing.T) {
	base := written(t, shop(""))
	h := &past.History{Cut: "it may be cut", Summaries: []past.Summary{carried("shop/web", "shop/db", 3306, 1), passed("shop/web", "shop/db", 443, 2)},
		Nodes: []past.Coverage{{Node: "n1"}, {Node: "n2", LeftOut: 3}, {Node: "n3", Damaged: []string{"an hour: unexpected EOF", "another: invalid header"}}}}
	gaps := []string{h.Cut, "node n2 left out 3 connections, for want of room", "node n3: an hour: unexpected EOF", "node n3: another: invalid header"}
	want := append(slices.Clone(gaps), "2 flows over UDP passed, and are not judged: give --udp-by-identity, as the mesh's operator has it")
	r, err := Simulate(model(t, base), model(t, base), h)
	if err != nil || !slices.Equal(r.Warnings, want) {
		t.Errorf("simulate: %v, %q", err, r.Warnings)
	}
	var b strings.Builder
	if err := r.Print(&b, false); err != nil || strings.Count(b.String(), "warning: ") != len(want) {
		t.Errorf("%v: %s", err, b.String())
	}
	s, err := Suggest(model(t, base), h, "shop", true)
	if err != nil || slices.ContainsFunc(gaps, func(gap string) bool { return !slices.Contains(s.Notes, gap) }) {
		t.Errorf("suggest: %v, %q", err, s.Notes)
	}
	if r, err = Simulate(model(t, base), model(t, base), &past.History{Summaries: h.Summaries[:1]}); err != nil || r.Warnings == nil || len(r.Warnings) > 0 {
		t.Errorf("of a history that is whole: %v, %q, which is null for programs", err, r.Warnings)
	}
}

func yamlOf(t *testing.T, s *Suggestion, h *past.History) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Print(&b, h); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSuggest(t *testing.T) {
	refused := carried("bank/till", "shop/api", 80, 9)
	refused.Verdict, refused.Reason = "deny", "PolicyNoMatch"
	h := &past.History{Summaries: []past.Summary{carried("shop/web", "shop/db", 3306, 3), carried("bank/till", "shop/db", 3306, 4), carried("shop/api", "shop/db", 3306, 1),
		carried("shop/api", "shop/db", 9104, 1), carried("shop/web", "shop/api", 80, 1), refused}}
	s, err := Suggest(model(t, written(t, shop(""))), h, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	const want = `# What the connections from 2026-03-04 12:00Z to 2026-03-04 12:01Z need.
# - nobody has reached web: default-deny closes it
---
# rules[0]: 1 connection
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: api-clients
  namespace: shop
spec:
  rules:
  - from:
    - serviceAccounts:
      - web
    to:
    - ports:
      - 80
  selector:
    matchLabels:
      app: api
---
# rules[0]: 7 connections
# rules[1]: 2 connections
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: db-clients
  namespace: shop
spec:
  rules:
  - from:
    - serviceAccounts:
      - bank/till
      - web
    to:
    - ports:
      - 3306
  - from:
    - serviceAccounts:
      - api
    to:
    - ports:
      - 3306
      - 9104
  selector:
    matchLabels:
      app: db
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: default-deny
  namespace: shop
spec: {}
`
	if got := yamlOf(t, s, h); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := Suggest(model(t, written(t, shop(""))), h, "out", false); err == nil || !strings.Contains(err.Error(), "heddle enroll out") {
		t.Errorf("%v", err)
	}
}

// TestSuggestNamesWhatIsRefusedNow: who came through before a policy that refuses it gets no rule, and is named; and
// nobody reads that nobody has come.
func TestSuggestNamesWhatIsRefusedNow(t *testing.T) {
	h := &past.History{Summaries: []past.Summary{carried("bank/till", "shop/db", 3306, 4)}}
	for i := range 9 {
		h.Summaries = append(h.Summaries, carried("bank/till", "shop/db", uint16(9000+i), 1))
	}
	for _, c := range []struct {
		n    int
		want []string
	}{
		{1, []string{"came through, would be refused now, and get no rule: 4 connections of bank/till to shop/db:3306 (deny PolicyNoMatch)", "nobody else has reached db: default-deny closes it"}},
		{10, []string{"1 connection of bank/till to shop/db:9000 (deny PolicyNoMatch)", " and 2 more", "nobody else has reached db"}},
		{0, []string{"nobody has reached db"}},
	} {
		s, err := Suggest(model(t, written(t, shop(fmt.Sprintf(dbFor, "web")))), &past.History{Summaries: h.Summaries[:c.n]}, "shop", false)
		if err != nil {
			t.Fatal(err)
		}
		notes := strings.Join(s.Notes, "\n")
		for _, want := range append(c.want, "nobody has reached api") {
			if !strings.Contains(notes, want) {
				t.Errorf("of %d, without %q:\n%s", c.n, want, notes)
			}
		}
	}
}

// TestSuggestNamesWhoHasNoIdentity: a pod outside the mesh is admitted by an address that is another's next.
func TestSuggestNamesWhoHasNoIdentity(t *testing.T) {
	text := shop(permissive)
	h := &past.History{Summaries: []past.Summary{carried("192.0.2.1", "shop/db", 80, 1), carried("shop/web", "shop/db", 80, 1)}}
	for i := range 9 {
		name, addr := fmt.Sprintf("p%d", i), fmt.Sprintf("10.3.1.%d", i)
		text += pod("out", name, name, addr, "", "")
		s := carried("out/"+name, "shop/db", 80, 1)
		s.Source.Identity, s.Source.Address, s.Transport = "", addr, "plaintext"
		h.Summaries = append(h.Summaries, s, s)
	}
	for n, want := range map[int]string{2: "", 4: "are admitted out/p0 (10.3.1.0): enroll them", len(h.Summaries): "out/p7 (10.3.1.7) and 1 more: enroll them"} {
		s, err := Suggest(model(t, written(t, text)), &past.History{Summaries: h.Summaries[:n]}, "shop", true)
		if err != nil {
			t.Fatal(err)
		}
		if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, want) || want == "" && notes != "" {
			t.Errorf("of %d: %s", n, notes)
		}
	}
}

// TestSuggestedIsEnoughAndNoMore: of generated meshes and connections, what is
// suggested breaks none of them, and lacks one when any of its rules is taken away; and
// it is the same whatever the order of what was recorded.
func TestSuggestedIsEnoughAndNoMore(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	rules, overUDP, opened := 0, 0, 0
	for round := range 60 {
		base, h := generate(t, r)
		var opening []string // the policies over UDP that are there, and that what is suggested can do without
		if round%2 == 0 {
			base.UDPByIdentity = true
			opening = generateDatagrams(t, r, base, h)
		}
		before := model(t, base)
		s, err := Suggest(before, h, "shop", round%3 == 0)
		if err != nil {
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
		text := yamlOf(t, s, h)
		shuffled := &past.History{Summaries: slices.Clone(h.Summaries)}
		r.Shuffle(len(shuffled.Summaries), func(i, j int) {
			shuffled.Summaries[i], shuffled.Summaries[j] = shuffled.Summaries[j], shuffled.Summaries[i]
		})
		if again, err := Suggest(before, shuffled, "shop", round%3 == 0); err != nil || yamlOf(t, again, h) != text {
			t.Fatalf("seed %d, round %d: not the same of another order: %v", seed, round, err)
		}
		try := func(text string, deleted ...string) *Result { return simulate(t, base, h, text, deleted...) }
		for _, deleted := range [][]string{nil, opening} {
			result := try(text, deleted...)
			for _, o := range result.Opens { // said, and only of those that share a policy
				note := regexp.MustCompile(fmt.Sprintf(`^what is suggested lets in .* over UDP of %s to %s, ports? (\d+, )*%d(, \d+)*: `, o.Source.Name, o.Destination.Name, o.Port))
				if o.Protocol == "" || !slices.ContainsFunc(s.Notes, note.MatchString) {
					t.Fatalf("seed %d, round %d: without %q opens %q of\n%s", seed, round, deleted, lines(result.Opens), text)
				}
				opened++
			}
			if len(result.Breaks) > 0 {
				t.Fatalf("seed %d, round %d: without %q breaks %q of\n%s", seed, round, deleted, lines(result.Breaks), text)
			}
		}
		for i := range s.Policies {
			spec := &s.Policies[i].Policy.Spec
			for k := range spec.Rules {
				rules++
				if s.Policies[i].OverUDP(k) {
					overUDP++
				}
				whole := spec.Rules
				spec.Rules = slices.Delete(slices.Clone(whole), k, k+1)
				if less := yamlOf(t, s, h); len(try(less, opening...).Breaks) == 0 {
					t.Fatalf("seed %d, round %d: rule %d of %s is not needed:\n%s", seed, round, k, s.Policies[i].Policy.Name, text)
				}
				spec.Rules = whole
			}
		}
	}
	if rules < 100 || overUDP < 8 {
		t.Errorf("only %d rules were tried, and %d over UDP", rules, overUDP)
	}
	t.Logf("seed %d: %d rules, %d of them over UDP; %d drops let in, and said", seed, rules, overUDP, opened)
}

// behindAt is the address of Service shop/behind of a generated mesh, which is behind a waypoint and leads to behindPort.
var behindAt = netip.MustParseAddrPort("10.96.1.1:8")

const behindPort = 81

const generatedWaypoint = `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: behind, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: same}, clusterIP: 10.96.1.1, ports: [{port: 8, targetPort: 81}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {selector: {app: waypoint}, clusterIP: 10.96.1.2, ports: [{port: 15009}]}
`

// generate makes a mesh, in which some ports are PERMISSIVE and some clients are denied,
// some workloads are behind a waypoint, and what has been recorded in it.
func generate(t *testing.T, r *rand.Rand) (explain.Written, *past.History) {
	t.Helper()
	text := head
	var pods, behind []string
	for i := range 2 + r.IntN(6) {
		namespace := []string{"shop", "shop", "bank", "out"}[r.IntN(4)]
		if i < 2 {
			namespace = "shop"
		}
		name := fmt.Sprintf("p%c", 'a'+i)
		labels := []string{"", "app: " + name, "app: same", "app: same, tier: " + name}[r.IntN(4)]
		text += pod(namespace, name, name, fmt.Sprintf("10.%d.0.%d", 1+i, 1+i), labels, "")
		pods = append(pods, namespace+"/"+name)
		if namespace == "shop" && strings.HasPrefix(labels, "app: same") {
			behind = append(behind, namespace+"/"+name)
		}
	}
	if len(behind) > 0 {
		text += pod("shop", "waypoint", "waypoint", "10.1.9.9", "app: waypoint", "") + generatedWaypoint
	}
	text += []string{"", "---\napiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: p}\nspec: {mode: PERMISSIVE}\n"}[r.IntN(2)]
	if r.IntN(3) == 0 {
		text += "---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: never}\nspec: {action: DENY, rules: [{from: [{serviceAccounts: [pa]}], to: [{ports: [81]}]}]}\n"
	}
	h := &past.History{}
	for range 1 + r.IntN(40) {
		from, to := pods[r.IntN(len(pods))], pods[r.IntN(len(pods))]
		s := carried(from, to, uint16(80+r.IntN(3)), uint64(1+r.IntN(9)))
		switch {
		case r.IntN(6) == 0:
			s = carried(fmt.Sprintf("192.0.2.%d", r.IntN(3)), to, s.Port, s.Count)
		case strings.HasPrefix(from, "out/"):
			s.Source.Identity, s.Transport = "", "plaintext"
		}
		if r.IntN(5) == 0 {
			s.Verdict, s.Reason = "deny", "StrictPlaintext"
		}
		h.Summaries = append(h.Summaries, s)
	}
	for range r.IntN(4) * min(len(behind), 1) {
		from := pods[r.IntN(len(pods))]
		if strings.HasPrefix(from, "out/") {
			continue
		}
		s, on := carried(from, "shop/waypoint", behindAt.Port(), uint64(1+r.IntN(9))), carried("shop/waypoint", behind[r.IntN(len(behind))], behindPort, 1)
		s.Reason, s.Service, on.Reason = "Waypoint", "shop/behind", "Waypoint"
		h.Summaries = append(h.Summaries, s, on)
	}
	return written(t, text), h
}
