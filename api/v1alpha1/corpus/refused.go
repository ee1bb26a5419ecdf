package corpus

import (
	"fmt"
	"slices"
	"strings"
)

// Refusal is a spec that is wrong in one place, which Field is, or a part of what is said of it.
type Refusal struct{ Kind, Spec, Field string }

// Refused are specs that everyone refuses.
func Refused() []Refusal {
	return slices.Concat(meshes(), workloads(), policies(), values(), boundedRequests(), foreign(), slips())
}

// meshWith is a Mesh with more in its spec.
func meshWith(rest string) string {
	return `{trustDomain: example.org, clusterRanges: [10.0.0.0/8], ` + rest + `}`
}

// workloadWith is a Workload with more in its spec.
func workloadWith(rest string) string {
	return `{node: n1, networkNamespace: /run/netns/x, ` + rest + `}`
}

// from is an AuthorizationPolicy with one entry of from.
func from(source string) string { return `{rules: [{from: [` + source + `]}]}` }

func meshes() []Refusal {
	m := meshWith
	partner := func(workloads string) string {
		return `federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_web, workloads: [` + workloads + `]}]`
	}
	return []Refusal{
		{"Mesh", `{trustDomain: Example.ORG, clusterRanges: [10.0.0.0/8]}`, "trustDomain"},
		{"Mesh", `{trustDomain: "", clusterRanges: [10.0.0.0/8]}`, "trustDomain"},
		{"Mesh", `{trustDomain: "a/b", clusterRanges: [10.0.0.0/8]}`, "trustDomain"},
		{"Mesh", `{trustDomain: example.org, clusterRanges: []}`, "clusterRanges"},
		{"Mesh", `{trustDomain: example.org}`, "clusterRanges"},
		{"Mesh", m(`defaults: {peerAuthentication: DISABLE}`), "peerAuthentication"},
		{"Mesh", m(`egress: {mode: LOG}`), "egress.mode"},
		{"Mesh", m(`egress: {namespaces: [{namespace: a, mode: DENY}, {namespace: a, mode: ALLOW}]}`), "egress.namespaces[1]"},
		{"Mesh", m(`egress: {namespaces: [{namespace: "", mode: DENY}]}`), "egress.namespaces[0].namespace"},
		{"Mesh", m(`egress: {namespaces: [{namespace: a, mode: ""}]}`), "egress.namespaces[0].mode"},
		{"Mesh", m(`egress: {udp: {mode: LOG}}`), "egress.udp.mode"},
		{"Mesh", m(`egress: {udp: {ports: [123]}}`), "egress.udp.ports"},
		{"Mesh", m(`egress: {udp: {mode: DENY, ports: [123]}}`), "egress.udp.ports"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: []}}`), "egress.udp.ports"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: [0]}}`), "egress.udp.ports[0]"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: [65536]}}`), "egress.udp.ports[0]"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: [123, 53]}}`), "egress.udp.ports[1]"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: [8472]}}`), "egress.udp.ports[0]"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: [123, 123]}}`), "egress.udp.ports[1]"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: ` + numbered(65, "10%03d") + `}}`), "egress.udp.ports"},
		{"Mesh", m(`egress: {udp: {namespaces: [{namespace: a, mode: DENY}, {namespace: a, mode: ALLOW}]}}`), "egress.udp.namespaces[1]"},
		{"Mesh", m(`egress: {udp: {namespaces: [{namespace: "", mode: DENY}]}}`), "egress.udp.namespaces[0].namespace"},
		{"Mesh", m(`egress: {udp: {namespaces: [{namespace: a, mode: ""}]}}`), "egress.udp.namespaces[0].mode"},
		{"Mesh", m(`egress: {udp: {namespaces: [{namespace: a, mode: DENY, ports: [123]}]}}`), "egress.udp.namespaces[0].ports"},
		{"Mesh", m(`egress: {udp: {namespaces: [{namespace: a, mode: ALLOW, ports: [53]}]}}`), "egress.udp.namespaces[0].ports[0]"},
		{"Mesh", m(`egress: {udp: {namespaces: [{namespace: a, mode: ALLOW, port: 123}]}}`), "egress.udp.namespaces[0]"},
		{"Mesh", m(`egress: {udp: {mode: ALLOW, port: 123}}`), "egress.udp"},
		{"Mesh", m(`egress: {tcp: {mode: ALLOW}}`), "egress"},
		{"Mesh", m(`dns: {mode: capture}`), "dns.mode"},
		{"Mesh", m(`dns: {namespaces: [{namespace: a, mode: DIRECT}, {namespace: a, mode: CAPTURE}]}`), "dns.namespaces[1]"},
		{"Mesh", m(`dns: {namespaces: [{namespace: "", mode: DIRECT}]}`), "dns.namespaces[0].namespace"},
		{"Mesh", m(`dns: {namespaces: [{namespace: a, mode: ""}]}`), "dns.namespaces[0].mode"},
		{"Mesh", m(`federation: [{trustDomain: example.org, endpoint: "https://a.example/", profile: https_web}]`), "federation"},
		{"Mesh", m(`federation: [{trustDomain: A.example, endpoint: "https://a.example/", profile: https_web}]`), "federation[0].trustDomain"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_web}, {trustDomain: a.example, endpoint: "https://b.example/", profile: https_web}]`), "federation[1]"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "http://a.example/", profile: https_web}]`), "federation[0].endpoint"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://somebody@a.example/", profile: https_web}]`), "federation[0].endpoint"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: spiffe}]`), "federation[0]"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_spiffe}]`), "federation[0]"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_spiffe, endpointSPIFFEID: "spiffe://a.example"}]`), "federation[0].endpointSPIFFEID"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_web, endpointSPIFFEID: "spiffe://example.org/bundles"}]`), "federation[0]"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_spiffe, endpointSPIFFEID: "spiffe://a.example/bundles"}]`), "federation[0]"},
		{"Mesh", m(`federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_spiffe, endpointSPIFFEID: "spiffe://example.org/bundles", webRoots: x}]`), "federation[0]"},
		{"Mesh", m(partner(``)), "federation[0].workloads"},
		{"Mesh", m(partner(`{identity: "spiffe://b.example/x", addresses: [10.2.0.1]}`)), "federation[0].workloads"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example", addresses: [10.2.0.1]}`)), "federation[0].workloads[0].identity"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example/*", addresses: [10.2.0.1]}`)), "federation[0].workloads[0].identity"},
		{"Mesh", m(partner(`{addresses: [10.2.0.1]}`)), "federation[0].workloads[0].identity"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example/x"}`)), "federation[0].workloads[0].addresses"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example/x", addresses: []}`)), "federation[0].workloads[0].addresses"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example/x", addresses: [a.example]}`)), "federation[0].workloads[0].addresses[0]"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example/x", addresses: [127.0.0.1]}`)), "federation[0].workloads[0].addresses[0]"},
		{"Mesh", m(partner(`{identity: "spiffe://a.example/x", addresses: [10.2.0.1]}, {identity: "spiffe://a.example/x", addresses: [10.2.0.2]}`)), "federation[0].workloads[1]"},
	}
}

func workloads() []Refusal {
	w := workloadWith
	return []Refusal{
		{"Workload", `{addresses: [10.1.0.1], networkNamespace: /x}`, "node"},
		{"Workload", `{node: N1, addresses: [10.1.0.1], networkNamespace: /x}`, "node"},
		{"Workload", `{node: n..1, addresses: [10.1.0.1], networkNamespace: /x}`, "node"},
		{"Workload", w(`addresses: []`), "addresses"},
		{"Workload", `{node: n1, networkNamespace: /x}`, "addresses"},
		{"Workload", w(`addresses: [10.1.0.1], serviceAccount: w/b`), "serviceAccount"},
		{"Workload", w(`addresses: [10.1.0.1], serviceAccount: a.-b`), "serviceAccount"},
		{"Workload", w(`addresses: [10.1.0.1, 10.1.0.1]`), "addresses"},
		{"Workload", w(`addresses: ["fd00::1", "fd00:0::1"]`), "addresses"},
		{"Workload", w(`addresses: [10.1.0.1], probePorts: []`), "probePorts"},
		{"Workload", w(`addresses: [10.1.0.1], probePorts: [0]`), "probePorts[0]"},
		{"Workload", w(`addresses: [10.1.0.1], probePorts: [65536]`), "probePorts[0]"},
		{"Workload", w(`addresses: [10.1.0.1], probePorts: [80, 80]`), "probePorts[1]"},
	}
}

func policies() []Refusal {
	return []Refusal{
		{"PeerAuthentication", `{}`, "spec"},
		{"PeerAuthentication", `{portModes: []}`, "spec"},
		{"PeerAuthentication", `{mode: DISABLE}`, "mode"},
		{"PeerAuthentication", `{mode: STRICT, selector: {matchLabels: {}}}`, "matchLabels"},
		{"PeerAuthentication", `{portModes: [{port: 0, mode: STRICT}]}`, "portModes[0].port"},
		{"PeerAuthentication", `{portModes: [{port: 80, mode: STRICT}, {port: 80, mode: STRICT}]}`, "portModes[1]"},
		{"PeerAuthentication", `{portModes: [{port: 80}]}`, "portModes[0]"},
		{"AuthorizationPolicy", `{action: DENY}`, "spec"},
		{"AuthorizationPolicy", `{action: AUDIT, rules: []}`, "spec"},
		{"AuthorizationPolicy", `{action: BLOCK, rules: [{}]}`, "action"},
		{"AuthorizationPolicy", `{rules: [{from: []}]}`, "from"},
		{"AuthorizationPolicy", `{rules: [{to: []}]}`, "to"},
		{"AuthorizationPolicy", `{rules: [{to: [{}]}]}`, "to[0]"},
		{"AuthorizationPolicy", `{rules: [{to: [{ports: [80, 80]}]}]}`, "ports[1]"},
		{"AuthorizationPolicy", `{rules: [{to: [{ports: [0]}]}]}`, "ports[0]"},
		{"AuthorizationPolicy", `{rules: [{to: [{notPorts: [70000]}]}]}`, "notPorts[0]"},
		{"AuthorizationPolicy", `{rules: [{to: [{protocol: UDP}]}]}`, "ports"},
		{"AuthorizationPolicy", `{action: ALLOW, rules: [{to: [{protocol: UDP, notPorts: [53]}]}]}`, "ports"},
		{"AuthorizationPolicy", `{rules: [{to: [{protocol: SCTP, ports: [80]}]}]}`, "protocol"},
		{"AuthorizationPolicy", `{rules: [{to: [{protocol: udp, ports: [80]}]}]}`, "protocol"},
		{"AuthorizationPolicy", `{rules: [{to: [{protocol: UDP, ports: [80], paths: [/a]}]}]}`, "datagram"},
		{"AuthorizationPolicy", from(`{}`), "from[0]"},
		{"AuthorizationPolicy", from(`{identities: ["spiffe://example.org/ns/a"], serviceAccounts: [b]}`), "from[0]"},
	}
}

// values are of the forms that fields have.
func values() (list []Refusal) {
	m, w := meshWith, workloadWith
	for _, id := range []string{"web", "spiffe://Example.org/a", "spiffe://example.org/a//b", "spiffe://example.org/a/..", "spiffe://example.org/./a", "spiffe://example.org/", "spiffe://example.org/a b"} {
		list = append(list, Refusal{"Mesh", m(fmt.Sprintf("revokedIdentities: [%q]", id)), "revokedIdentities[0]"})
		for _, field := range []string{"identities", "notIdentities"} {
			list = append(list, Refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q]}", field, id)), field + "[0]"})
		}
	}
	for _, id := range []string{"spiffe://example.org", "spiffe://*/ns/a", "spiffe://example.org/ns/sh*/sa/web", "*"} {
		list = append(list, Refusal{"AuthorizationPolicy", from(fmt.Sprintf("{identities: [%q]}", id)), "identities[0]"})
	}
	for _, account := range []string{"*", "a/b/c", "", "A", "a_b", "/a", "a/", "a..b", "x-/a", strings.Repeat("a", 64) + "/b"} {
		list = append(list, Refusal{"AuthorizationPolicy", from(fmt.Sprintf("{serviceAccounts: [%q]}", account)), "serviceAccounts[0]"})
	}
	for _, name := range []string{"", "*", "sh*"} {
		for _, field := range []string{"namespaces", "notNamespaces"} {
			list = append(list, Refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q]}", field, name)), field + "[0]"})
		}
	}
	for _, field := range []string{"identities", "notIdentities", "serviceAccounts", "namespaces", "notNamespaces", "ipBlocks", "notIpBlocks"} {
		list = append(list, Refusal{"AuthorizationPolicy", from("{" + field + ": []}"), field})
	}
	for _, block := range []string{"10.1.2.3", "10.1.2.3/16", "fd00::1/64", "::ffff:10.0.0.0/104", "everywhere", "10.0.0.0/33", "10.0.0/8"} {
		list = append(list, Refusal{"Mesh", fmt.Sprintf("{trustDomain: x, clusterRanges: [%q]}", block), "clusterRanges[0]"})
		for _, field := range []string{"ipBlocks", "notIpBlocks"} {
			list = append(list, Refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q]}", field, block)), field + "[0]"})
		}
	}
	for entry, field := range map[string]string{
		`hosts: ["a:80"]`: "hosts[0]", `notHosts: ["a*b"]`: "notHosts[0]", `hosts: ["http://a"]`: "hosts[0]", `hosts: [""]`: "hosts[0]", `hosts: []`: "hosts", `notHosts: []`: "notHosts",
		`methods: [get]`: "methods[0]", `notMethods: ["*"]`: "notMethods[0]", `methods: []`: "methods", `notMethods: []`: "notMethods",
		`methods: [A` + strings.Repeat("B", 32) + `]`: "methods[0]",
		`paths: ["a"]`: "paths[0]", `paths: ["/a?b"]`: "paths[0]", `notPaths: ["/a*b"]`: "notPaths[0]", `notPaths: ["**"]`: "notPaths[0]", `paths: [""]`: "paths[0]", `paths: []`: "paths", `notPaths: []`: "notPaths",
		`headers: []`: "headers", `headers: [{name: "a b"}]`: "headers[0].name", `headers: [{name: Host, values: [a]}]`: "write hosts", `headers: [{values: [a]}]`: "headers[0].name",
		`headers: [{name: x, values: []}]`: "headers[0].values", `headers: [{name: x, values: ["a*b"]}]`: "headers[0].values[0]", `headers: [{name: x, value: a}]`: "an entry of headers has no other fields",
	} {
		list = append(list, Refusal{"AuthorizationPolicy", `{rules: [{to: [{` + entry + `}]}]}`, field})
	}
	for _, address := range []string{"10.1.0", "127.0.0.1", "::1", "::ffff:10.1.0.9", "fe80::1%eth0", "fe80::1", "0.0.0.0", "224.0.0.1", "ff0e::1", "10.1.0.1/32"} {
		list = append(list, Refusal{"Workload", w(fmt.Sprintf("addresses: [%q]", address)), "addresses[0]"})
	}
	for _, port := range []int{15001, 15006, 15008, 15009, 15053} {
		list = append(list, Refusal{"Workload", w(fmt.Sprintf("addresses: [10.1.0.1], probePorts: [%d]", port)), "probePorts"})
	}
	for _, path := range []string{"../web", "web", "/run/../web", "/run//web", "/run/./web", "/run/web/"} {
		list = append(list, Refusal{"Workload", fmt.Sprintf("{node: n1, addresses: [10.1.0.1], networkNamespace: %q}", path), "networkNamespace"})
	}
	for _, kind := range []string{"PeerAuthentication", "AuthorizationPolicy"} {
		for _, labels := range []string{`"a/b/c": x`, `"": x`, `"-a": x`, `"Up.example/a": x`, `"a": "?"`, `"a": "-x"`, `"a": ` + strings.Repeat("x", 64), `"` + strings.Repeat("x", 64) + `": x`} {
			spec := map[string]string{"PeerAuthentication": "mode: STRICT, ", "AuthorizationPolicy": ""}[kind]
			list = append(list, Refusal{kind, "{" + spec + "selector: {matchLabels: {" + labels + "}}}", "matchLabels"})
		}
	}
	return list
}
