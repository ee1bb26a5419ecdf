package mesh

import "fmt"

// Verdict says whether a connection, or a packet, was let through.
type Verdict uint8

// The verdicts. The zero value is VerdictDeny, so that a forgotten field
// refuses.
const (
	VerdictDeny Verdict = iota
	VerdictAllow
	// VerdictAudit is an allow that an AUDIT policy asked to be recorded.
	VerdictAudit
)

// String returns "deny", "allow" or "audit".
func (v Verdict) String() string {
	switch v {
	case VerdictAllow:
		return "allow"
	case VerdictAudit:
		return "audit"
	default:
		return "deny"
	}
}

// Reason says why a connection was allowed, refused or ended. It is one closed
// enum on every surface: log, metric label, flow, command line and API status
// show the same word. The numbers are not part of any format; the words are.
type Reason uint8

// The reasons. Those that begin with Kernel are given by the gate, in the
// kernel; bpf/reasons.h has their twins and a test keeps the two equal.
const (
	ReasonUnknown Reason = iota

	// Allowed.
	ReasonNoPolicy      // no policy selects the workload, and the default allows
	ReasonPolicyAllow   // a rule of an ALLOW policy matched
	ReasonPermissive    // plaintext, admitted because the port is PERMISSIVE
	ReasonEgressAllowed // destination outside the mesh; egress allows it
	ReasonProbe         // kubelet probe to a declared port
	ReasonGrandfathered // was open before its pod was enrolled: had its time, which is over
	ReasonWaypoint      // the waypoint decides about requests to the service, or has decided

	// Refused by policy or configuration.
	ReasonPolicyDeny           // a rule of a DENY policy matched
	ReasonPolicyNoMatch        // ALLOW policies select the workload and none matched
	ReasonRequestUnseen        // a policy about requests selects the workload, and nobody who sees them has this connection
	ReasonStrictPlaintext      // plaintext to a STRICT port
	ReasonEgressDenied         // destination outside the mesh; egress refuses it
	ReasonUnknownDestination   // in the cluster's ranges, but nobody's address
	ReasonServicePortUndefined // the service has no such port
	ReasonNoEndpoint           // the service has no ready workload
	ReasonNotSynced            // no configuration yet, not even a last good one
	ReasonReservedPort         // the port is the agent's own inside an enrolled workload
	ReasonNetworkPolicyIngress // NetworkPolicies isolate the destination, and none admits this client
	ReasonNetworkPolicyEgress  // NetworkPolicies isolate the source, and none admits this destination

	// Refused because of identity.
	ReasonNoCertificate        // this agent holds no valid SVID for the workload
	ReasonCertificateExpired   // peer's SVID is expired or not yet valid
	ReasonCertificateUntrusted // peer's SVID does not chain to the trust bundle
	ReasonCertificateInvalid   // peer showed no certificate, or one that is not an SVID (two URI names, no URI, CA, ...)
	ReasonPeerIdentityMismatch // peer proved another identity than the one expected
	ReasonIdentityRevoked      // identity is on the deny-list
	ReasonNotFederated         // identity is of a trust domain that the mesh is not federated with
	ReasonForeignIdentity      // identity is of another trust domain, and no ALLOW policy names it

	// Refused because of the protocol.
	ReasonBadRequest         // not a CONNECT, bad authority, malformed header
	ReasonAuthorityMismatch  // CONNECT to an address that is not this workload's
	ReasonForwardedUntrusted // forwarded header names an address its sender may not speak for

	// Refused or ended by circumstances.
	ReasonPeerUnreachable // the peer's tunnel endpoint did not answer
	ReasonPeerRefused     // the peer's agent answered with a refusal
	ReasonAppUnreachable  // the application did not accept the connection
	ReasonBudgetExceeded  // the pod's budget of connections, bytes or handshakes
	ReasonRedirectFailed  // a passthru entry could not be inserted
	ReasonDraining        // the agent or the workload is draining
	ReasonTimeout         // a bounded step took too long
	ReasonReset           // an end reset the connection
	ReasonPolicyChanged   // was allowed, and policy no longer allows it
	ReasonUnenrolled      // the workload left the mesh
	ReasonAgentRestarted  // the agent that carried it is gone
	ReasonDNSFailed       // the DNS server that was asked did not answer, or with a failure
	ReasonDNSStale        // the DNS server did not answer, and an old answer was given for it

	// Dropped by the gate.
	ReasonKernelUnstamped        // TCP, or captured DNS, from a socket that is not the agent's
	ReasonKernelForgedSource     // source is not one of the pod's addresses
	ReasonKernelNoFlow           // kernel packet without a flow, or a segment of no known flow
	ReasonKernelPlaintextInbound // plaintext from the wire to a STRICT port
	ReasonKernelPassthruReuse    // from the wire, on a tuple the agent uses towards the app
	ReasonKernelProtocol         // a protocol the gate's table does not pass
	ReasonKernelFragment         // IP fragment
	ReasonKernelIPOptions        // IPv4 options
	ReasonKernelExtensionHeader  // IPv6 extension header
	ReasonKernelMalformed        // headers truncated or inconsistent
	ReasonKernelUDP              // UDP that no policy allows
	ReasonKernelICMP             // ICMP type that the table does not pass
	ReasonKernelBudget           // the pod's flow table is full
	ReasonKernelSynPayload       // data on a SYN (fast open)

	reasonCount // keep last
)

var reasonNames = [reasonCount]string{
	ReasonUnknown:                "Unknown",
	ReasonNoPolicy:               "NoPolicy",
	ReasonPolicyAllow:            "PolicyAllow",
	ReasonPermissive:             "Permissive",
	ReasonEgressAllowed:          "EgressAllowed",
	ReasonProbe:                  "Probe",
	ReasonGrandfathered:          "Grandfathered",
	ReasonWaypoint:               "Waypoint",
	ReasonPolicyDeny:             "PolicyDeny",
	ReasonPolicyNoMatch:          "PolicyNoMatch",
	ReasonRequestUnseen:          "RequestUnseen",
	ReasonStrictPlaintext:        "StrictPlaintext",
	ReasonEgressDenied:           "EgressDenied",
	ReasonUnknownDestination:     "UnknownDestination",
	ReasonServicePortUndefined:   "ServicePortUndefined",
	ReasonNoEndpoint:             "NoEndpoint",
	ReasonNotSynced:              "NotSynced",
	ReasonReservedPort:           "ReservedPort",
	ReasonNetworkPolicyIngress:   "NetworkPolicyIngress",
	ReasonNetworkPolicyEgress:    "NetworkPolicyEgress",
	ReasonNoCertificate:          "NoCertificate",
	ReasonCertificateExpired:     "CertificateExpired",
	ReasonCertificateUntrusted:   "CertificateUntrusted",
	ReasonCertificateInvalid:     "CertificateInvalid",
	ReasonPeerIdentityMismatch:   "PeerIdentityMismatch",
	ReasonIdentityRevoked:        "IdentityRevoked",
	ReasonNotFederated:           "NotFederated",
	ReasonForeignIdentity:        "ForeignIdentity",
	ReasonBadRequest:             "BadRequest",
	ReasonAuthorityMismatch:      "AuthorityMismatch",
	ReasonForwardedUntrusted:     "ForwardedUntrusted",
	ReasonPeerUnreachable:        "PeerUnreachable",
	ReasonPeerRefused:            "PeerRefused",
	ReasonAppUnreachable:         "AppUnreachable",
	ReasonBudgetExceeded:         "BudgetExceeded",
	ReasonRedirectFailed:         "RedirectFailed",
	ReasonDraining:               "Draining",
	ReasonTimeout:                "Timeout",
	ReasonReset:                  "Reset",
	ReasonPolicyChanged:          "PolicyChanged",
	ReasonUnenrolled:             "Unenrolled",
	ReasonAgentRestarted:         "AgentRestarted",
	ReasonDNSFailed:              "DNSFailed",
	ReasonDNSStale:               "DNSStale",
	ReasonKernelUnstamped:        "KernelUnstamped",
	ReasonKernelForgedSource:     "KernelForgedSource",
	ReasonKernelNoFlow:           "KernelNoFlow",
	ReasonKernelPlaintextInbound: "KernelPlaintextInbound",
	ReasonKernelPassthruReuse:    "KernelPassthruReuse",
	ReasonKernelProtocol:         "KernelProtocol",
	ReasonKernelFragment:         "KernelFragment",
	ReasonKernelIPOptions:        "KernelIPOptions",
	ReasonKernelExtensionHeader:  "KernelExtensionHeader",
	ReasonKernelMalformed:        "KernelMalformed",
	ReasonKernelUDP:              "KernelUDP",
	ReasonKernelICMP:             "KernelICMP",
	ReasonKernelBudget:           "KernelBudget",
	ReasonKernelSynPayload:       "KernelSynPayload",
}

// String returns the reason's word, as every surface shows it.
func (r Reason) String() string {
	if r >= reasonCount {
		return fmt.Sprintf("Reason(%d)", uint8(r))
	}
	return reasonNames[r]
}

// ParseReason is the inverse of Reason.String.
func ParseReason(word string) (Reason, error) {
	for r, name := range reasonNames {
		if name == word {
			return Reason(r), nil
		}
	}
	return ReasonUnknown, fmt.Errorf("unknown reason %q", word)
}

// Reasons returns every reason, in order of declaration.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}
