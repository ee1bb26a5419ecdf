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
	// AnnotationAccessLog is the share of requests that are a line of JSON each on its pods' standard output, from 0,
	// for none, to 1; those answered with 5xx are, unless it is 0.
	AnnotationAccessLog = Group + "/access-log"
	// AnnotationAccessLogMask are the fields of those lines whose values are not written, "query,path"; "" is none of
	// them, and "query" is masked where it is not given.
	AnnotationAccessLogMask = Group + "/access-log-mask"
	// AnnotationBounds are bounds and times that it keeps in place of its own, by the names of heddle-waypoint's flags:
	// "max-requests=20000,stall-timeout=2m". Each wins over what the operator says of all; the rest of those stays.
	AnnotationBounds = Group + "/bounds"
)

// LabelTrack is the label of a waypoint's pods that run the image that is tried: TrackCanary.
const (
	LabelTrack  = Group + "/track"
	TrackCanary = "canary"
)

// AnnotationRoots is the annotation of a waypoint's pods that has the certificates by which
// they know the operator, in PEM.
const AnnotationRoots = Group + "/roots"
