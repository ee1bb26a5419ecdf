package wire

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/proxy/budget"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TunnelReason says why the tunnel refused, outbound or inbound.
func TunnelReason(err error) mesh.Reason {
	var status *hbone.StatusError
	if errors.As(err, &status) {
		switch status.Code {
		case http.StatusServiceUnavailable, http.StatusBadGateway:
			return mesh.ReasonAppUnreachable
		case http.StatusGatewayTimeout:
			return mesh.ReasonTimeout
		}
		return mesh.ReasonPeerRefused
	}
	return byError(err)
}

// Refusal says why a tunnel did not take a connection, by what it answered, and
// whether another may be asked; ReasonUnknown is for nil, which says that it did.
func Refusal(answer *hbone.Outcome) (why mesh.Reason, cause error, again bool) {
	if answer == nil {
		return mesh.ReasonUnknown, nil, false
	}
	if answer.Err == nil {
		answer.Err = errors.New("the peer did not answer")
	}
	return TunnelReason(answer.Err), answer.Err, Elsewhere(answer.Err)
}

// byError goes by the tunnel's errors alone.
func byError(err error) mesh.Reason {
	for _, known := range []struct {
		err    error
		reason mesh.Reason
	}{
		{hbone.ErrCertificateExpired, mesh.ReasonCertificateExpired},
		{hbone.ErrCertificateUntrusted, mesh.ReasonCertificateUntrusted},
		{hbone.ErrCertificateInvalid, mesh.ReasonCertificateInvalid},
		{hbone.ErrPeerMismatch, mesh.ReasonPeerIdentityMismatch},
		{hbone.ErrBadRequest, mesh.ReasonBadRequest},
		{hbone.ErrLimit, mesh.ReasonBudgetExceeded},
		{hbone.ErrTimeout, mesh.ReasonTimeout},
		{hbone.ErrRevoked, mesh.ReasonIdentityRevoked},
		{hbone.ErrDraining, mesh.ReasonDraining},
		{hbone.ErrReset, mesh.ReasonReset},
		{hbone.ErrUnreachable, mesh.ReasonPeerUnreachable},
		{hbone.ErrHandshake, mesh.ReasonPeerRefused},
		{hbone.ErrProtocol, mesh.ReasonPeerUnreachable},
	} {
		if errors.Is(err, known.err) {
			return known.reason
		}
	}
	return mesh.ReasonPeerUnreachable
}

// RefusalReason says why the engine refused inbound. A status in the error is
// our own answer, and a handshake that fails in no known way is the client's
// bad request.
func RefusalReason(err error) mesh.Reason {
	if errors.Is(err, hbone.ErrHandshake) || errors.Is(err, hbone.ErrProtocol) {
		return mesh.ReasonBadRequest
	}
	return byError(err)
}

// EndReason says why a carried connection ended other than by FIN both ways.
func EndReason(err error) mesh.Reason {
	switch {
	case errors.Is(err, hbone.ErrRevoked):
		return mesh.ReasonIdentityRevoked
	case errors.Is(err, hbone.ErrDraining):
		return mesh.ReasonDraining
	case errors.Is(err, hbone.ErrProtocol):
		return mesh.ReasonPeerUnreachable
	case errors.Is(err, relay.ErrReset), errors.Is(err, hbone.ErrReset):
		return mesh.ReasonReset
	case errors.Is(err, hbone.ErrLimit):
		return mesh.ReasonBudgetExceeded
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, hbone.ErrTimeout):
		return mesh.ReasonTimeout
	default:
		return mesh.ReasonReset
	}
}

// ErrSockets says that the node's budget is used up, or the pod's share of it.
var ErrSockets = errors.New("too few sockets are left on this node for another one of this pod")

// DialReason says why a dial failed; unreachable is what an ordinary failure
// means here.
func DialReason(err error, unreachable mesh.Reason) mesh.Reason {
	switch {
	case errors.Is(err, ErrSockets), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return mesh.ReasonBudgetExceeded
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return mesh.ReasonTimeout
	default:
		return unreachable
	}
}

// ErrRedirect is what Sockets.DialApp's error matches when the kernel would
// have steered the connection back to the agent, because its exemption could
// not be entered.
var ErrRedirect = errors.New("redirect exemption could not be entered")

// AppReason says why an application was not connected to.
func AppReason(err error) mesh.Reason {
	if errors.Is(err, ErrRedirect) {
		return DialReason(err, mesh.ReasonRedirectFailed)
	}
	return DialReason(err, mesh.ReasonAppUnreachable)
}

// Elsewhere reports whether a try that failed so may be repeated at another
// candidate: the peer, or its application, was not there, which servers other than
// ours may call a 502 or a 504. A peer that answered with a refusal would be asked again
// for nothing; and what the pod's own budget has no room for says nothing of the peer,
// which other pods would be kept from.
func Elsewhere(err error) bool {
	var status *hbone.StatusError
	if errors.As(err, &status) {
		return status.Code >= http.StatusBadGateway && status.Code <= http.StatusGatewayTimeout
	}
	return !errors.Is(err, hbone.ErrReset) && !errors.Is(err, hbone.ErrRevoked) && !errors.Is(err, budget.ErrOver) && !errors.Is(err, budget.ErrTunnels) && !errors.Is(err, ErrSockets)
}

// Reset closes a connection with RST.
func Reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		relay.Reset(tcp)
		return
	}
	_ = conn.Close() // abandoned: there is no one to report to
}
