package corpus

import (
	"fmt"
	"strings"
)

// Values of the types that other meshes have for the fields.
const (
	words   = `["a"]`
	objects = `[{key: "request.headers[x]", values: ["a"]}]`
	single  = `{a: b}`
)

// TokenWords are those of internal/kube/strict, which see, with a value of each.
func TokenWords() map[string]string {
	return map[string]string{"notHeaders": objects, "requestPrincipals": words, "notRequestPrincipals": words, "jwt": single, "claims": single, "when": objects}
}

// RequestWords are what an entry of to says of requests.
func RequestWords() map[string]string {
	return map[string]string{"hosts": words, "notHosts": words, "methods": `[GET]`, "notMethods": `[GET]`, "paths": `[/a]`, "notPaths": `[/a]`, "headers": `[{name: x-a}]`}
}

// placed are fields with where they are known: at the other Levels they are refused.
func placed() map[string]struct{ level, value string } {
	type at = struct{ level, value string }
	all := map[string]at{"ports": {"to", `[80]`}, "notPorts": {"to", `["80"]`}, "protocol": {"to", "UDP"}, "from": {"rule", objects}, "to": {"rule", objects},
		"action": {"spec", "DENY"}, "selector": {"spec", single}, "rules": {"spec", objects}}
	for _, name := range []string{"identities", "notIdentities", "serviceAccounts", "namespaces", "notNamespaces", "ipBlocks", "notIpBlocks"} {
		all[name] = at{"from", words}
	}
	for name, value := range TokenWords() {
		all[name] = at{"", value}
	}
	for name, value := range RequestWords() {
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

// Levels are specs that are good without the %s, by what the %s is a field of.
func Levels() map[string]string {
	return map[string]string{"spec": `{rules: [{}]%s}`, "rule": `{rules: [{from: [{namespaces: [shop]}]%s}]}`,
		"from": `{rules: [{from: [{notIpBlocks: [10.0.0.0/8]%s}]}]}`, "to": `{rules: [{to: [{ports: [80]%s}]}]}`}
}

// slips are objects of the other kinds, and entries of portModes, with a field too many.
func slips() []Refusal {
	mesh := func(rest string) string {
		return "{trustDomain: example.org, clusterRanges: [10.0.0.0/8], " + rest + "}"
	}
	return []Refusal{
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

// foreign are policies that an API server would make wider, by taking out what its
// schema does not have.
func foreign() []Refusal {
	var list []Refusal
	for name, at := range placed() {
		for level, spec := range Levels() {
			if at.level == level {
				continue
			}
			values := []string{at.value}
			if level == "rule" { // of whatever type: the Levels' schemas are the same
				values = append(values, "[]", "{}", "5")
			}
			for _, value := range values {
				list = append(list, Refusal{"AuthorizationPolicy", fmt.Sprintf(spec, ", "+name+": "+value), name})
			}
		}
	}
	for level, spec := range Levels() {
		for _, slip := range []string{"form: [{namespaces: [a]}]", "acton: DENY", "identites: [a]", "port: 80", "x-y: {a: b}", `"": 5`} {
			list = append(list, Refusal{"AuthorizationPolicy", fmt.Sprintf(spec, ", "+slip), map[string]string{"spec": "spec", "rule": "a rule", "from": "of from", "to": "of to"}[level] + " has no other fields"})
		}
	}
	for name, at := range placed() {
		if spec := Levels()[at.level]; spec != "" && at.level != "spec" && !strings.Contains(spec, name+":") {
			list = append(list, Refusal{"AuthorizationPolicy", fmt.Sprintf(spec, ", "+name+": null"), "has no other fields"})
		}
	}
	for _, rule := range []string{"{form: [{namespaces: [a]}]}", "{from: null}", "{from: [{namespaces: [a]}], to: null}"} {
		list = append(list, Refusal{"AuthorizationPolicy", "{rules: [" + rule + "]}", "a rule has no other fields"})
	}
	list = append(list, Refusal{"AuthorizationPolicy", "{selecter: {matchLabels: {a: b}}, rules: [{}]}", "spec has no other fields"},
		Refusal{"AuthorizationPolicy", "{selector: null, rules: [{}]}", "spec has no other fields"},
		Refusal{"PeerAuthentication", "{mode: PERMISSIVE, selector: null}", "spec has no other fields"},
		Refusal{"PeerAuthentication", "{mode: PERMISSIVE, portMode: [{port: 80, mode: STRICT}]}", "spec has no other fields"},
		Refusal{"PeerAuthentication", "{mode: PERMISSIVE, selector: {matchLabels: {a: b}, matchLabel: {c: d}}}", "a selector has no other fields"})
	for kind, spec := range map[string]string{"AuthorizationPolicy": "", "PeerAuthentication": "mode: PERMISSIVE, "} {
		list = append(list, Refusal{kind, "{" + spec + "selector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: Exists}]}}", "matchExpressions"})
	}
	return append(list, Refusal{"AuthorizationPolicy", `{action: CUSTOM, provider: {name: x}, rules: [{}]}`, "action"},
		Refusal{"AuthorizationPolicy", `{rules: [{when: [{key: "request.headers[x]", values: [a]}]}]}`, "when"},
		Refusal{"AuthorizationPolicy", `{rules: [{to: [{operation: {methods: [GET]}}]}]}`, "operation"},
		Refusal{"AuthorizationPolicy", `{rules: [{from: [{source: {principals: [a]}}]}]}`, "source"},
		Refusal{"PeerAuthentication", `{mode: PERMISSIVE, mtls: {mode: STRICT}}`, "mtls"},
		Refusal{"PeerAuthentication", `{mtls: {mode: STRICT}}`, "mtls"},
		Refusal{"PeerAuthentication", `{mode: PERMISSIVE, portLevelMtls: {"80": {mode: STRICT}}}`, "portLevelMtls"})
}
