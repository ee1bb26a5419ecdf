// Package podnet enrolls network namespaces: it puts the kernel's part of the
// mesh (redirection, gate, stamps) around one pod, opens the agent's listeners
// inside it, makes the agent's sockets in it, and takes everything back.
//
// It knows addresses, ports and namespaces, not identities or policies: what
// runs over the sockets is agent/proxy's, what a packet may do is bpf's.
//
// # What enrolling changes
//
// In the pod's network namespace, for each family in which it has an address:
//
//	ip rule  pref 90  fwmark MARK/MASK lookup main
//	ip rule  pref 100 iif lo ipproto tcp lookup TABLE
//	ip rule  pref 100 iif lo ipproto udp dport 53 lookup TABLE   (Spec.CaptureDNS)
//	ip route local default dev lo table TABLE src ADDRESS
//	listeners on 127.0.0.1 or [::1], ports 15001, 15006 and 15008
//	a listener and a UDP socket there, port 15053                (Spec.CaptureDNS)
//
// and the BPF links of package bpf on the namespace and on both ends of its
// veth. No sysctl is written: the recipe needs none (rule 100 must keep "iif
// lo", which is what spares it the flow dissection that would make
// fib_validate_source, net/ipv4/fib_frontend.c, see the wire as martian). Rules
// and routes carry the routing protocol steer.RouteProtocol, by which the agent knows
// its own.
//
// # What stays when the agent dies
//
// Pins, rules, routes, and one file per pod in Config.StateDir that says what
// was changed, written before the first change. With the listeners gone the
// kernel refuses: nothing leaves in plaintext. A new agent adopts all of it in
// Enroll; the gate is never detached on the way.
//
// # What stays when the pod moves
//
// The gate around the namespace that it left, until that is gone: `heddle check`
// lists those. A pod's gate goes when the pod is taken out of the mesh, and never
// because its addresses or its namespace are others now.
//
// # Concurrency
//
// A Node and its Pods are safe for concurrent use. Open starts nothing; the
// first socket that is made in a pod starts one thread, which Node.Close ends.
// A thread that changed its namespace never runs anything else.
package podnet
