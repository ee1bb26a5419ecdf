package main

import (
	"fmt"
	"regexp"
	"strings"
)

// notHere are tests that no cluster on one machine can run: those that need a cloud's
// load balancers, the internet, IPv6 or SCTP in the nodes' kernel, that stop the
// cluster's own parts, or that hold for one and half an hour each.
const notHere = `\[Disruptive\]|\[Slow\]|\[Serial\]|\[Flaky\]|\[Provider:|\[Feature:(LoadBalancer|IPv6DualStack|Networking-|SCTPConnectivity|KubeProxyNFAcct|OffByDefault)` +
	`|LoadBalancers|IPv6|IngressClass|Ingress API|Service endpoints latency|Service ?CIDR`

// telling are parts of the names of tests that a mesh is most likely to break.
func telling() []string {
	return []string{
		"Services should serve a basic endpoint from pods", "Services should serve multiport endpoints from pods",
		"Services should be able to create a functioning NodePort service", "Services should have session affinity work for service with type clusterIP",
		"Services should be able to switch session affinity for service with type clusterIP", "Services should have session affinity work for NodePort service",
		"Services should preserve source pod IP for traffic thru service cluster IP", "Services should allow pods to hairpin back to themselves through services",
		"Services should be able to change the type from ExternalName to ClusterIP", "Services should be able to change the type from ClusterIP to ExternalName",
		"Services should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true",
		"Services should be rejected when no endpoints exist", "Services should implement service.kubernetes.io/headless",
		"Services should fallback to local terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Local",
		"Networking Granular Checks: Pods should function for intra-pod communication: http", "Networking Granular Checks: Pods should function for node-pod communication: http",
		"Networking Granular Checks: Services should function for pod-Service: http", "Networking Granular Checks: Services should function for pod-Service: udp",
		"DNS should provide DNS for the cluster", "DNS should provide DNS for services", "DNS should provide DNS for ExternalName services", "DNS should support configurable pod DNS nameservers",
		"EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices", "Proxy version v1 should proxy through a service and a pod",
		"HostPort validates that there is no conflict", "Connectivity Pod Lifecycle should be able to connect from a Pod to a terminating Pod",
		"NetworkPolicy between server and client should support a 'default-deny-ingress' policy", "should enforce policy based on Ports",
		"should allow egress access on one named port", "should enforce except clause while egress access to server in CIDR block",
	}
}

// focusOf is the pattern of a set of tests.
func focusOf(set string) (string, error) {
	switch set {
	case "network":
		return `\[sig-network\]`, nil
	case "telling":
		var parts []string
		for _, name := range telling() {
			// Names have tags in between: [LinuxOnly], [Conformance], [Feature:...].
			parts = append(parts, strings.ReplaceAll(regexp.QuoteMeta(name), " ", `( \[[^\]]*\])* `))
		}
		return strings.Join(parts, "|"), nil
	}
	return "", fmt.Errorf("-tests %q: use network or telling", set)
}

// byDesign are the tests that fail in enrolled namespaces and are meant to, each with
// the reason; fewer where a policy admits UDP. docs/network-tests.md says the same for people.
func byDesign(udp bool) []difference {
	const (
		noPolicy  = "the gate passes no UDP but DNS, in either direction, unless a policy says so: the mesh would let it go in plaintext"
		node      = "a host's address, or a node's that kube-proxy puts in place of the sender's, is no workload's"
		fragments = "fragments carry no ports to judge by"
	)
	var all []difference
	list := func(reason string, names ...string) {
		for _, name := range names {
			all = append(all, difference{name, reason})
		}
	}
	list(node,
		"Conntrack should be able to cleanup conntrack entries when UDP service target port changes for a NodePort service",
		"Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is hostNetwork",
		"Conntrack should be able to preserve UDP traffic when server pod cycles for a NodePort service",
		"Networking Granular Checks: Pods should function for node-pod communication: udp",
		"Networking Granular Checks: Services should function for endpoint-Service: udp", // by a node's port, too, as is the next but one
		"Networking Granular Checks: Services should function for node-Service: udp",
		"Networking Granular Checks: Services should function for pod-Service: udp",
		"Networking Granular Checks: Services should function for service endpoints using hostNetwork", // UDP, after TCP has worked
		"Networking Granular Checks: Services should support basic nodePort: udp functionality",
		"Services should be able to update service type to NodePort listening on same port number but different protocols",
		"Services should serve endpoints on same port and different protocol for internal traffic on Type LoadBalancer",
	)
	list(fragments, "Networking Granular Checks: Services should be able to handle large requests: udp")
	if udp {
		return all
	}
	list(noPolicy,
		"Conntrack should be able to preserve UDP traffic when initial unready endpoints get ready",
		"Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service",
		"Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service with InternalTrafficPolicy set to Local",
		"DNS should support configurable pod resolv.conf", // by a name server in a pod of the namespace
		"Networking Granular Checks: Pods should function for intra-pod communication: udp",
		"Networking Granular Checks: Services should function for client IP based session affinity: udp",
		"Networking Granular Checks: Services should update endpoints: udp",
		"Services should serve endpoints on same port and different protocols",
	)
	return all
}
