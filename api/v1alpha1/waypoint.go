package v1alpha1

// ClassWaypoint is the name of the GatewayClass whose Gateways are waypoints: the operator
// runs one for each.
const ClassWaypoint = "heddle-waypoint"

// ProtocolMesh is the protocol of a waypoint's only listener: the connections that agents
// carry to it.
const ProtocolMesh = Group + "/mesh"

// Annotations of a Gateway of ClassWaypoint.
const (
	// AnnotationReplicas says how many replicas its waypoint has, from 1 to 100; 2 where it is
	// not given.
	AnnotationReplicas = Group + "/replicas"
	// AnnotationAutoscale says between how many replicas it scales by the CPU that it uses,
	// "2-10"; it wins over AnnotationReplicas.
	AnnotationAutoscale = Group + "/autoscale"
	// AnnotationCanary says how many replicas beside those run the image that the operator was given to try.
	AnnotationCanary = Group + "/canary"
	// AnnotationTraceEndpoint is the collector that it sends the spans of requests to, by OTLP over gRPC:
	// http://HOST:PORT, or https://HOST:PORT; "" is none, whatever the operator says of all.
	AnnotationTraceEndpoint = Group + "/trace-endpoint"
	// AnnotationTraceSample are the shares of requests that are sampled where the client says nothing of it, by
	// rules such as "/healthz=0,shop/cart=1,*=0.01".
	AnnotationTraceSample = Group + "/trace-sample"
	// AnnotationFlowSample are the shares of requests that heddle flows is shown, of those without any trouble.
	AnnotationFlowSample = Group + "/flow-sample"
)

// LabelTrack is the label of a waypoint's pods that run the image that is tried: TrackCanary.
const (
	LabelTrack  = Group + "/track"
	TrackCanary = "canary"
)

// AnnotationRoots is the annotation of a waypoint's pods that has the certificates by which
// they know the operator, in PEM.
const AnnotationRoots = Group + "/roots"
