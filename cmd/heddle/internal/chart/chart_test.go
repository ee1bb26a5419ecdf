package chart

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const root = "../../../../manifests"

func render(t *testing.T, settings ...string) []*unstructured.Unstructured {
	t.Helper()
	values, err := Values(nil, append([]string{"namespace.create=true"}, settings...))
	if err != nil {
		t.Fatal(err)
	}
	definitions, files, err := Render(Options{Values: values})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := Objects(append(definitions, files...)...)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// one returns the only object of a kind and name, as its own type.
func one[T any](t *testing.T, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			return typed[T](t, o)
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

func typed[T any](t *testing.T, o *unstructured.Unstructured) *T {
	t.Helper()
	text, err := yaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	out := new(T)
	if err := yaml.UnmarshalStrict(text, out); err != nil {
		t.Errorf("%s %s has a field that its kind has not: %v", o.GetKind(), o.GetName(), err)
	}
	return out
}

// What is committed as plain YAML is what the chart says; no file is left over.
func TestPlainIsTheChart(t *testing.T) {
	_, files, err := Render(Options{Values: map[string]any{"namespace": map[string]any{"create": true}}})
	if err != nil {
		t.Fatal(err)
	}
	committed, err := filepath.Glob(root + "/plain/*.yaml")
	if err != nil || len(committed) != len(files) {
		t.Errorf("plain has %v, %v; the chart has %d files", committed, err, len(files))
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(root, "plain", file.Name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(string(text), string(file.Text)) {
			t.Errorf("plain/%s is not current: run `make generate`", file.Name)
		}
	}
}

// Every field of every object is one that its kind has, and every object that has
// a namespace is in Heddle's.
func TestObjectsAreOfTheirKinds(t *testing.T) {
	check := map[string]func(*unstructured.Unstructured){
		"Namespace":                func(o *unstructured.Unstructured) { typed[corev1.Namespace](t, o) },
		"CustomResourceDefinition": func(o *unstructured.Unstructured) { typed[apiextensionsv1.CustomResourceDefinition](t, o) },
		"ServiceAccount":           func(o *unstructured.Unstructured) { typed[corev1.ServiceAccount](t, o) },
		"ClusterRole":              func(o *unstructured.Unstructured) { typed[rbacv1.ClusterRole](t, o) },
		"ClusterRoleBinding":       func(o *unstructured.Unstructured) { typed[rbacv1.ClusterRoleBinding](t, o) },
		"Role":                     func(o *unstructured.Unstructured) { typed[rbacv1.Role](t, o) },
		"RoleBinding":              func(o *unstructured.Unstructured) { typed[rbacv1.RoleBinding](t, o) },
		"Mesh":                     func(o *unstructured.Unstructured) { typed[v1alpha1.Mesh](t, o) },
		"Service":                  func(o *unstructured.Unstructured) { typed[corev1.Service](t, o) },
		"PodDisruptionBudget":      func(o *unstructured.Unstructured) { typed[policyv1.PodDisruptionBudget](t, o) },
		"Deployment":               func(o *unstructured.Unstructured) { typed[appsv1.Deployment](t, o) },
		"DaemonSet":                func(o *unstructured.Unstructured) { typed[appsv1.DaemonSet](t, o) },
	}
	objects := render(t, "agent.seLinuxType=spc_t", "image.pullSecrets[0].name=r", "operator.nodeSelector.a=b", "operator.tolerations[0].operator=Exists",
		"agent.nodeSelector.a=b", "agent.podAnnotations.a=b", "operator.podAnnotations.a=b")
	last := -1
	for _, o := range objects {
		if check[o.GetKind()] == nil {
			t.Fatalf("a %s, which this test does not know", o.GetKind())
		}
		check[o.GetKind()](o)
		if ns := o.GetNamespace(); ns != "" && ns != Namespace {
			t.Errorf("%s %s is in namespace %s", o.GetKind(), o.GetName(), ns)
		}
		if by := o.GetLabels()["app.kubernetes.io/managed-by"]; by != Service && o.GetKind() != "CustomResourceDefinition" {
			t.Errorf("%s %s is managed by %q", o.GetKind(), o.GetName(), by)
		}
		if rank(o) < last {
			t.Errorf("%s %s comes too late", o.GetKind(), o.GetName())
		}
		last = rank(o)
	}
}

// TestTraces: where spans go is told to the operator, which runs the waypoints.
func TestTraces(t *testing.T) {
	env := func(settings ...string) (got []string) {
		for _, v := range one[appsv1.Deployment](t, render(t, settings...), "Deployment", "heddle-operator").Spec.Template.Spec.Containers[0].Env {
			if strings.HasPrefix(v.Name, "HEDDLE_WAYPOINT_TRACE") {
				got = append(got, v.Name+"="+v.Value)
			}
		}
		return got
	}
	if got := env(); len(got) > 0 {
		t.Errorf("unasked: %q", got)
	}
	got := env("waypoint.traces.endpoint=http://collector.telemetry:4317", `waypoint.traces.sample=/healthz=0\,0.1`)
	if strings.Join(got, " ") != "HEDDLE_WAYPOINT_TRACE_ENDPOINT=http://collector.telemetry:4317 HEDDLE_WAYPOINT_TRACE_SAMPLE=/healthz=0,0.1" {
		t.Errorf("%q", got)
	}
	values, err := Values(nil, []string{"waypoint.traces.endpoint=collector:4317"})
	if err == nil {
		_, _, err = Render(Options{Values: values})
	}
	if err == nil || !strings.Contains(err.Error(), "endpoint") {
		t.Errorf("an endpoint that is none: %v", err)
	}
}

// TestTuned: so are the access log and the bounds of waypoints.
func TestTuned(t *testing.T) {
	env := func(settings ...string) (got []string) {
		for _, v := range one[appsv1.Deployment](t, render(t, settings...), "Deployment", "heddle-operator").Spec.Template.Spec.Containers[0].Env {
			if strings.HasPrefix(v.Name, "HEDDLE_WAYPOINT_ACCESS") || strings.HasPrefix(v.Name, "HEDDLE_WAYPOINT_BOUNDS") {
				got = append(got, v.Name+"="+v.Value)
			}
		}
		return got
	}
	if got := env(); len(got) > 0 {
		t.Errorf("unasked: %q", got)
	}
	got := env("waypoint.accessLog.share=0.01", "waypoint.accessLog.mask={query,path}", "waypoint.bounds.stall-timeout=2m", "waypoint.bounds.max-requests=20000", "waypoint.bounds.max-body=10000000")
	if strings.Join(got, " ") != "HEDDLE_WAYPOINT_ACCESS_LOG=0.01 HEDDLE_WAYPOINT_ACCESS_LOG_MASK=query,path HEDDLE_WAYPOINT_BOUNDS=max-body=10000000,max-requests=20000,stall-timeout=2m" {
		t.Errorf("%q", got)
	}
	for setting, says := range map[string]string{"waypoint.accessLog.share=2": "share", "waypoint.accessLog.mask={a b}": "mask", "waypoint.bounds.stall-timeout=soon": "bounds"} {
		values, err := Values(nil, []string{setting})
		if err == nil {
			_, _, err = Render(Options{Values: values})
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

func TestAgent(t *testing.T) {
	agent := one[appsv1.DaemonSet](t, render(t), "DaemonSet", "heddle-agent")
	update := agent.Spec.UpdateStrategy.RollingUpdate
	if update == nil || update.MaxSurge.IntValue() != 1 || update.MaxUnavailable.IntValue() != 0 {
		t.Errorf("an upgrade does not start the new agent beside the old one: %v", update)
	}
	pod := agent.Spec.Template.Spec
	for _, c := range pod.Containers {
		if len(c.Ports) > 0 {
			t.Errorf("container %s declares ports %v: no second agent fits beside it", c.Name, c.Ports)
		}
		s := c.SecurityContext
		if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("container %s has more than the capabilities that are listed: %+v", c.Name, s)
		}
		for _, mount := range c.VolumeMounts {
			if mount.MountPropagation != nil && *mount.MountPropagation == corev1.MountPropagationBidirectional {
				t.Errorf("mount %s would need a privileged container", mount.Name)
			}
		}
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || *pod.EnableServiceLinks || !pod.HostNetwork {
		t.Error("the agent gets a token for the API server, service links, or a network of its own")
	}
	for _, volume := range pod.Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if source.ServiceAccountToken == nil || source.ServiceAccountToken.Audience != "heddle-operator" {
				t.Errorf("volume %s: %+v", volume.Name, source)
			}
		}
	}
}

func TestOperator(t *testing.T) {
	objects := render(t)
	operator := one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator")
	pod := operator.Spec.Template.Spec
	if *operator.Spec.Replicas < 2 || pod.SecurityContext == nil || !*pod.SecurityContext.RunAsNonRoot || pod.HostNetwork || pod.HostPID || *pod.EnableServiceLinks {
		t.Errorf("replicas %d, security %+v", *operator.Spec.Replicas, pod.SecurityContext)
	}
	for _, volume := range pod.Volumes {
		if volume.HostPath != nil {
			t.Errorf("volume %s is the host's", volume.Name)
		}
	}
	s := pod.Containers[0].SecurityContext
	if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Add) > 0 || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("security of the container: %+v", s)
	}
	budget := one[policyv1.PodDisruptionBudget](t, objects, "PodDisruptionBudget", "heddle-operator")
	service := one[corev1.Service](t, objects, "Service", "heddle-operator")
	for name, selector := range map[string]map[string]string{"budget": budget.Spec.Selector.MatchLabels, "service": service.Spec.Selector, "deployment": operator.Spec.Selector.MatchLabels} {
		for key, value := range selector {
			if operator.Spec.Template.Labels[key] != value {
				t.Errorf("the %s's selector does not pick the operator: %s=%s", name, key, value)
			}
		}
	}
}

// operatorAsUser is the operator's service account as a cluster-wide binding names it.
func operatorAsUser(namespace string) rbacv1.Subject {
	return rbacv1.Subject{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: "system:serviceaccount:" + namespace + ":heddle-operator"}
}

// TestASecondTakesNothingFromTheFirst: what belongs to the whole cluster has another name where
// the chart is rendered for another namespace; and kustomize's `namespace`, which cannot give it
// one, leaves it as it is, so that applying it changes nothing.
func TestASecondTakesNothingFromTheFirst(t *testing.T) {
	first := map[string]bool{}
	bindings := 0
	for _, o := range render(t) {
		if o.GetNamespace() != "" || o.GetKind() == "CustomResourceDefinition" || o.GetKind() == "Mesh" { // of these a cluster has one
			continue
		}
		first[o.GetKind()+" "+o.GetName()] = true
		if o.GetKind() != "ClusterRoleBinding" {
			continue
		}
		bindings++
		binding := typed[rbacv1.ClusterRoleBinding](t, o)
		if binding.Name != "heddle-operator" || len(binding.Subjects) != 1 || binding.Subjects[0] != operatorAsUser(Namespace) {
			t.Errorf("%s is of %v: one of a service account is another's with another namespace", binding.Name, binding.Subjects)
		}
	}
	_, files, err := Render(Options{Namespace: "second", Values: map[string]any{"namespace": map[string]any{"create": true}}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Objects(files...)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range second {
		if o.GetNamespace() == "" && first[o.GetKind()+" "+o.GetName()] {
			t.Errorf("both have %s %s", o.GetKind(), o.GetName())
		}
	}
	binding := one[rbacv1.ClusterRoleBinding](t, second, "ClusterRoleBinding", "heddle-operator-second")
	if bindings != 1 || len(first) != 3 || binding.RoleRef.Name != one[rbacv1.ClusterRole](t, second, "ClusterRole", "heddle-operator-second").Name || binding.Subjects[0] != operatorAsUser("second") {
		t.Errorf("%v; the second binds %s to %v", first, binding.RoleRef.Name, binding.Subjects)
	}
}

// The agent has no rights; the operator's have no wildcard, and each rule says in
// a comment what each of its verbs is for.
func TestRights(t *testing.T) {
	objects := render(t)
	var rules []rbacv1.PolicyRule
	for _, o := range objects {
		var subjects []rbacv1.Subject
		switch o.GetKind() {
		case "ClusterRole":
			rules = append(rules, typed[rbacv1.ClusterRole](t, o).Rules...)
		case "Role":
			for _, rule := range typed[rbacv1.Role](t, o).Rules {
				if len(rule.ResourceNames) == 0 && !slices.Equal(rule.Verbs, []string{"create"}) {
					t.Errorf("in its own namespace the operator needs single objects only: %v", rule)
				}
				rules = append(rules, rule)
			}
		case "ClusterRoleBinding":
			subjects = typed[rbacv1.ClusterRoleBinding](t, o).Subjects
		case "RoleBinding":
			subjects = typed[rbacv1.RoleBinding](t, o).Subjects
		}
		for _, s := range subjects {
			if s != (rbacv1.Subject{Kind: "ServiceAccount", Name: "heddle-operator", Namespace: Namespace}) && s != operatorAsUser(Namespace) {
				t.Errorf("%s %s gives rights to %s %s", o.GetKind(), o.GetName(), s.Kind, s.Name)
			}
		}
	}
	if len(rules) < 9 {
		t.Errorf("%d rules", len(rules))
	}
	for _, rule := range rules {
		for _, word := range slices.Concat(rule.Verbs, rule.Resources, rule.APIGroups) {
			if strings.Contains(word, "*") {
				t.Errorf("a wildcard in %v", rule)
			}
		}
	}
	text, err := os.ReadFile(root + "/plain/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	explained := regexp.MustCompile(`((?:  # .*\n)+)  - apiGroups: .*\n(?:    .*\n)*?    verbs: \[(.*)\]`).FindAllStringSubmatch(string(text), -1)
	if len(explained) != len(rules) {
		t.Errorf("%d of %d rules have a comment before them", len(explained), len(rules))
	}
	for _, rule := range explained {
		for verb := range strings.SplitSeq(rule[2], ", ") {
			if !strings.Contains(rule[1], verb) {
				t.Errorf("%q is not explained in\n%s", verb, rule[1])
			}
		}
	}
}

// unnamed are the rights to single objects that no name bounds, each with the reason.
func unnamed() map[string]string {
	const gateways = "it has the name of a Gateway, which people choose, in that one's namespace"
	return map[string]string{
		"get serviceaccounts": gateways, "patch serviceaccounts": gateways, "get services": gateways, "patch services": gateways,
		"get apps/deployments": gateways, "patch apps/deployments": gateways, "get policy/poddisruptionbudgets": gateways, "patch policy/poddisruptionbudgets": gateways,
		"get autoscaling/horizontalpodautoscalers": gateways, "patch autoscaling/horizontalpodautoscalers": gateways, "delete autoscaling/horizontalpodautoscalers": gateways,
		"patch gateway.networking.k8s.io/gatewayclasses/status": "any class may name Heddle's controller",
		"patch gateway.networking.k8s.io/gateways/status":       "people choose the name",
		"patch gateway.networking.k8s.io/httproutes/status":     "people choose the name",
		"patch gateway.networking.k8s.io/grpcroutes/status":     "people choose the name",
		"patch gateway.networking.k8s.io/tlsroutes/status":      "people choose the name",
		"patch gateway.networking.k8s.io/tcproutes/status":      "people choose the name",
		"patch heddle.dev/workloads/status":                     "people choose the name",
		"patch heddle.dev/peerauthentications/status":           "people choose the name",
		"patch heddle.dev/authorizationpolicies/status":         "people choose the name",
		"patch nodes": "nodes come and go, under names of the cloud's; only with operator.startupTaint",
	}
}

// TestRightsAreByName: a rule about single objects names them, or there is a reason why it
// cannot; and what has names worth keeping is listed by nobody.
func TestRightsAreByName(t *testing.T) {
	single := []string{"get", "update", "patch", "delete", "deletecollection"}
	reasons, used := unnamed(), map[string]bool{}
	named := 0
	for _, o := range render(t, "operator.startupTaint=true", "operator.bundleEndpoint.enabled=true", "alerts.create=true") {
		var rules []rbacv1.PolicyRule
		switch o.GetKind() {
		case "ClusterRole":
			rules = typed[rbacv1.ClusterRole](t, o).Rules
		case "Role":
			rules = typed[rbacv1.Role](t, o).Rules
		}
		for _, rule := range rules {
			if len(rule.ResourceNames) > 0 {
				named++
				if slices.Contains(rule.Verbs, "create") || slices.Contains(rule.Verbs, "deletecollection") {
					t.Errorf("names do nothing for these verbs: %v", rule)
				}
				continue
			}
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					if (resource == "secrets" || resource == "configmaps") && verb != "create" {
						t.Errorf("it may %s all %s", verb, resource)
					}
					if key := verb + " " + strings.TrimPrefix(rule.APIGroups[0]+"/"+resource, "/"); slices.Contains(single, verb) {
						if used[key] = true; reasons[key] == "" {
							t.Errorf("%s: by no name, and for no reason: give the rule resourceNames, or say here why it cannot have any", key)
						}
					}
				}
			}
		}
	}
	for key := range reasons {
		if !used[key] {
			t.Errorf("there is no rule for %q any more: take its reason out", key)
		}
	}
	if named < 6 {
		t.Errorf("%d rules have names", named)
	}
}

// TestUDPByIdentity: off unless it is asked for, by a flag that the operator has, also under the
// name of the version before.
func TestUDPByIdentity(t *testing.T) {
	for value, wanted := range map[string]bool{"replicas=2": false, "udpByIdentity=false": false, "udpByIdentity=true": true, "experimentalUDP=true": true, "experimentalUDP=false": false} {
		pod := one[appsv1.Deployment](t, render(t, "operator."+value), "Deployment", "heddle-operator").Spec.Template.Spec
		if flag := slices.Contains(pod.Containers[0].Args, "--udp-by-identity"); flag != wanted {
			t.Errorf("operator.%s: flag %v", value, flag)
		}
	}
	source, err := os.ReadFile("../../../heddle-operator/main.go")
	if err != nil || !known(string(source), "--udp-by-identity") {
		t.Errorf("the operator has no such flag: %v", err)
	}
}

// TestStartupTaint: the right to patch nodes, the flag that uses it and the toleration of
// the taint are there together, or not at all.
func TestStartupTaint(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		objects := render(t, fmt.Sprintf("operator.startupTaint=%v", wanted), "operator.tolerations[0].key=x")
		rules := one[rbacv1.ClusterRole](t, objects, "ClusterRole", "heddle-operator").Rules
		right := slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool {
			return slices.Contains(r.Resources, "nodes") && slices.Contains(r.Verbs, "patch")
		})
		pod := one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator").Spec.Template.Spec
		flag := slices.Contains(pod.Containers[0].Args, "--startup-taint")
		node := corev1.Taint{Key: v1alpha1.TaintAgentNotReady, Value: "true", Effect: corev1.TaintEffectNoExecute}
		tolerates := slices.ContainsFunc(pod.Tolerations, func(has corev1.Toleration) bool {
			return has.Key == node.Key && has.Operator == corev1.TolerationOpExists && has.Effect == ""
		})
		if right != wanted || flag != wanted || tolerates != wanted || pod.Tolerations[0].Key != "x" {
			t.Errorf("wanted %v: right %v, flag %v, tolerations %v", wanted, right, flag, pod.Tolerations)
		}
	}
	source, err := os.ReadFile("../../../heddle-operator/main.go")
	if err != nil || !known(string(source), "--startup-taint") {
		t.Errorf("the operator has no such flag: %v", err)
	}
}

// TestSPIRE: the flags, and the folder that has the agent's socket, are there together or
// not at all.
func TestSPIRE(t *testing.T) {
	for _, server := range []string{"", "spire-server.spire:8081"} {
		objects := render(t, "operator.spire.server="+server, "operator.spire.agentSocket=/run/other/agent.sock")
		pod := one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator").Spec.Template.Spec
		flags := slices.Contains(pod.Containers[0].Args, "--spire-server="+server) && slices.Contains(pod.Containers[0].Args, "--spire-workload-api=unix:///run/spire/agent.sock")
		folder := slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
			return v.Name == "spire" && v.HostPath != nil && v.HostPath.Path == "/run/other" &&
				*v.HostPath.Type == corev1.HostPathDirectoryOrCreate // a pod starts before the agent of a new node
		})
		mounted := slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "spire" && m.MountPath == "/run/spire" && m.ReadOnly
		})
		if wanted := server != ""; flags != wanted || folder != wanted || mounted != wanted {
			t.Errorf("server %q: flags %v, folder %v, mounted %v", server, flags, folder, mounted)
		}
	}
	source, err := os.ReadFile("../../../heddle-operator/main.go")
	if err != nil || !known(string(source), "--spire-server") || !known(string(source), "--spire-workload-api") {
		t.Errorf("the operator has no such flags: %v", err)
	}
}

// Each value has its place in the schema, and the other way round; each is
// documented, by a comment at it or at what it is in.
func TestValuesAndSchemaAgree(t *testing.T) {
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := yaml.Unmarshal(c.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	compareKeys(t, "", c.Values, schema)
}

func compareKeys(t *testing.T, path string, values, schema map[string]any) {
	t.Helper()
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		return // a table whose keys are the user's
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%s takes keys that nobody knows", path)
	}
	for key, value := range values {
		property, known := properties[key].(map[string]any)
		if !known {
			t.Errorf("values.schema.json lacks %s.%s", path, key)
			continue
		}
		if table, ok := value.(map[string]any); ok {
			compareKeys(t, path+"."+key, table, property)
		}
	}
	for key := range properties {
		if _, given := values[key]; !given && key != "global" {
			t.Errorf("values.yaml lacks %s.%s", path, key)
		}
	}
}

func TestBadValuesAreNamed(t *testing.T) {
	for setting, says := range map[string]string{
		"image.tga=v1":                        "tga",
		"image.registry=UPPER":                "/image/registry",
		"image.digests.agent=sha256:12":       "/image/digests/agent",
		"image.pullPolicy=Sometimes":          "/image/pullPolicy",
		"mesh.trustDomain=Example.ORG":        "/mesh/trustDomain",
		"mesh.clusterRanges={all}":            "/mesh/clusterRanges/0",
		"mesh.clusterRanges={}":               "/mesh/clusterRanges",
		"mesh.peerAuthentication=DISABLE":     "/mesh/peerAuthentication",
		"mesh.egress=LOG":                     "/mesh/egress",
		"mesh.dns=capture":                    "/mesh/dns",
		"alerts.create=maybe":                 "/alerts/create",
		"operator.replicas=0":                 "/operator/replicas",
		"operator.logLevel=loud":              "/operator/logLevel",
		"operator.certificateTTL=1 day":       "/operator/certificateTTL",
		"agent.maxSurge=0":                    "/agent/maxSurge",
		"agent.drain=soon":                    "/agent/drain",
		"agent.passNamespaces={a b}":          "/agent/passNamespaces/0",
		"agent.kubeletCgroup=kubelet.service": "/agent/kubeletCgroup",
		"agent.criSocket=run/cri.sock":        "/agent/criSocket",
		"agent.resources.limit.memory=1Gi":    "limit",
		"nothing=1":                           "nothing",
		"image.pullSecrets[0].nme=x":          "/image/pullSecrets/0",
		"mesh.trustDomain=Web":                "/mesh/trustDomain",
		"mesh.clusterRanges={999.1.1.1/99}":   "mesh.clusterRanges[0]: 999.1.1.1/99",
		"operator.jwtTTL=2h":                  "operator.jwtTTL: 2h: validity of JWT-SVIDs: 2h0m0s, 1m0s to 1h0m0s are possible",
		"waypoint.traces.sample=some":         "waypoint.traces.sample",
		"waypoint.traces.endpoint=ftp://a:1":  "/waypoint/traces/endpoint",
		"waypoint.bounds.nonsense=1":          "waypoint.bounds.nonsense",
		"waypoint.bounds.max-requests=1h":     "waypoint.bounds.max-requests",
	} {
		values, err := Values(nil, []string{setting})
		if err != nil {
			t.Errorf("%s: %v", setting, err)
			continue
		}
		if _, _, err := Render(Options{Values: values}); !errors.Is(err, ErrValues) || !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("%s: got %v, want a word about %s", setting, err, says)
		}
	}
}

// TestAlerts: the object has all of the rule file's groups, as they are there; what
// they say is e2e/alerts'.
func TestAlerts(t *testing.T) {
	if Alerts(render(t)) != nil {
		t.Error("it is made unasked: not every cluster knows the kind")
	}
	if Alerts(render(t, "alerts=null")) != nil { // helm upgrade --reuse-values, from a chart without them
		t.Error("it is made of values that say nothing")
	}
	rule := Alerts(render(t, "alerts.create=true", "alerts.labels.release=prometheus"))
	if rule == nil {
		t.Fatal("there is no PrometheusRule")
	}
	if rule.GetAPIVersion() != "monitoring.coreos.com/v1" || rule.GetLabels()["release"] != "prometheus" || rule.GetNamespace() != Namespace {
		t.Errorf("%s in %s, labels %v", rule.GetAPIVersion(), rule.GetNamespace(), rule.GetLabels())
	}
	text, err := os.ReadFile(root + "/heddle/rules/heddle.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if spec := rule.Object["spec"]; !reflect.DeepEqual(spec, any(file)) || len(file["groups"].([]any)) < 3 {
		t.Errorf("the object says %v\nthe file says %v", spec, file)
	}
}

// TestAlertGoesByValidity: a renewal is late when a quarter of the validity is left.
func TestAlertGoesByValidity(t *testing.T) {
	for ttl, bound := range map[string]string{"24h": "21600", "2h": "1800", "1h30m": "1350", "48h": "43200"} {
		text := fmt.Sprint(Alerts(render(t, "alerts.create=true", "operator.certificateTTL="+ttl)).Object)
		if want := "expr:heddle_certificate_expiry_seconds < " + bound + " "; !strings.Contains(text, want) {
			t.Errorf("certificates live for %s: want %q in %s", ttl, want, text)
		}
	}
}

// TestAnAgentHasTimeToDrain: kubelet kills it after the grace period.
func TestAnAgentHasTimeToDrain(t *testing.T) {
	for drain, grace := range map[string]string{"30s": "90", "1m30s": "150", "0.5h": "1860", "1500ms": "62", "2h": "7260"} {
		values, err := Values(nil, []string{"agent.drain=" + drain, "agent.passNamespaces={cni,storage}"})
		if err != nil {
			t.Fatal(err)
		}
		_, files, err := Render(Options{Values: values})
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, f := range files {
			all += string(f.Text)
		}
		for _, want := range []string{"terminationGracePeriodSeconds: " + grace + "\n", "--drain=" + drain + "\n", "--cni-pass-namespaces=heddle-system,kube-system,cni,storage\n"} {
			if !strings.Contains(all, want) {
				t.Errorf("drain %s: %q is not in the chart's", drain, want)
			}
		}
	}
}

func TestValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("image: {tag: v1, registry: localhost}\noperator: {replicas: 3}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	values, err := Values([]string{file}, []string{"image.tag=v2"})
	if err != nil {
		t.Fatal(err)
	}
	_, files, err := Render(Options{Values: values, Version: "9.9.9", Namespace: "elsewhere"})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := Objects(files...)
	if err != nil {
		t.Fatal(err)
	}
	operator := one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator")
	if image := operator.Spec.Template.Spec.Containers[0].Image; image != "localhost/heddle-operator:v2" || *operator.Spec.Replicas != 3 || operator.Namespace != "elsewhere" {
		t.Errorf("image %s, %d replicas, in %s", image, *operator.Spec.Replicas, operator.Namespace)
	}
	if version := operator.Labels["app.kubernetes.io/version"]; version != "9.9.9" {
		t.Errorf("version %s", version)
	}
	digest := "sha256:" + strings.Repeat("ab", 32)
	agent := one[appsv1.DaemonSet](t, render(t, "image.digests.agent="+digest), "DaemonSet", "heddle-agent")
	if image := agent.Spec.Template.Spec.Containers[0].Image; !strings.HasSuffix(image, "/heddle-agent@"+digest) {
		t.Errorf("image %s", image)
	}
	for _, bad := range [][]string{{file + "x"}, {root}} {
		if _, err := Values(bad, nil); !errors.Is(err, ErrValues) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := Values(nil, []string{"image.tag"}); !errors.Is(err, ErrValues) || !strings.Contains(err.Error(), "NAME=VALUE") {
		t.Errorf("a setting without a value: %v", err)
	}
}

func TestOldClusterIsRefused(t *testing.T) {
	if _, _, err := Render(Options{KubeVersion: "v1.30.9"}); err == nil || !strings.Contains(err.Error(), "1.31") {
		t.Errorf("Kubernetes 1.30: %v", err)
	}
	if _, _, err := Render(Options{KubeVersion: "v1.31.0-eks-1"}); err != nil {
		t.Errorf("Kubernetes 1.31 of a vendor: %v", err)
	}
}

// The programs have the flags that the chart gives them, and the commands and
// flags of its probes and hooks.
func TestFlags(t *testing.T) {
	objects := render(t)
	containers := map[string]corev1.Container{
		"heddle-operator": one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator").Spec.Template.Spec.Containers[0],
		"heddle-agent":    one[appsv1.DaemonSet](t, objects, "DaemonSet", "heddle-agent").Spec.Template.Spec.Containers[0],
	}
	for program, container := range containers {
		source, err := os.ReadFile("../../../" + program + "/main.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, arg := range container.Args {
			if !known(string(source), arg) {
				t.Errorf("%s has no %s", program, arg)
			}
		}
		for _, command := range commands(container) {
			if command[0] != "/"+program {
				t.Errorf("%s: a probe or a hook runs %v, which its image has not", program, command)
			}
			for _, arg := range command[1:] {
				if !known(string(source), arg) {
					t.Errorf("%s has no %s, which a probe or a hook runs", program, arg)
				}
			}
		}
	}
}

// known reports whether a program's source has a flag or a command.
func known(source, arg string) bool {
	flag, isFlag := strings.CutPrefix(arg, "--")
	if !isFlag {
		return regexp.MustCompile(`Use:\s+"` + regexp.QuoteMeta(arg) + `\b`).MatchString(source)
	}
	flag, _, _ = strings.Cut(flag, "=")
	return strings.Contains(source, `, "`+flag+`", `)
}

// commands are what a container's probes and hooks run.
func commands(c corev1.Container) (all [][]string) {
	var runs []*corev1.ExecAction
	for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
		if probe != nil {
			runs = append(runs, probe.Exec)
		}
	}
	if c.Lifecycle != nil {
		for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PreStop, c.Lifecycle.PostStart} {
			if hook != nil {
				runs = append(runs, hook.Exec)
			}
		}
	}
	for _, run := range runs {
		if run != nil {
			all = append(all, run.Command)
		}
	}
	return all
}

func TestKnown(t *testing.T) {
	const source = `Use:   "ready --node NAME", ... flags.StringVar(&x, "node", "", "")`
	for arg, want := range map[string]bool{"ready": true, "--node=n": true, "--node": true, "read": false, "alive": false, "--nod": false} {
		if known(source, arg) != want {
			t.Errorf("%s: %v", arg, !want)
		}
	}
}

// TestFIPS: the value puts both programs into FIPS 140-3 mode, and has them refuse to
// run outside it; without, nothing of it is there.
func TestFIPS(t *testing.T) {
	for _, on := range []bool{false, true} {
		objects := render(t, fmt.Sprintf("fips140=%v", on))
		for program, env := range map[string][]corev1.EnvVar{
			"heddle-operator": one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator").Spec.Template.Spec.Containers[0].Env,
			"heddle-agent":    one[appsv1.DaemonSet](t, objects, "DaemonSet", "heddle-agent").Spec.Template.Spec.Containers[0].Env,
		} {
			for _, want := range []corev1.EnvVar{{Name: "GODEBUG", Value: "fips140=on"}, {Name: "HEDDLE_FIPS140", Value: "true"}} {
				if slices.Contains(env, want) != on {
					t.Errorf("fips140=%v: %s has %+v", on, program, env)
				}
			}
			source, err := os.ReadFile("../../../" + program + "/main.go")
			if err != nil || !known(string(source), "--fips140") {
				t.Errorf("%s has no --fips140: %v", program, err)
			}
		}
	}
}

// TestWaypointsCanBeLeftOut: what they are run from and the rights to run them are there together, or not at all; the operator
// can say on Gateways that it runs none.
func TestWaypointsCanBeLeftOut(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		objects := render(t, fmt.Sprintf("operator.waypoints.enabled=%v", wanted), "image.pullSecrets[0].name=a")
		can := map[string]bool{}
		for _, r := range one[rbacv1.ClusterRole](t, objects, "ClusterRole", "heddle-operator").Rules {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					can[verb+" "+resource] = true
				}
			}
		}
		for _, resource := range []string{"serviceaccounts", "services", "deployments", "poddisruptionbudgets", "horizontalpodautoscalers"} {
			for _, verb := range []string{"get", "create", "patch"} {
				if can[verb+" "+resource] != wanted {
					t.Errorf("waypoints %v: it may %s %s: %v", wanted, verb, resource, !wanted)
				}
			}
		}
		if can["delete horizontalpodautoscalers"] != wanted || !can["patch gateways/status"] || !can["patch gatewayclasses/status"] || !can["create gatewayclasses"] || !can["watch services"] {
			t.Errorf("waypoints %v: rights are %v", wanted, can)
		}
		env := one[appsv1.Deployment](t, objects, "Deployment", "heddle-operator").Spec.Template.Spec.Containers[0].Env
		if told := slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return strings.HasPrefix(e.Name, "HEDDLE_WAYPOINT_") }); told != wanted {
			t.Errorf("waypoints %v: the operator is told of their image: %v", wanted, told)
		}
	}
}

// TestWaypointImage: the operator is told what waypoints are run from, by variables of
// which one that knows no waypoints takes no notice.
func TestWaypointImage(t *testing.T) {
	source, err := os.ReadFile("../../../heddle-operator/main.go")
	if err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + strings.Repeat("ab", 32)
	for setting, want := range map[string]string{"image.tag=v2": "ghcr.io/heddle-mesh/heddle-waypoint:v2", "image.digests.waypoint=" + digest: "ghcr.io/heddle-mesh/heddle-waypoint@" + digest} {
		env := one[appsv1.Deployment](t, render(t, setting, "image.pullSecrets[0].name=a", "image.pullSecrets[1].name=b", "operator.waypoints.canaryImage=registry.example/next:1"), "Deployment", "heddle-operator").Spec.Template.Spec.Containers[0].Env
		for name, value := range map[string]string{"HEDDLE_WAYPOINT_IMAGE": want, "HEDDLE_WAYPOINT_PULL_POLICY": "IfNotPresent", "HEDDLE_WAYPOINT_PULL_SECRETS": "a,b",
			"HEDDLE_WAYPOINT_CANARY_IMAGE": "registry.example/next:1"} {
			if !slices.Contains(env, corev1.EnvVar{Name: name, Value: value}) {
				t.Errorf("%s: %s is not %s in %+v", setting, name, value, env)
			}
			if flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "HEDDLE_"), "_", "-")); !known(string(source), flag) {
				t.Errorf("heddle-operator has no %s", flag)
			}
		}
	}
}
