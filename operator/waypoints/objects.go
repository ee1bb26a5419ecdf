package waypoints

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/tune"
)

// Program is how waypoints are run: the same for all.
type Program struct {
	// Image is heddle-waypoint's, PullPolicy when it is fetched, and PullSecrets the names of
	// Secrets for that, which have to be in the waypoint's own namespace.
	Image string
	// Canary is the image that Gateways with v1alpha1.AnnotationCanary have tried; "" for none.
	Canary      string
	PullPolicy  corev1.PullPolicy
	PullSecrets []string
	// Operator is the host:port of the operators' Service, Audience what tokens for them are
	// for.
	Operator, Audience string
	// FIPS140 has them refuse to run outside FIPS 140-3 mode.
	FIPS140 bool
	// TraceEndpoint and TraceSample are for all whose Gateways do not say otherwise; see
	// v1alpha1.AnnotationTraceEndpoint.
	TraceEndpoint string
	TraceSample   []string
	// AccessLog, AccessLogMask and Bounds are so, too; see v1alpha1.AnnotationAccessLog and v1alpha1.AnnotationBounds. AccessLog
	// is "" where nothing is said, AccessLogMask empty.
	AccessLog             string
	AccessLogMask, Bounds []string
}

// Check says what is wrong with what is for all waypoints: none of them would start.
func (p *Program) Check() error {
	if p.TraceEndpoint != "" {
		if err := sample.CheckEndpoint(p.TraceEndpoint); err != nil {
			return fmt.Errorf("traces of waypoints: %w", err)
		}
	}
	if _, err := sample.Parse(p.TraceSample); err != nil {
		return fmt.Errorf("traces of waypoints: %w", err)
	}
	if p.AccessLog != "" {
		if err := tune.CheckAccess(p.AccessLog); err != nil {
			return fmt.Errorf("access log of waypoints: %w", err)
		}
	}
	if err := tune.CheckMask(p.AccessLogMask); err != nil {
		return fmt.Errorf("access log of waypoints: %w", err)
	}
	if _, err := tune.ParseBounds(p.Bounds); err != nil {
		return fmt.Errorf("bounds of waypoints: %w", err)
	}
	return nil
}

const (
	// labelGateway is GEP-1762's label of what belongs to a Gateway; it never changes.
	labelGateway = "gateway.networking.k8s.io/gateway-name"
	user         = 65532
	metricsPort  = 15020
	// drain is how long live connections may go on when a waypoint is told to end, where nobody says otherwise;
	// it is killed when it has not ended graceSeconds later.
	drain, graceSeconds = 30 * time.Second, 15
	tokenSeconds        = 3600
	// adminSocket is where heddle flows asks for requests.
	adminSocket = "/run/heddle/waypoint.sock"
	// canarySuffix follows the Gateway's name in that of the Deployment that tries an image.
	canarySuffix = "-canary"
)

// object is one of those that a waypoint consists of.
type object struct {
	resource schema.GroupVersionResource
	kind     string
	value    any
}

// objects are what a Gateway's waypoint consists of, in the order of applying. Roots are
// the certificates by which it knows the operator. replicas is how many there are now, for
// a waypoint that scales.
func objects(p *Program, g *gatewayv1.Gateway, s *settings, roots string, replicas int32) []object {
	w := &waypoint{p, g, s, roots}
	all := []object{
		{corev1.SchemeGroupVersion.WithResource("serviceaccounts"), "ServiceAccount", &corev1.ServiceAccount{ObjectMeta: w.meta(), AutomountServiceAccountToken: new(bool)}},
		{corev1.SchemeGroupVersion.WithResource("services"), "Service", w.service()},
		{policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"), "PodDisruptionBudget", w.budget()},
		{appsv1.SchemeGroupVersion.WithResource("deployments"), "Deployment", w.deployment(min(max(replicas, s.least), s.most))},
	}
	if p.tries(s) {
		all = append(all, w.canary(s.canary))
	}
	if s.scales() {
		all = append(all, object{autoscalers(), "HorizontalPodAutoscaler", w.autoscaler()})
	}
	return all
}

// tries reports whether a waypoint tries an image beside its own.
func (p *Program) tries(s *settings) bool { return p.Canary != "" && s.canary > 0 }

func autoscalers() schema.GroupVersionResource {
	return autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers")
}

// apply returns an object as it is applied: without a status, which is not ours.
func (o *object) apply() (*unstructured.Unstructured, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o.value)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.kind, err)
	}
	u := &unstructured.Unstructured{Object: fields}
	u.SetAPIVersion(o.resource.GroupVersion().String())
	u.SetKind(o.kind)
	delete(fields, "status")
	unstructured.RemoveNestedField(fields, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(fields, "spec", "template", "metadata", "creationTimestamp")
	return u, nil
}

// waypoint is what is made objects of.
type waypoint struct {
	*Program
	gateway *gatewayv1.Gateway
	*settings
	roots string
}

func (w *waypoint) selector() map[string]string {
	return map[string]string{labelGateway: w.gateway.Name}
}

func (w *waypoint) labels() map[string]string {
	labels := map[string]string{}
	for key, value := range infrastructure(w.gateway).Labels {
		labels[string(key)] = string(value)
	}
	for key, value := range map[string]string{labelGateway: w.gateway.Name, "app.kubernetes.io/name": "heddle", "app.kubernetes.io/part-of": "heddle",
		"app.kubernetes.io/component": "waypoint", "app.kubernetes.io/managed-by": "heddle-operator"} {
		labels[key] = value
	}
	return labels
}

func (w *waypoint) annotations() map[string]string {
	given := infrastructure(w.gateway).Annotations
	if len(given) == 0 {
		return nil
	}
	annotations := map[string]string{}
	for key, value := range given {
		annotations[string(key)] = string(value)
	}
	return annotations
}

// meta is what all of the objects have: the Gateway's name, and that they end with it.
func (w *waypoint) meta() metav1.ObjectMeta {
	yes := true
	return metav1.ObjectMeta{Namespace: w.gateway.Namespace, Name: w.gateway.Name, Labels: w.labels(), Annotations: w.annotations(), OwnerReferences: []metav1.OwnerReference{{
		APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: w.gateway.Name, UID: w.gateway.UID, Controller: &yes}}}
}

// service is what stands for the waypoint in the model. It has no waypoint itself, whatever
// its namespace says.
func (w *waypoint) service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: w.meta(), Spec: corev1.ServiceSpec{Selector: w.selector(), Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{
		{Name: "mesh", Port: mesh.WaypointPort, TargetPort: intstr.FromInt32(mesh.WaypointPort), Protocol: corev1.ProtocolTCP}}}}
	s.Labels[v1alpha1.LabelWaypoint] = v1alpha1.WaypointNone
	return s
}

func (w *waypoint) budget() *policyv1.PodDisruptionBudget {
	one, always := intstr.FromInt32(1), policyv1.AlwaysAllow
	return &policyv1.PodDisruptionBudget{ObjectMeta: w.meta(), Spec: policyv1.PodDisruptionBudgetSpec{
		MaxUnavailable: &one, UnhealthyPodEvictionPolicy: &always, Selector: &metav1.LabelSelector{MatchLabels: w.selector()}}}
}

func (w *waypoint) autoscaler() *autoscalingv2.HorizontalPodAutoscaler {
	at := int32(autoscaleAt)
	return &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: w.meta(), Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment", Name: w.gateway.Name},
		MinReplicas:    &w.least, MaxReplicas: w.most,
		Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &at}}}}}}
}

func (w *waypoint) deployment(replicas int32) *appsv1.Deployment {
	none, one, kept := intstr.FromInt32(0), intstr.FromInt32(1), int32(3)
	labels, annotations := w.labels(), w.annotations()
	labels[v1alpha1.LabelMesh] = v1alpha1.MeshEnabled
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[v1alpha1.AnnotationRoots] = w.roots
	return &appsv1.Deployment{ObjectMeta: w.meta(), Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, RevisionHistoryLimit: &kept, MinReadySeconds: 2,
		// A new replica takes requests before an old one goes.
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one}},
		Selector: &metav1.LabelSelector{MatchLabels: w.selector()},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, Spec: w.pod()},
	}}
}

// canary is a Deployment of the image that is tried, whose replicas are the waypoint's as all others are: of its Service,
// and with its identity. So many of them take as much of the requests.
func (w *waypoint) canary(replicas int32) object {
	d := w.deployment(replicas)
	d.Name += canarySuffix
	selector := w.selector()
	for _, labels := range []map[string]string{d.Labels, selector, d.Spec.Template.Labels} {
		labels[v1alpha1.LabelTrack] = v1alpha1.TrackCanary
	}
	d.Spec.Selector.MatchLabels = selector
	d.Spec.Template.Spec.Containers[0].Image = cmp.Or(w.Canary, w.Image)
	return object{appsv1.SchemeGroupVersion.WithResource("deployments"), "Deployment", d}
}

// pod is one replica. It fits the restricted level of Kubernetes' Pod Security Standards.
func (w *waypoint) pod() corev1.PodSpec {
	yes, no, as, grace := true, false, int64(user), w.grace()
	spec := corev1.PodSpec{
		ServiceAccountName: w.gateway.Name, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
		NodeSelector:    map[string]string{corev1.LabelOSStable: "linux"},
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &as, RunAsGroup: &as, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		// Preferred, not required: a cluster of one node is a cluster. Zones are an affinity, for the scheduler passes over
		// all constraints of this kind on a node that lacks the label of one, and many nodes are in no zone.
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{w.acrossNodes()},
		Affinity:                  &corev1.Affinity{PodAntiAffinity: w.acrossZones()},
		Containers:                []corev1.Container{w.container()},
		Volumes: []corev1.Volume{
			{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: w.Audience, ExpirationSeconds: ptr(int64(tokenSeconds)), Path: "token"}}}}}},
			// Of its own pod, as it may read nothing of another namespace: new roots are new pods.
			{Name: "roots", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "roots.pem", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['" + v1alpha1.AnnotationRoots + "']"}}}}}},
			{Name: "run", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("64Mi"))}}},
		},
	}
	for _, name := range w.PullSecrets {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return spec
}

func (w *waypoint) acrossNodes() corev1.TopologySpreadConstraint {
	return corev1.TopologySpreadConstraint{MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector: &metav1.LabelSelector{MatchLabels: w.selector()}, MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey}}
}

func (w *waypoint) acrossZones() *corev1.PodAntiAffinity {
	return &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: corev1.PodAffinityTerm{
		TopologyKey: corev1.LabelTopologyZone, LabelSelector: &metav1.LabelSelector{MatchLabels: w.selector()}, MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey}}}}}
}

func (w *waypoint) container() corev1.Container {
	no, yes := false, true
	probe := func(path string, period, failures int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("metrics")}}, PeriodSeconds: period, FailureThreshold: failures}
	}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	c := corev1.Container{
		Name: "waypoint", Image: w.Image, ImagePullPolicy: w.PullPolicy,
		Args: []string{
			"--waypoint=" + w.gateway.Namespace + "/" + w.gateway.Name, "--operator=" + w.Operator,
			"--token-file=/var/run/secrets/heddle/token", "--roots-file=/var/run/heddle/roots/roots.pem", "--state-dir=/run/heddle",
			fmt.Sprintf("--metrics=:%d", metricsPort), "--log-format=json",
		},
		Env:   []corev1.EnvVar{field("HEDDLE_REPLICA", "metadata.name")},
		Ports: []corev1.ContainerPort{{Name: "mesh", ContainerPort: mesh.WaypointPort}, {Name: "metrics", ContainerPort: metricsPort}},
		// Ready when it has its configuration: only then do agents send it requests.
		ReadinessProbe: probe("/readyz", 2, 2), LivenessProbe: probe("/healthz", 10, 6),
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
		},
		SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "token", MountPath: "/var/run/secrets/heddle", ReadOnly: true}, {Name: "roots", MountPath: "/var/run/heddle/roots", ReadOnly: true}, {Name: "run", MountPath: "/run/heddle"}},
	}
	c.Env = slices.Concat(c.Env, w.observed(), w.accessLog(), w.bounds())
	if w.FIPS140 {
		c.Env = append(c.Env, corev1.EnvVar{Name: "GODEBUG", Value: "fips140=on"}, corev1.EnvVar{Name: "HEDDLE_FIPS140", Value: "true"})
	}
	return c
}

// observed is what is told of requests. In the environment, as the pod's admin-pipe reads it, too.
func (w *waypoint) observed() []corev1.EnvVar {
	env := []corev1.EnvVar{{Name: "HEDDLE_ADMIN_SOCKET", Value: adminSocket}}
	for _, v := range []corev1.EnvVar{
		{Name: "HEDDLE_FLOW_SAMPLE", Value: w.flowSample},
		{Name: "HEDDLE_TRACE_ENDPOINT", Value: w.traceEndpoint(w.TraceEndpoint)},
		{Name: "HEDDLE_TRACE_SAMPLE", Value: cmp.Or(w.traceSample, strings.Join(w.TraceSample, ","))},
	} {
		if v.Value != "" {
			env = append(env, v)
		}
	}
	return env
}

// accessLog has the waypoint write it to the pod's standard output, where what collects logs of pods finds it.
func (w *waypoint) accessLog() []corev1.EnvVar {
	share := cmp.Or(w.access, w.AccessLog)
	if tune.NoAccess(share) {
		return nil
	}
	env := []corev1.EnvVar{{Name: "HEDDLE_ACCESS_LOG", Value: "-"}, {Name: "HEDDLE_ACCESS_LOG_SAMPLE", Value: share}}
	mask := strings.Join(w.AccessLogMask, ",")
	if w.mask != nil {
		mask = *w.mask
	} else if mask == "" {
		return env // what the waypoint masks by itself
	}
	return append(env, corev1.EnvVar{Name: "HEDDLE_ACCESS_LOG_MASK", Value: mask})
}

// bound returns what a bound is to be, "" where nobody says so.
func (w *waypoint) bound(name string) string {
	all, err := tune.ParseBounds(w.Bounds)
	if err != nil { // Check has said so, and nothing is run
		return w.own[name]
	}
	return cmp.Or(w.own[name], all[name])
}

// bounds are told in the environment: a waypoint of another version takes no notice of one that it does not know, where it would
// refuse a flag.
func (w *waypoint) bounds() (env []corev1.EnvVar) {
	for _, b := range tune.Bounds() {
		if value := w.bound(b.Name); value != "" {
			env = append(env, corev1.EnvVar{Name: "HEDDLE_" + strings.ToUpper(strings.ReplaceAll(b.Name, "-", "_")), Value: value})
		} else if b.Name == tune.Drain {
			env = append(env, corev1.EnvVar{Name: "HEDDLE_DRAIN", Value: drain.String()})
		}
	}
	return env
}

// grace is after how many seconds a pod is killed that was told to end.
func (w *waypoint) grace() int64 {
	took := drain
	if d, err := time.ParseDuration(w.bound(tune.Drain)); err == nil {
		took = d
	}
	return int64(math.Ceil(took.Seconds())) + graceSeconds
}

func ptr[T any](v T) *T { return &v }
