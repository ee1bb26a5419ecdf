// Package agreement holds a test that four agree about who may connect: the API's
// documentation, written down once more as plainly as possible; the evaluator of
// internal/mesh; the gate in the kernel; and the agent that carries connections. Policies
// and connections are generated. The kernel is this machine's and the packets are real;
// only the TLS of the tunnel is left out, whose peers are said to be who they are. Another one
// holds documentation, evaluator and waypoint together about requests.
package agreement
