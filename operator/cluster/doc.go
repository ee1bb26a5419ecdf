// Package cluster mirrors what an operator needs of a Kubernetes cluster: it
// lists and watches, keeps a trimmed copy, and hands out consistent sets of
// objects for internal/kube to compile. It compiles nothing and writes nothing.
//
// A change that the model cannot see, such as a heartbeat in a node's status,
// wakes nobody. What is handed out has an epoch, the newest resource version
// that changed something: replicas that have seen the same agree on it, and one
// that lags behind is told from one that does not. One follower is told, besides,
// which objects have changed since it looked last.
//
// Endpoints of services come from pods and selectors, one hop earlier than from
// EndpointSlices, so that a pod gets no new connection from the moment it has a
// deletion timestamp. Slices are watched only where nobody selects: those not
// made by Kubernetes' own endpoint slice controller.
//
// The Gateway API's kinds are mirrored where and while the API server has them. They,
// and services, are what requests are routed by: Routing has them, a change of routes is
// no change of the model. What an API server has is asked for every few seconds, by
// Kubernetes' discovery.
//
// # Rights
//
// Verbs list and watch, in all namespaces, on:
//
//	""                 namespaces, nodes, pods, services
//	discovery.k8s.io   endpointslices
//	networking.k8s.io  networkpolicies
//	heddle.dev         meshes, workloads, peerauthentications, authorizationpolicies
//	gateway.networking.k8s.io
//	                   gatewayclasses, gateways, httproutes, grpcroutes,
//	                   tlsroutes, tcproutes, referencegrants
//
// A Source's methods may be called from any goroutine; Run is called once, and
// ends everything that it starts.
package cluster
