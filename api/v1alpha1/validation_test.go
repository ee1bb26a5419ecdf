package v1alpha1_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/kube"
)

// definition is a committed CustomResourceDefinition, as an API server holds it.
type definition struct {
	crd        apiextensions.CustomResourceDefinition
	schema     validation.SchemaValidator
	structural *schema.Structural
	rules      *cel.Validator
}

// definitions reads the committed files and makes of each what an API server does,
// which includes its limits on what CEL rules may cost.
func definitions(t *testing.T) map[string]*definition {
	t.Helper()
	files, err := filepath.Glob("../../manifests/heddle/crds/*.yaml")
	if err != nil || len(files) != len(kinds()) {
		t.Fatalf("definitions: %v, %v", files, err)
	}
	all := map[string]*definition{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(content, &v1); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
		apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
		d := &definition{}
		if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &d.crd, nil); err != nil {
			t.Fatal(err)
		}
		d.crd.Status.StoredVersions = []string{v1.Spec.Versions[0].Name}
		for _, err := range crdvalidation.ValidateCustomResourceDefinition(context.Background(), &d.crd) {
			t.Errorf("%s: an API server refuses it: %v", filepath.Base(file), err)
		}
		props := d.crd.Spec.Validation
		if props == nil {
			props = d.crd.Spec.Versions[0].Schema
		}
		if d.schema, _, err = validation.NewSchemaValidator(props.OpenAPIV3Schema); err != nil {
			t.Fatal(err)
		}
		if d.structural, err = schema.NewStructural(props.OpenAPIV3Schema); err != nil {
			t.Fatal(err)
		}
		d.rules = cel.NewValidator(d.structural, true, celconfig.PerCallLimit)
		all[d.crd.Spec.Names.Kind] = d
	}
	return all
}

// refuse returns what an API server would refuse about an object, or nothing.
func (d *definition) refuse(object, old map[string]any) field.ErrorList {
	pruning.Prune(object, d.structural, true)
	defaulting.PruneNonNullableNullsWithoutDefaults(object, d.structural)
	defaulting.Default(object, d.structural)
	errs := validation.ValidateCustomResource(nil, object, d.schema)
	if len(errs) > 0 {
		return errs // as an API server, which runs no rules on what has not the right shape
	}
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, d.structural, object)...)
	var before any
	if old != nil {
		before = old
	}
	ruled, _ := d.rules.Validate(context.Background(), nil, d.structural, object, before, celconfig.RuntimeCELCostBudget)
	return append(errs, ruled...)
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	object := map[string]any{}
	if err := utilyaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return object
}

const (
	goodMesh = `{trustDomain: example.org, clusterRanges: ["10.0.0.0/8", "fd00::/8"]}`
	enrolled = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {heddle.dev/mesh: enabled}}\n"
)

func object(kind, spec string) string {
	meta := "{namespace: shop, name: it}"
	if kind == "Mesh" {
		meta = "{name: default}"
	}
	return fmt.Sprintf("apiVersion: heddle.dev/v1alpha1\nkind: %s\nmetadata: %s\nspec: %s\n", kind, meta, spec)
}

// compile says what internal/kube refuses about the object, without an API server.
func compile(t *testing.T, kind, spec string) []*kube.Problem {
	t.Helper()
	folder := fstest.MapFS{"ns.yaml": {Data: []byte(enrolled)}, "it.yaml": {Data: []byte(object(kind, spec))}}
	if kind != "Mesh" {
		folder["mesh.yaml"] = &fstest.MapFile{Data: []byte(object("Mesh", goodMesh))}
	}
	objects, err := kube.LoadFolder(folder)
	if err == nil {
		objects.UDPByIdentity = true
		_, err = kube.Compile(objects)
	}
	if problems := kube.Problems(err); err == nil || len(problems) > 0 {
		return problems
	}
	t.Fatalf("%s %s: %v", kind, spec, err)
	return nil
}

// accepted are specs that everyone takes.
func accepted() map[string][]string {
	all := map[string][]string{
		"Mesh": {
			goodMesh,
			`{trustDomain: a_b.c-d, clusterRanges: [0.0.0.0/0, "::/0"], defaults: {peerAuthentication: PERMISSIVE}, egress: {mode: DENY, namespaces: [{namespace: a, mode: ALLOW}]}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], dns: {mode: CAPTURE, namespaces: [{namespace: a, mode: DIRECT}]}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], dns: {}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {mode: ALLOW, udp: {mode: DENY, namespaces: [{namespace: games, mode: ALLOW, ports: [1, 123, 443, 65535]}, {namespace: a, mode: ALLOW}, {namespace: b, mode: DENY}]}}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {udp: {mode: ALLOW, ports: [123], namespaces: [{namespace: b, mode: DENY}]}}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {udp: {}}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], revokedIdentities: ["spiffe://example.org/ns/shop/sa/web", "spiffe://example.org", "spiffe://x/..a/.b/..."]}`,
		},
		"Workload": {
			`{node: n1, addresses: [10.1.0.1, "fd00::1"], networkNamespace: /run/netns/web, probePorts: [80, 15020], ready: false, serviceAccount: a.b-c}`,
			`{node: n1.example.org, addresses: [10.1.0.1], networkNamespace: /run/.netns/..web/...}`,
		},
		"PeerAuthentication": {
			`{mode: STRICT}`,
			`{selector: {matchLabels: {app: "", example.org/Tier_1.x: a-B_c.9}}, portModes: [{port: 65535, mode: PERMISSIVE}, {port: 1, mode: STRICT}]}`,
		},
		"AuthorizationPolicy": {
			`{}`,
			`{action: DENY, rules: [{}]}`,
			`{action: AUDIT, rules: [{from: [{ipBlocks: [10.1.2.3/32, "fd00:1::/64"], notIpBlocks: [10.0.0.0/8]}], to: [{ports: [1, 65535], notPorts: [80]}]}]}`,
			`{rules: [{from: [{identities: ["spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/shop/*", "spiffe://x/.a/..b/..."], notIdentities: ["spiffe://example.org/*"]}]}]}`,
			`{rules: [{from: [{namespaces: [shop]}], to: [{protocol: UDP, ports: [443]}, {ports: [443]}, {protocol: TCP}]}]}`,
			`{action: DENY, rules: [{to: [{protocol: UDP}]}, {to: [{protocol: UDP, notPorts: [53]}]}]}`,
			`{rules: [{to: [{hosts: ["*"], notHosts: ["*.Example.org", "a_b*", "[fd00::1]"], methods: [GET, M-SEARCH], notMethods: [POST], paths: ["*"]}, {paths: [/, /admin*, "*.css", "*/x", "/shop.Cart/*"]}]}]}`,
			`{action: DENY, rules: [{to: [{ports: [80], notPaths: [/a]}, {headers: [{name: X-Role, values: [admin*, "*", "a, b"]}, {name: x.y}]}]}]}`,
			`{rules: [{from: [{serviceAccounts: [web, shop/web.v2], namespaces: [shop], notNamespaces: [bank]}]}]}`,
		},
	}
	for _, spec := range levels() {
		all["AuthorizationPolicy"] = append(all["AuthorizationPolicy"], fmt.Sprintf(spec, ""))
	}
	return all
}

func TestAccepted(t *testing.T) {
	all := definitions(t)
	for kind, specs := range accepted() {
		for _, spec := range specs {
			if errs := all[kind].refuse(parse(t, object(kind, spec)), nil); len(errs) > 0 {
				t.Errorf("%s %s: an API server refuses %v", kind, spec, errs)
			}
			if problems := compile(t, kind, spec); len(problems) > 0 {
				t.Errorf("%s %s: internal/kube refuses %v", kind, spec, problems)
			}
		}
	}
}

// refusal is a spec that is wrong in one place.
type refusal struct{ kind, spec, field string }

func refusals() []refusal {
	m := func(rest string) string {
		return `{trustDomain: example.org, clusterRanges: [10.0.0.0/8], ` + rest + `}`
	}
	partner := func(workloads string) string {
		return `federation: [{trustDomain: a.example, endpoint: "https://a.example/", profile: https_web, workloads: [` + workloads + `]}]`
	}
	w := func(rest string) string { return `{node: n1, networkNamespace: /run/netns/x, ` + rest + `}` }
	from := func(source string) string { return `{rules: [{from: [` + source + `]}]}` }
	list := []refusal{
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
		{"Mesh", m(`egress: {udp: {mode: ALLOW, ports: [` + strings.Join(strings.Fields(strings.Repeat("1 ", 65)), ", ") + `]}}`), "egress.udp.ports"},
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
	for _, id := range []string{"web", "spiffe://Example.org/a", "spiffe://example.org/a//b", "spiffe://example.org/a/..", "spiffe://example.org/./a", "spiffe://example.org/", "spiffe://example.org/a b"} {
		list = append(list, refusal{"Mesh", m(fmt.Sprintf("revokedIdentities: [%q]", id)), "revokedIdentities[0]"})
		for _, field := range []string{"identities", "notIdentities"} {
			list = append(list, refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q]}", field, id)), field + "[0]"})
		}
	}
	for _, id := range []string{"spiffe://example.org", "spiffe://*/ns/a", "spiffe://example.org/ns/sh*/sa/web", "*"} {
		list = append(list, refusal{"AuthorizationPolicy", from(fmt.Sprintf("{identities: [%q]}", id)), "identities[0]"})
	}
	for _, account := range []string{"*", "a/b/c", "", "A", "a_b", "/a", "a/", "a..b", "x-/a", strings.Repeat("a", 64) + "/b"} {
		list = append(list, refusal{"AuthorizationPolicy", from(fmt.Sprintf("{serviceAccounts: [%q]}", account)), "serviceAccounts[0]"})
	}
	for _, name := range []string{"", "*", "sh*"} {
		for _, field := range []string{"namespaces", "notNamespaces"} {
			list = append(list, refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q]}", field, name)), field + "[0]"})
		}
	}
	for _, field := range []string{"identities", "notIdentities", "serviceAccounts", "namespaces", "notNamespaces", "ipBlocks", "notIpBlocks"} {
		list = append(list, refusal{"AuthorizationPolicy", from("{" + field + ": []}"), field})
	}
	for _, block := range []string{"10.1.2.3", "10.1.2.3/16", "fd00::1/64", "::ffff:10.0.0.0/104", "everywhere", "10.0.0.0/33", "10.0.0/8"} {
		list = append(list, refusal{"Mesh", fmt.Sprintf("{trustDomain: x, clusterRanges: [%q]}", block), "clusterRanges[0]"})
		for _, field := range []string{"ipBlocks", "notIpBlocks"} {
			list = append(list, refusal{"AuthorizationPolicy", from(fmt.Sprintf("{%s: [%q]}", field, block)), field + "[0]"})
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
		list = append(list, refusal{"AuthorizationPolicy", `{rules: [{to: [{` + entry + `}]}]}`, field})
	}
	for _, address := range []string{"10.1.0", "127.0.0.1", "::1", "::ffff:10.1.0.9", "fe80::1%eth0", "fe80::1", "0.0.0.0", "224.0.0.1", "ff0e::1", "10.1.0.1/32"} {
		list = append(list, refusal{"Workload", w(fmt.Sprintf("addresses: [%q]", address)), "addresses[0]"})
	}
	for _, port := range []int{15001, 15006, 15008, 15009, 15053} {
		list = append(list, refusal{"Workload", w(fmt.Sprintf("addresses: [10.1.0.1], probePorts: [%d]", port)), "probePorts"})
	}
	for _, path := range []string{"../web", "web", "/run/../web", "/run//web", "/run/./web", "/run/web/"} {
		list = append(list, refusal{"Workload", fmt.Sprintf("{node: n1, addresses: [10.1.0.1], networkNamespace: %q}", path), "networkNamespace"})
	}
	for _, kind := range []string{"PeerAuthentication", "AuthorizationPolicy"} {
		for _, labels := range []string{`"a/b/c": x`, `"": x`, `"-a": x`, `"Up.example/a": x`, `"a": "?"`, `"a": "-x"`, `"a": ` + strings.Repeat("x", 64), `"` + strings.Repeat("x", 64) + `": x`} {
			spec := map[string]string{"PeerAuthentication": "mode: STRICT, ", "AuthorizationPolicy": ""}[kind]
			list = append(list, refusal{kind, "{" + spec + "selector: {matchLabels: {" + labels + "}}}", "matchLabels"})
		}
	}
	return append(append(list, foreign()...), slips()...)
}

// What internal/kube refuses, an API server refuses as well, about the same
// field: a mistake is said to whoever makes it, when they make it.
func TestRefusedByBoth(t *testing.T) {
	all := definitions(t)
	for _, c := range refusals() {
		var said []string
		for _, err := range all[c.kind].refuse(parse(t, object(c.kind, c.spec)), nil) {
			said = append(said, err.Error())
		}
		if len(said) == 0 || !strings.Contains(strings.Join(said, "\n"), c.field) {
			t.Errorf("%s %s: an API server says %q, want a refusal of %s", c.kind, c.spec, said, c.field)
		}
		if problems := compile(t, c.kind, c.spec); len(problems) == 0 {
			t.Errorf("%s %s: internal/kube takes it", c.kind, c.spec)
		}
	}
}

// Whether networkNamespace is needed is said by a label, which rules do not see, and whether
// a path is in the form in which paths are compared by no pattern; these are the only things
// about a single object that internal/kube refuses and schemas do not.
func TestBeyondSchemas(t *testing.T) {
	all := definitions(t)
	for _, path := range []string{"/a/../b", "/a/./b", "/%61", "*/../b", "/a%2Fb", "/a//b", "/a;b"} {
		spec := fmt.Sprintf(`{rules: [{to: [{paths: [%q]}]}]}`, path)
		if errs := all["AuthorizationPolicy"].refuse(parse(t, object("AuthorizationPolicy", spec)), nil); len(errs) > 0 {
			t.Errorf("a schema can say it after all, so say it there: %v", errs)
		}
		problems := compile(t, "AuthorizationPolicy", spec)
		if len(problems) != 1 || problems[0].Field != "spec.rules[0].to[0].paths[0]" {
			t.Errorf("%s: internal/kube says %v", spec, problems)
		}
	}
	spec := `{node: n1, addresses: [10.1.0.1]}`
	if errs := all["Workload"].refuse(parse(t, object("Workload", spec)), nil); len(errs) > 0 {
		t.Errorf("a schema can say it after all, so say it there: %v", errs)
	}
	problems := compile(t, "Workload", spec)
	if len(problems) != 1 || problems[0].Field != "spec.networkNamespace" {
		t.Errorf("internal/kube says %v", problems)
	}
}

func rulesOfMesh() []string {
	return []string{"there is one Mesh, and its name is default", "the trust domain cannot be changed"}
}

func TestRulesOfMesh(t *testing.T) {
	all := definitions(t)
	named := parse(t, object("Mesh", goodMesh))
	named["metadata"].(map[string]any)["name"] = "second"
	if errs := all["Mesh"].refuse(named, nil); len(errs) != 1 || !strings.Contains(errs[0].Error(), rulesOfMesh()[0]) {
		t.Errorf("a second mesh: %v", errs)
	}
	old, changed := parse(t, object("Mesh", goodMesh)), parse(t, object("Mesh", strings.Replace(goodMesh, "example.org", "example.net", 1)))
	if errs := all["Mesh"].refuse(changed, old); len(errs) != 1 || !strings.Contains(errs[0].Error(), rulesOfMesh()[1]) {
		t.Errorf("another trust domain: %v", errs)
	}
	if errs := all["Mesh"].refuse(old, parse(t, object("Mesh", goodMesh))); len(errs) > 0 {
		t.Errorf("the same mesh again: %v", errs)
	}
}

// Every rule and pattern of the schemas has a refusal above that it makes.
func TestEveryRuleRefuses(t *testing.T) {
	all := definitions(t)
	said := map[string]string{}
	for _, c := range refusals() {
		for _, err := range all[c.kind].refuse(parse(t, object(c.kind, c.spec)), nil) {
			said[c.kind] += err.Error() + "\n"
		}
	}
	for kind, d := range all {
		visit(d.structural, func(s *schema.Structural) {
			for _, rule := range s.XValidations {
				if !strings.Contains(said[kind], rule.Message) && !slices.Contains(rulesOfMesh(), rule.Message) {
					t.Errorf("%s: nothing is refused by %s", kind, rule.Rule)
				}
			}
			if s.ValueValidation != nil && !strings.Contains(said[kind], s.ValueValidation.Pattern) {
				t.Errorf("%s: nothing is refused by the pattern %s", kind, s.ValueValidation.Pattern)
			}
		})
	}
}

func visit(s *schema.Structural, show func(*schema.Structural)) {
	show(s)
	if s.Items != nil {
		visit(s.Items, show)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		visit(s.AdditionalProperties.Structural, show)
	}
	for name := range s.Properties {
		if name == "status" {
			continue // written by the operator; its patterns are Kubernetes' own
		}
		property := s.Properties[name]
		visit(&property, show)
	}
}
