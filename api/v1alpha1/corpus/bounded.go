package corpus

import (
	"fmt"
	"strings"
)

// numbered are n entries that differ in their %d, as a list.
func numbered(n int, form string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(form, i+1)
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// Bounded are specs that only schemas refuse: more than an API server keeps and judges in
// bounded time, and entries that are there twice. Operators, and so agents, need no bound there.
func Bounded() []Refusal {
	return append(tooMany(), append(twice(), tooLong()...)...)
}

func tooMany() (list []Refusal) {
	list = []Refusal{
		{"AuthorizationPolicy", "{rules: " + numbered(65, "{from: [{namespaces: [n%d]}]}") + "}", "spec.rules"},
		{"AuthorizationPolicy", "{rules: [{from: " + numbered(33, "{namespaces: [n%d]}") + "}]}", "spec.rules[0].from"},
		{"AuthorizationPolicy", "{rules: [{to: " + numbered(65, "{ports: [%d]}") + "}]}", "spec.rules[0].to"},
		{"PeerAuthentication", "{portModes: " + numbered(65, "{port: %d, mode: STRICT}") + "}", "spec.portModes"},
		{"Workload", "{node: n1, networkNamespace: /run/netns/x, addresses: " + numbered(17, "10.1.0.%d") + "}", "spec.addresses"},
		{"Workload", workloadWith("addresses: [10.1.0.1], probePorts: " + numbered(17, "%d")), "spec.probePorts"},
		{"Mesh", "{trustDomain: example.org, clusterRanges: " + numbered(65, "10.%d.0.0/16") + "}", "spec.clusterRanges"},
		{"Mesh", meshWith("revokedIdentities: " + numbered(4097, "spiffe://example.org/ns/n%d")), "spec.revokedIdentities"},
		{"Mesh", meshWith("egress: {namespaces: " + numbered(4097, "{namespace: n%d, mode: DENY}") + "}"), "spec.egress.namespaces"},
		{"Mesh", meshWith("dns: {namespaces: " + numbered(4097, "{namespace: n%d, mode: DIRECT}") + "}"), "spec.dns.namespaces"},
	}
	for field, form := range map[string]string{"identities": "spiffe://example.org/ns/n%d", "notIdentities": "spiffe://example.org/ns/n%d", "serviceAccounts": "a%d", "namespaces": "n%d", "notNamespaces": "n%d"} {
		list = append(list, Refusal{"AuthorizationPolicy", from("{" + field + ": " + numbered(257, form) + "}"), "spec.rules[0].from[0]." + field})
	}
	for _, field := range []string{"ipBlocks", "notIpBlocks"} {
		list = append(list, Refusal{"AuthorizationPolicy", from("{" + field + ": " + numbered(65, "10.%d.0.0/16") + "}"), "spec.rules[0].from[0]." + field})
	}
	for _, field := range []string{"ports", "notPorts"} {
		list = append(list, Refusal{"AuthorizationPolicy", "{rules: [{to: [{" + field + ": " + numbered(257, "%d") + "}]}]}", "spec.rules[0].to[0]." + field})
	}
	for kind, spec := range map[string]string{"PeerAuthentication": "mode: STRICT, ", "AuthorizationPolicy": ""} {
		labels := strings.Trim(numbered(17, "a%d: x"), "[]")
		list = append(list, Refusal{kind, "{" + spec + "selector: {matchLabels: {" + labels + "}}}", "spec.selector.matchLabels"})
	}
	return list
}

func twice() (list []Refusal) {
	for field, value := range map[string]string{"identities": "spiffe://example.org/ns/a", "notIdentities": "spiffe://example.org/ns/a", "serviceAccounts": "a", "namespaces": "a", "notNamespaces": "a",
		"ipBlocks": "10.0.0.0/8", "notIpBlocks": "10.0.0.0/8"} {
		list = append(list, Refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q, %q]}", field, value, value)), "spec.rules[0].from[0]." + field + "[1]"})
	}
	for field, value := range map[string]string{"hosts": "a.example", "notHosts": "a.example", "methods": "GET", "notMethods": "GET", "paths": "/a", "notPaths": "/a"} {
		list = append(list, Refusal{"AuthorizationPolicy", fmt.Sprintf("{rules: [{to: [{%s: [%q, %q]}]}]}", field, value, value), "spec.rules[0].to[0]." + field + "[1]"})
	}
	return append(list, Refusal{"AuthorizationPolicy", `{rules: [{to: [{headers: [{name: x, values: [a, a]}]}]}]}`, "spec.rules[0].to[0].headers[0].values[1]"},
		Refusal{"Mesh", `{trustDomain: example.org, clusterRanges: [10.0.0.0/8, 10.0.0.0/8]}`, "spec.clusterRanges[1]"},
		Refusal{"Mesh", meshWith(`revokedIdentities: ["spiffe://example.org/a", "spiffe://example.org/a"]`), "spec.revokedIdentities[1]"})
}

func tooLong() []Refusal {
	long := strings.Repeat("x", 5000)
	return []Refusal{
		{"AuthorizationPolicy", from("{identities: [\"spiffe://example.org/" + long[:2040] + "\"]}"), "spec.rules[0].from[0].identities[0]"},
		{"Workload", "{node: n1, addresses: [10.1.0.1], networkNamespace: /" + long + "}", "spec.networkNamespace"},
		{"Mesh", meshWith(`federation: [{trustDomain: a.example, endpoint: "https://a.example/` + long + `", profile: https_web}]`), "spec.federation[0].endpoint"},
	}
}

// boundedRequests are bounds that everyone has: a waypoint compares each request with these.
func boundedRequests() (list []Refusal) {
	to := func(entry, field string) {
		list = append(list, Refusal{"AuthorizationPolicy", "{rules: [{to: [{" + entry + "}]}]}", "spec.rules[0].to[0]." + field})
	}
	for field, form := range map[string]string{"hosts": "h%d.example", "notHosts": "h%d.example", "paths": "/%d", "notPaths": "/%d"} {
		to(field+": "+numbered(65, form), field)
	}
	long := strings.Repeat("x", 1025)
	to("headers: "+numbered(17, "{name: x-%d}"), "headers")
	to("headers: [{name: x, values: "+numbered(65, "v%d")+"}]", "headers[0].values")
	to("paths: [/"+long[:1024]+"]", "paths[0]")
	to("headers: [{name: "+long[:257]+"}]", "headers[0].name")
	to("headers: [{name: x, values: ["+long+"]}]", "headers[0].values[0]")
	return list
}
