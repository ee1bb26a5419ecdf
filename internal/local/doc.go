// Package local runs a whole mesh on one machine, without Kubernetes: a network
// namespace per node, joined by a bridge in a namespace of its own; the pods'
// namespaces; the operator and one agent per node as real processes, each in its
// node's namespace and in a cgroup of its own. The command line, the demo and
// the end-to-end tests stand on it.
//
// It makes links, addresses and processes; it knows nothing of redirection or
// the gate, which are the agent's. What it made is on record in the state
// folder, so that another process takes it away again, also after a crash.
//
//	namespace heddle-NAME-fabric   bridge "br0" (100.64.0.1, fd00:64::1), one
//	                               port "node-NODE" for each node; the operator
//	namespace heddle-NAME-NODE     "underlay0" (100.64.0.N, fd00:64::N), one
//	                               host-side veth "pod-..." for each pod; the agent
//	the pod's namespace            "eth0" with the workload's addresses
//
// A capture on br0 sees what crosses between nodes. A Mesh is not safe for
// concurrent use; two processes that change one mesh exclude each other by a lock
// file.
package local
