package replay

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
)

// overUDPToo is written, of a mesh in which policies may be about UDP.
func overUDPToo(t *testing.T, text string) explain.Written {
	t.Helper()
	w := written(t, text)
	w.UDPByIdentity = true
	return w
}

// passed is datagrams as the agent of who took them has them; of an address, as that of
// who sent them to a service has them.
func passed(from, to string, port uint16, count uint64) past.Summary {
	s := carried(from, to, port, count)
	s.Protocol, s.Transport, s.Reason = 17, "plaintext", "PolicyAllow"
	addresses := map[string]string{"shop/web": "10.1.0.1", "shop/api": "10.1.0.2", "shop/db": "10.1.0.3", "bank/till": "10.2.0.1", "out/old": "10.3.0.1"}
	if addr, ok := addresses[from]; ok {
		s.Source.Address = addr
	}
	if !strings.Contains(to, "/") {
		s.Direction, s.Destination = "outbound", past.End{Address: to}
	}
	return s
}

// droppedAt is datagrams that a gate dropped: the sender's agent knows who the sender is,
// the other's does not say.
func droppedAt(sender bool, s past.Summary) past.Summary {
	s.Direction, s.Verdict, s.Reason, s.Transport = "kernel", "deny", "KernelUDP", "none"
	if !sender {
		s.Source.Identity = ""
	}
	return s
}

const dbUDP = `---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: db-udp}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - {from: [{serviceAccounts: [%s]}], to: [{protocol: UDP, ports: [443]}]}
`

const udpServices = `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: one}
spec: {selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 9, protocol: UDP, targetPort: 443}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: both}
spec: {selector: {tier: x}, clusterIP: 10.96.0.2, ports: [{port: 9, protocol: UDP, targetPort: 443}]}
`

// TestSimulateDatagrams: what passed and what was dropped over UDP is judged as gates do,
// apart from connections to the same port, to workloads and through services.
func TestSimulateDatagrams(t *testing.T) {
	viaOne, viaBoth := passed("shop/web", "10.96.0.1", 9, 6), passed("shop/web", "10.96.0.2", 9, 8)
	viaOne.Service, viaBoth.Service = "shop/one", "shop/both"
	former := viaOne
	former.Destination.Address, former.Count = "10.96.0.77", 1 // before the service was made anew
	job := passed("shop/job-28791234-x2x4z", "shop/db", 443, 2)
	job.Source.Identity, job.Source.Address = "spiffe://m.test/ns/shop/sa/api", "10.1.0.99"
	sent := passed("shop/web", "shop/db", 443, 4) // the same as the server's agent has it
	sent.Direction = "outbound"
	dns := droppedAt(true, passed("shop/web", "shop/db", 443, 50))
	dns.Reason = "KernelUnstamped"
	unknown := droppedAt(false, passed("192.0.2.9", "shop/db", 443, 1))
	unknown.Source = past.End{}
	h := &past.History{Summaries: []past.Summary{carried("shop/web", "shop/db", 443, 3), passed("shop/web", "shop/db", 443, 4), sent, viaOne, former, viaBoth, job, dns,
		droppedAt(false, passed("bank/till", "shop/db", 443, 5)), droppedAt(true, passed("bank/till", "10.96.0.1", 9, 7)), droppedAt(true, passed("bank/till", "shop/db", 444, 1)),
		droppedAt(true, passed("shop/web", "192.0.2.1", 123, 1)), droppedAt(false, passed("192.0.2.9", "shop/db", 443, 1)), unknown, droppedAt(false, passed("out/old", "shop/db", 443, 1))}}
	objects := strings.NewReplacer("labels: {app: db}", "labels: {app: db, tier: x}", "labels: {app: api}", "labels: {app: api, tier: x}")
	apiUDP := strings.NewReplacer("app: db", "app: api", "db-udp", "api-udp").Replace(fmt.Sprintf(dbUDP, "web"))
	base := overUDPToo(t, objects.Replace(shop(udpServices+fmt.Sprintf(dbUDP, "web, api")+apiUDP)))
	const allowed = "allow PolicyAllow shop/db-udp[0]"
	for _, tc := range []struct {
		name, change  string
		deleted       []string
		breaks, opens []string
	}{
		{name: "the same", change: fmt.Sprintf(dbUDP, "web, api")},
		{name: "less", change: fmt.Sprintf(dbUDP, "api"), breaks: []string{
			"service shop/both>9 UDP*8 shop/web " + allowed + "|deny PolicyNoMatch at its endpoint shop/db",
			"service shop/one>9 UDP*7 shop/web " + allowed + "|deny PolicyNoMatch at its endpoint shop/db",
			"shop/db>443 UDP*4 shop/web " + allowed + "|deny PolicyNoMatch"}},
		{name: "less of a job that is gone", change: fmt.Sprintf(dbUDP, "web"), breaks: []string{"shop/db>443 UDP*2 shop/job-28791234 " + allowed + "|deny PolicyNoMatch"}},
		{name: "more", change: fmt.Sprintf(dbUDP, "web, api, bank/till"), opens: []string{
			"service shop/one>9 UDP*7 bank/till deny PolicyNoMatch at its endpoint shop/db|" + allowed,
			"shop/db>443 UDP*5 bank/till deny PolicyNoMatch|" + allowed}},
		{name: "an endpoint closes its service", change: "# nothing\n", deleted: []string{"AuthorizationPolicy/shop/api-udp"},
			breaks: []string{"service shop/both>9 UDP*8 shop/web " + allowed + "|deny KernelUDP at its endpoint shop/api"}},
		{name: "the service", change: "# nothing\n", deleted: []string{"Service/shop/one"}, breaks: []string{"service shop/one>9 UDP*7 shop/web " + allowed + "|deny UnknownDestination"}},
		{name: "a DENY of everything", change: "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: never}\nspec: {action: DENY, selector: {matchLabels: {app: db}}, rules: [{from: [{serviceAccounts: [web]}]}]}\n",
			breaks: []string{
				"service shop/both>9 UDP*8 shop/web " + allowed + "|deny PolicyDeny shop/never[0] at its endpoint shop/db",
				"service shop/one>9 UDP*7 shop/web " + allowed + "|deny PolicyDeny shop/never[0] at its endpoint shop/db",
				"shop/db>443*3 shop/web allow NoPolicy|deny PolicyDeny shop/never[0]",
				"shop/db>443 UDP*4 shop/web " + allowed + "|deny PolicyDeny shop/never[0]"}},
		{name: "TCP closed", change: "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: closed}\nspec: {}\n",
			breaks: []string{"shop/db>443*3 shop/web allow NoPolicy|deny PolicyNoMatch"}},
	} {
		named := &past.History{Summaries: slices.Clone(h.Summaries)}
		named.NameServices(serviceAt(model(t, base)))
		r := simulate(t, base, named, tc.change, tc.deleted...)
		if got := lines(r.Breaks); !slices.Equal(got, tc.breaks) {
			t.Errorf("%s: breaks\n%s\nwant\n%s", tc.name, strings.Join(got, "\n"), strings.Join(tc.breaks, "\n"))
		}
		if got := lines(r.Opens); !slices.Equal(got, tc.opens) {
			t.Errorf("%s: opens\n%s\nwant\n%s", tc.name, strings.Join(got, "\n"), strings.Join(tc.opens, "\n"))
		}
		if len(r.Unjudged) > 0 || r.Judged != 13 || r.Connections != 3 || r.Datagrams != 4+7+8+2+5+7+1+4 || r.PassedOver != 0 {
			t.Errorf("%s: %d kinds, %d connections, %d over UDP, not %+v", tc.name, r.Judged, r.Connections, r.Datagrams, r.Unjudged)
		}
	}
	only := &past.History{Summaries: slices.Clone(h.Summaries)}
	only.NameServices(serviceAt(model(t, base)))
	if only.Only("bank", time.Time{}); len(only.Summaries) != 3 {
		t.Errorf("of bank are %+v", only.Summaries)
	}
	only = &past.History{Summaries: []past.Summary{droppedAt(true, passed("bank/till", "10.96.0.1", 9, 7)), droppedAt(true, passed("bank/till", "192.0.2.1", 9, 7))}}
	only.NameServices(serviceAt(model(t, base)))
	if only.Only("shop", time.Time{}); len(only.Summaries) != 1 || only.Summaries[0].Service != "shop/one" {
		t.Errorf("of shop are %+v", only.Summaries)
	}
}

func lines(changes []Change) (all []string) {
	for _, c := range changes {
		all = append(all, fmt.Sprintf("%s>%s*%d %s %s|%s", c.Destination.Name, over(fmt.Sprint(c.Port), c.Protocol), c.Count, c.Source.Name, c.Before.text(), c.After.text()))
	}
	return all
}

// TestSuggestDatagrams: who passed over UDP, and is let in now, gets rules of their own, at
// each endpoint of the service that was sent to; who was dropped gets none, and is told.
func TestSuggestDatagrams(t *testing.T) {
	viaBoth := passed("shop/web", "10.96.0.2", 9, 8)
	viaBoth.Service = "shop/both"
	late := droppedAt(true, passed("shop/db", "shop/web", 40001, 1))
	late.Source.Address = "10.1.0.3"
	h := &past.History{Summaries: []past.Summary{carried("shop/web", "shop/db", 443, 3), viaBoth, passed("shop/web", "shop/db", 443, 5), passed("shop/web", "shop/gone", 443, 2),
		droppedAt(false, passed("bank/till", "shop/db", 443, 5)), droppedAt(false, passed("bank/till", "shop/db", 444, 1)), droppedAt(false, passed("out/old", "shop/db", 443, 1)),
		droppedAt(true, passed("shop/web", "192.0.2.1", 123, 1)), droppedAt(false, passed("shop/api", "shop/db", 443, 1)), late, passed("bank/till", "shop/api", 443, 6)}}
	objects := strings.NewReplacer("labels: {app: db}", "labels: {app: db, tier: x}", "labels: {app: api}", "labels: {app: api, tier: x}")
	policies := strings.Replace(fmt.Sprintf(dbUDP, "web, api"), "app: db", "tier: x", 1) +
		strings.NewReplacer("name: db-udp", "name: not-api", "  rules", "  action: DENY\n  rules").Replace(fmt.Sprintf(dbUDP, "api"))
	text := objects.Replace(shop(udpServices + policies))
	s, err := Suggest(model(t, overUDPToo(t, text)), h, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	const want = `# What the connections from 2026-03-04 12:00Z to 2026-03-04 12:01Z need.
# - 2 flows over UDP of shop/web to shop/gone:443 not considered: the destination is gone, and nothing has taken its place
# - AuthorizationPolicy shop/db-udp admits what it did: try to do without, with --delete AuthorizationPolicy/shop/db-udp
# - no rule for 1 flow over UDP of shop/api to shop/db, port 443: refused now (deny PolicyDeny shop/not-api[0])
# - no rule for 1 flow over UDP of shop/db to shop/web, port 40001: refused now (deny KernelUDP); write one with protocol: UDP to let such in; or answers that came too late
# - no rule for 6 flows over UDP of bank/till to shop/api, port 443: refused now (deny PolicyNoMatch); write one with protocol: UDP to let such in
# - no rule for 6 flows over UDP of bank/till to shop/db, ports 443, 444: refused now (deny PolicyNoMatch); write one with protocol: UDP to let such in
# - nobody has reached api over TCP: default-deny closes it
# - nobody has reached web: default-deny closes it
---
# rules[0]: 8 flows
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: api-datagrams
  namespace: shop
spec:
  rules:
  - from:
    - serviceAccounts:
      - web
    to:
    - ports:
      - 443
      protocol: UDP
  selector:
    matchLabels:
      app: api
---
# rules[0]: 3 connections
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: db-clients
  namespace: shop
spec:
  rules:
  - from:
    - serviceAccounts:
      - web
    to:
    - ports:
      - 443
  selector:
    matchLabels:
      app: db
---
# rules[0]: 8 flows
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: db-datagrams
  namespace: shop
spec:
  rules:
  - from:
    - serviceAccounts:
      - web
    to:
    - ports:
      - 443
      protocol: UDP
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
	// Where policies are not about UDP, nothing is said of it but that some passed.
	off, err := Suggest(model(t, written(t, objects.Replace(shop(udpServices)))), h, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	const notes = "no rule for 21 flows over UDP that passed: give --udp-by-identity, as the mesh's operator has it\nnobody has reached api: default-deny closes it\nnobody has reached web: default-deny closes it"
	if got := strings.Join(off.Notes, "\n"); got != notes || len(off.Policies) != 2 {
		t.Errorf("%d policies, %s", len(off.Policies), got)
	}
}

// TestSuggestDatagramsIsBounded: what nobody needs is told of so many pairs, and so many
// ports; what is too large for a mesh is said to be.
func TestSuggestDatagramsIsBounded(t *testing.T) {
	text := shop(fmt.Sprintf(dbUDP, "web"))
	base := overUDPToo(t, text+strings.NewReplacer("db-udp", "all", "{serviceAccounts: [web]}", `{identities: ["spiffe://m.test/ns/bank/sa/*"]}`).Replace(fmt.Sprintf(dbUDP, "web")))
	h := &past.History{}
	for i := range 100 {
		s := droppedAt(true, passed(fmt.Sprintf("far/c%c%c", 'a'+i/10, 'a'+i%10), "shop/db", 443, 1))
		s.Source.Address = fmt.Sprintf("10.9.0.%d", i)
		h.Summaries = append(h.Summaries, s)
	}
	for port := range 20 {
		h.Summaries = append(h.Summaries, droppedAt(true, passed("shop/api", "shop/db", uint16(1000+port), 1)))
	}
	try := func(clients int) (notes string, after *explain.Model) {
		t.Helper()
		h := &past.History{Summaries: slices.Clone(h.Summaries)}
		for i := range clients {
			s := passed(fmt.Sprintf("bank/%s%d", strings.Repeat("long", 10), i), "shop/db", 443, 1)
			s.Source.Address = fmt.Sprintf("10.8.%d.%d", i/250, i%250)
			h.Summaries = append(h.Summaries, s)
		}
		s, err := Suggest(model(t, base), h, "shop", true)
		if err != nil {
			t.Fatal(err)
		}
		changed, err := edit.Apply(base, objects(t, yamlOf(t, s, h)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.Notes, "\n"), model(t, changed)
	}
	notes, after := try(1000)
	if n := strings.Count(notes, "no rule for 1 flow over UDP"); n != maxUnruled || !strings.Contains(notes, "no rule for more flows over UDP, between 37 other pairs") {
		t.Errorf("%d of %d:\n%s", n, maxUnruled, notes)
	}
	if strings.Contains(notes, "bytes") || len(after.Warnings()) > 0 {
		t.Errorf("a thousand clients are too many: %v\n%s", after.Warnings(), notes)
	}
	const tooMany = `policies about UDP of db come to \d+ bytes with AuthorizationPolicy shop/db-datagrams, more than the 131072 that may be said of a workload`
	if notes, after = try(2000); !regexp.MustCompile(tooMany).MatchString(notes) || !strings.Contains(fmt.Sprint(after.Warnings()), "more about UDP than the 131072 bytes that agents take") {
		t.Errorf("what is too large is not said: %v\n%s", after.Warnings(), notes)
	}
	only := &past.History{Summaries: h.Summaries[100:120]}
	if s, err := Suggest(model(t, base), only, "shop", true); err != nil || !strings.Contains(strings.Join(s.Notes, "\n"), "ports 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007 and 12 more: ") {
		t.Errorf("%v, %q", err, s.Notes)
	}
}

// generateDatagrams adds to a generated mesh services over UDP, and policies that let some
// in and refuse others; and to what has been recorded, what passed and what was dropped. It
// returns the names of the policies that let in.
func generateDatagrams(t *testing.T, r *rand.Rand, base explain.Written, h *past.History) (opening []string) {
	t.Helper()
	var text strings.Builder
	var pods []string
	accounts := map[string]string{}
	addresses := map[string]string{}
	for _, w := range base.Workloads {
		key := w.Value.Namespace + "/" + w.Value.Name
		pods, accounts[key], addresses[key] = append(pods, key), w.Value.Spec.ServiceAccount, w.Value.Spec.Addresses[0]
	}
	selector := func() string {
		return []string{"", "selector: {matchLabels: {app: same}}, ", "selector: {matchLabels: {app: pa}}, ", "selector: {matchLabels: {tier: pb}}, "}[r.IntN(4)]
	}
	for i := range 1 + r.IntN(3) {
		from := ""
		for _, key := range pods {
			if namespace, _, _ := strings.Cut(key, "/"); r.IntN(2) == 0 && namespace != "out" {
				from += fmt.Sprintf("%s/%s, ", namespace, accounts[key])
			}
		}
		if from == "" {
			from = "shop/nobody"
		}
		fmt.Fprintf(&text, "---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: open-%d}\nspec: {%srules: [{from: [{serviceAccounts: [%s]}], to: [{protocol: UDP, ports: [%d, 92]}]}]}\n",
			i, selector(), strings.TrimSuffix(from, ", "), 90+r.IntN(2))
		opening = append(opening, fmt.Sprintf("AuthorizationPolicy/shop/open-%d", i))
	}
	if r.IntN(3) == 0 {
		fmt.Fprintf(&text, "---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: never-udp}\nspec: {action: DENY, %srules: [{from: [{serviceAccounts: [pa]}], to: [{protocol: UDP, ports: [90]}]}]}\n", selector())
	}
	for i, labels := range []string{"app: same", "app: pa", "tier: pb"} {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: s%d}\nspec: {selector: {%s}, clusterIP: 10.96.0.%d, ports: [{port: 9, protocol: UDP, targetPort: %d}]}\n", i, labels, i+1, 90+i)
	}
	added := objects(t, text.String())
	base.AuthorizationPolicies = append(base.AuthorizationPolicies, added.AuthorizationPolicies...)
	base.Services = append(base.Services, added.Services...)
	for range 10 + r.IntN(60) {
		from, to, port := pods[r.IntN(len(pods))], pods[r.IntN(len(pods))], uint16(90+r.IntN(3))
		if i := r.IntN(5); i < 3 {
			to, port = fmt.Sprintf("10.96.0.%d", i+1), 9
		}
		s := passed(from, to, port, uint64(1+r.IntN(9)))
		if s.Source.Address = addresses[from]; strings.HasPrefix(from, "out/") {
			s.Source.Identity = ""
		}
		if i := r.IntN(3); i < 2 {
			s = droppedAt(i == 0 || s.Destination.Workload == "", s)
		}
		h.Summaries = append(h.Summaries, s)
	}
	return opening
}

// TestDatagramsNotJudged: of what is gone nothing is known, and what was only dropped is
// told without its ports; and where policies are not about UDP nothing is said of it, but
// that some passed.
func TestDatagramsNotJudged(t *testing.T) {
	h := &past.History{Summaries: []past.Summary{passed("shop/web", "shop/gone", 443, 2), droppedAt(true, passed("shop/db", "shop/job", 40001, 1)), droppedAt(true, passed("shop/db", "shop/job", 40002, 2)),
		droppedAt(false, passed("shop/job", "shop/db", 443, 4)), passed("shop/web", "shop/db", 0, 3)}}
	base := shop(fmt.Sprintf(dbUDP, "web"))
	r := simulate(t, overUDPToo(t, base), h, fmt.Sprintf(dbUDP, "api"))
	var got []string
	for _, u := range r.Unjudged {
		got = append(got, fmt.Sprintf("%s>%s*%d %s", u.Source.Name, over(to(u.Destination, u.Port), u.Protocol), u.Count, u.Why))
	}
	want := []string{"shop/db>shop/job:* UDP*3 " + string(goneServer), "shop/job>shop/db:* UDP*4 " + string(goneSender),
		"shop/web>shop/db:* UDP*3 " + string(manyPorts), "shop/web>shop/gone:443 UDP*2 " + string(goneServer)}
	if !slices.Equal(got, want) || r.Judged != 0 {
		t.Errorf("%d judged, not\n%s\nwant\n%s", r.Judged, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	off := simulate(t, written(t, shop("")), h, fmt.Sprintf(dbFor, "web"))
	var text strings.Builder
	if err := off.Print(&text, false); err != nil || len(off.Unjudged) != 0 || off.PassedOver != 5 || !strings.Contains(text.String(), "warning: 5 flows over UDP passed, and are not judged: give --udp-by-identity") {
		t.Errorf("%v, %+v\n%s", err, off, &text)
	}
	text.Reset()
	dropped := simulate(t, written(t, shop("")), &past.History{Summaries: h.Summaries[1:4]}, fmt.Sprintf(dbFor, "web"))
	if err := dropped.Print(&text, false); err != nil || strings.Contains(text.String(), "UDP") {
		t.Errorf("%v\n%s", err, &text)
	}
}
