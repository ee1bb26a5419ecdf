package plan

import (
	"strconv"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// Why a request is answered by the waypoint itself, beside those of package reason and those of the
// mesh. They are in X-Heddle-Reason, the access log and metrics.
const (
	BadPath        = "BadPath"        // 400: no path in the form of RFC 3986
	NoRoute        = "NoRoute"        // 404: routes are about the port, and no rule is for the request
	TooCostly      = "RouteTooCostly" // 500: finding the rule would cost too much
	BackendBroken  = "BackendBroken"  // 500: the rule's backend cannot be had, or it has none
	FilterBroken   = "FilterBroken"   // 500: a filter of the rule cannot be carried out
	ConnectRefused = "ConnectRefused" // 405: a CONNECT, of which nobody sees what is inside
	BadEdit        = "BadEdit"        // 500: a filter makes of a head what none can be
	UpgradeRefused = "UpgradeRefused" // 502: the workload has answered a WebSocket with something else
	NoWebSocket    = "NoWebSocket"    // 502: the workload offers no WebSocket over HTTP/2, and has not understood one in HTTP/1.1
	BackendReset   = "BackendReset"   // 502: the workload broke off
	Overloaded     = "Overloaded"     // 503: the waypoint has as much to do as it may have
	NoHeader       = "NoHeader"       // a connection did not begin with a PROXY protocol header
	SlowClient     = "SlowClient"     // a client did not send, or not take, in time
	LateHTTP       = "LateHTTP"       // a client that was passed on as it is says HTTP when something has gone to or fro
	ClientGone     = "ClientGone"     // a client went away before its answer had ended
	NotTLS         = "NotTLS"         // a connection at a port of TLSRoutes does not begin with a ClientHello
	BadHello       = "BadHello"       // its ClientHello is not as TLS has it, or too long
	NoServerName   = "NoServerName"   // its ClientHello names no server
	UnexpectedHTTP = "UnexpectedHTTP" // a TCPRoute of another namespace would pass on HTTP to a port that may take it for the waypoint's
)

// Reasons are all values of the reason of an answer that is the waypoint's own, or of a
// connection that it ends, each once.
func Reasons() (all []string) {
	for _, r := range reason.All() {
		all = append(all, r.String())
	}
	// Why a client may not reach a workload, or nothing leads there: all that the mesh says before
	// the kernel does.
	for _, r := range mesh.Reasons() {
		if r >= mesh.ReasonPolicyDeny && r < mesh.ReasonKernelUnstamped || r == mesh.ReasonEgressAllowed {
			all = append(all, r.String())
		}
	}
	return append(all, BadPath, NoRoute, TooCostly, BackendBroken, FilterBroken, ConnectRefused, BadEdit, UpgradeRefused, NoWebSocket, BackendReset, Overloaded, NoHeader, SlowClient, LateHTTP, ClientGone,
		NotTLS, BadHello, NoServerName, UnexpectedHTTP)
}

// Reply is a response of the waypoint's own.
type Reply struct {
	Status int
	// Counted is the status that metrics and the log have, where gRPC has another one on the wire; else 0.
	Counted int
	// Reason is "" of an answer that the route asks for.
	Reason string
	Fields []http1.Field
	Body   []byte
}

func (out *Plan) refuse(r *Request, status int, reason string) {
	out.Way, out.Reply = nil, Refusal(status, reason, r.GRPC)
}

// Refusal is a reply that says why; as gRPC has it for its clients, who look at nothing but
// the grpc-status of a 200 (gRPC over HTTP2, "Responses").
func Refusal(status int, reason string, grpc bool) Reply {
	if grpc {
		return Reply{Status: 200, Counted: status, Reason: reason, Fields: []http1.Field{
			http1.NewField("content-type", "application/grpc"), http1.NewField("grpc-status", strconv.Itoa(grpcStatus(status, reason))), http1.NewField("grpc-message", "heddle: "+reason),
		}}
	}
	return Reply{Status: status, Reason: reason, Fields: []http1.Field{http1.NewField("content-type", "text/plain; charset=utf-8")}, Body: []byte("heddle: " + reason + "\n")}
}

// Codes of gRPC (google.golang.org/grpc/codes).
const (
	grpcUnknown          = 2
	grpcDeadlineExceeded = 4
	grpcPermissionDenied = 7
	grpcUnimplemented    = 12
	grpcInternal         = 13
	grpcUnavailable      = 14
)

func grpcStatus(status int, why string) int {
	switch {
	case status == 504:
		return grpcDeadlineExceeded
	case why == NoRoute:
		return grpcUnimplemented
	case status >= 502, status == 429, why == BackendBroken:
		return grpcUnavailable
	case status == 403:
		return grpcPermissionDenied
	case status == 400:
		return grpcInternal
	}
	return grpcUnknown
}
