// Package waypoints runs the waypoints that people ask for: for each Gateway of the class
// heddle-waypoint the objects that a waypoint consists of, and a status that says whether
// it takes requests. It routes nothing, and knows no routes.
//
// Only a leader does. It writes by server-side apply, puts back within Again what
// somebody has changed, and never touches an object of that name that is not the
// Gateway's. What belongs to a Gateway ends with it, by Kubernetes' garbage collection.
//
// # Rights
//
// In all namespaces:
//
//	""                         serviceaccounts, services              get, create, patch
//	apps                       deployments                            get, create, patch
//	policy                     poddisruptionbudgets                   get, create, patch
//	autoscaling                horizontalpodautoscalers               get, create, patch, delete
//	gateway.networking.k8s.io  gatewayclasses                         create
//	                           gatewayclasses/status, gateways/status patch
//	""                         events                                 create
//
// A Runner's Run is called once at a time, and ends what it starts.
package waypoints
