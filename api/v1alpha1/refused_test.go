package v1alpha1_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
)

// Values of the types that other meshes have for the fields.
const (
	words   = `["a"]`
	objects = `[{key: "request.headers[x]", values: ["a"]}]`
	single  = `{a: b}`
)

// tokenWords are those of internal/kube/strict, which see.
func tokenWords() map[string]string {
	return map[string]string{"notHeaders": objects, "requestPrincipals": words, "notRequestPrincipals": words, "jwt": single, "claims": single, "when": objects}
}

// requestWords are what an entry of to says of requests.
func requestWords() map[string]string {
	return map[string]string{"hosts": words, "notHosts": words, "methods": `[GET]`, "notMethods": `[GET]`, "paths": `[/a]`, "notPaths": `[/a]`, "headers": `[{name: x-a}]`}
}

// placed are fields with where they are known: at the other levels they are refused.
func placed() map[string]struct{ level, value string } {
	type at = struct{ level, value string }
	all := map[string]at{"ports": {"to", `[80]`}, "notPorts": {"to", `["80"]`}, "protocol": {"to", "UDP"}, "from": {"rule", objects}, "to": {"rule", objects},
		"action": {"spec", "DENY"}, "selector": {"spec", single}, "rules": {"spec", objects}}
	for _, name := range []string{"identities", "notIdentities", "serviceAccounts", "namespaces", "notNamespaces", "ipBlocks", "notIpBlocks"} {
		all[name] = at{"from", words}
	}
	for name, value := range tokenWords() {
		all[name] = at{"", value}
	}
	for name, value := range requestWords() {
		all[name] = at{"to", value}
	}
	for _, name := range []string{"principals", "notPrincipals", "notServiceAccounts", "remoteIpBlocks", "notRemoteIpBlocks", "trustDomains", "notTrustDomains"} {
		all[name] = at{"", words}
	}
	for _, name := range []string{"source", "operation", "provider", "targetRef"} {
		all[name] = at{"", single}
	}
	all["targetRefs"] = at{"", objects}
	return all
}

// levels are specs that are good without the %s, which TestAccepted shows.
func levels() map[string]string {
	return map[string]string{"spec": `{rules: [{}]%s}`, "rule": `{rules: [{from: [{namespaces: [shop]}]%s}]}`,
		"from": `{rules: [{from: [{notIpBlocks: [10.0.0.0/8]%s}]}]}`, "to": `{rules: [{to: [{ports: [80]%s}]}]}`}
}

// slips are objects of the other kinds, and entries of portModes, with a field too many.
func slips() []refusal {
	mesh := func(rest string) string {
		return "{trustDomain: example.org, clusterRanges: [10.0.0.0/8], " + rest + "}"
	}
	return []refusal{
		{"Mesh", mesh(`revokedIdentites: ["spiffe://example.org/ns/shop/sa/web"]`), "spec has no other fields"},
		{"Mesh", mesh("peerAuthentication: PERMISSIVE"), "spec has no other fields"},
		{"Mesh", mesh("defaults: {peerAuthentification: PERMISSIVE}"), "defaults have no other fields"},
		{"Mesh", mesh("egress: {mod: DENY}"), "egress has no other fields"},
		{"Mesh", mesh("egress: {namespaces: [{namespace: a, mode: DENY, x-y: {a: b}}]}"), "an entry of egress.namespaces has no other fields"},
		{"Mesh", mesh("dns: {modes: DIRECT}"), "dns has no other fields"},
		{"Mesh", mesh("dns: {namespaces: [{namespace: a, mode: DIRECT, \"\": 5}]}"), "an entry of dns.namespaces has no other fields"},
		{"Mesh", mesh(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_web, bundles: x}]`), "an entry of federation has no other fields"},
		{"Mesh", mesh(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_web, workloads: [{identity: "spiffe://a.example/x", addresses: [10.2.0.1], ports: [80]}]}]`), "an entry of workloads has no other fields"},
		{"Workload", "{node: n1, networkNamespace: /run/netns/x, addresses: [10.1.0.1], probePort: 80}", "spec has no other fields"},
		{"Workload", "{node: n1, networkNamespace: /run/netns/x, addresses: [10.1.0.1], labels: {app: web}}", "spec has no other fields"},
		{"PeerAuthentication", "{portModes: [{port: 80, mode: PERMISSIVE, selector: {matchLabels: {a: b}}}]}", "an entry of portModes has no other fields"},
		{"PeerAuthentication", "{mode: STRICT, portModes: [{port: 80, mode: PERMISSIVE, form: [a]}]}", "an entry of portModes has no other fields"},
	}
}

// TestEveryLevelKeepsItsFields: whatever an object of ours has fields at, is refused with
// one too many, and a rule speaks of each that it has.
func TestEveryLevelKeepsItsFields(t *testing.T) {
	for kind, d := range definitions(t) {
		spec := d.structural.Properties["spec"]
		visit(&spec, func(s *schema.Structural) {
			if len(s.Properties) == 0 {
				return
			}
			rules := ""
			for _, rule := range s.XValidations {
				rules += rule.Rule + "\n"
			}
			if !s.XPreserveUnknownFields || !strings.Contains(rules, "size(dyn(self)) == ") {
				t.Errorf("%s: what is unknown is taken out, and nobody told, beside %v", kind, slices.Sorted(maps.Keys(s.Properties)))
			}
			for name := range s.Properties {
				if !strings.Contains(rules, "has(self."+name+")") {
					t.Errorf("%s: no rule counts %s, or refuses it", kind, name)
				}
			}
		})
	}
}

// foreign are policies that an API server would make wider, by taking out what its
// schema does not have.
func foreign() []refusal {
	var list []refusal
	for name, at := range placed() {
		for level, spec := range levels() {
			if at.level == level {
				continue
			}
			values := []string{at.value}
			if level == "rule" { // of whatever type: the levels' schemas are the same
				values = append(values, "[]", "{}", "5")
			}
			for _, value := range values {
				list = append(list, refusal{"AuthorizationPolicy", fmt.Sprintf(spec, ", "+name+": "+value), name})
			}
		}
	}
	for level, spec := range levels() {
		for _, slip := range []string{"form: [{namespaces: [a]}]", "acton: DENY", "identites: [a]", "port: 80", "x-y: {a: b}", `"": 5`} {
			list = append(list, refusal{"AuthorizationPolicy", fmt.Sprintf(spec, ", "+slip), map[string]string{"spec": "spec", "rule": "a rule", "from": "of from", "to": "of to"}[level] + " has no other fields"})
		}
	}
	for name, at := range placed() {
		if spec := levels()[at.level]; spec != "" && at.level != "spec" && !strings.Contains(spec, name+":") {
			list = append(list, refusal{"AuthorizationPolicy", fmt.Sprintf(spec, ", "+name+": null"), "has no other fields"})
		}
	}
	for _, rule := range []string{"{form: [{namespaces: [a]}]}", "{from: null}", "{from: [{namespaces: [a]}], to: null}"} {
		list = append(list, refusal{"AuthorizationPolicy", "{rules: [" + rule + "]}", "a rule has no other fields"})
	}
	list = append(list, refusal{"AuthorizationPolicy", "{selecter: {matchLabels: {a: b}}, rules: [{}]}", "spec has no other fields"},
		refusal{"AuthorizationPolicy", "{selector: null, rules: [{}]}", "spec has no other fields"},
		refusal{"PeerAuthentication", "{mode: PERMISSIVE, selector: null}", "spec has no other fields"},
		refusal{"PeerAuthentication", "{mode: PERMISSIVE, portMode: [{port: 80, mode: STRICT}]}", "spec has no other fields"},
		refusal{"PeerAuthentication", "{mode: PERMISSIVE, selector: {matchLabels: {a: b}, matchLabel: {c: d}}}", "a selector has no other fields"})
	for kind, spec := range map[string]string{"AuthorizationPolicy": "", "PeerAuthentication": "mode: PERMISSIVE, "} {
		list = append(list, refusal{kind, "{" + spec + "selector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: Exists}]}}", "matchExpressions"})
	}
	return append(list, refusal{"AuthorizationPolicy", `{action: CUSTOM, provider: {name: x}, rules: [{}]}`, "action"},
		refusal{"AuthorizationPolicy", `{rules: [{when: [{key: "request.headers[x]", values: [a]}]}]}`, "when"},
		refusal{"AuthorizationPolicy", `{rules: [{to: [{operation: {methods: [GET]}}]}]}`, "operation"},
		refusal{"AuthorizationPolicy", `{rules: [{from: [{source: {principals: [a]}}]}]}`, "source"},
		refusal{"PeerAuthentication", `{mode: PERMISSIVE, mtls: {mode: STRICT}}`, "mtls"},
		refusal{"PeerAuthentication", `{mtls: {mode: STRICT}}`, "mtls"},
		refusal{"PeerAuthentication", `{mode: PERMISSIVE, portLevelMtls: {"80": {mode: STRICT}}}`, "portLevelMtls"})
}

// Both give the same reason for what is about requests, and not judged, or judged elsewhere.
func TestRequestsAreRefusedForTheSameReason(t *testing.T) {
	all, misplaced := definitions(t), requestWords()
	words := tokenWords()
	maps.Copy(words, misplaced)
	for name, value := range words {
		for level, spec := range levels() {
			if level == "spec" || misplaced[name] != "" && level == "to" {
				continue // strict knows the names in rules
			}
			spec = fmt.Sprintf(spec, ", "+name+": "+value)
			problems := compile(t, "AuthorizationPolicy", spec)
			if len(problems) != 1 {
				t.Errorf("%s: internal/kube says %v", spec, problems)
				continue
			}
			text := problems[0].Error()
			before, want := "in which ", "no waypoint judges these: write hosts, methods, paths"
			if misplaced[name] != "" {
				before, want = "could ", "let in more than you mean"
			}
			_, reason, cut := strings.Cut(text, before)
			var said []string
			for _, err := range all["AuthorizationPolicy"].refuse(parse(t, object("AuthorizationPolicy", spec)), nil) {
				said = append(said, err.Error())
			}
			if !cut || !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, want) }) || !strings.HasPrefix(reason, want) {
				t.Errorf("%s: internal/kube says %q, an API server %q", spec, text, said)
			}
		}
	}
}
