package explain

import (
	"fmt"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Behind is what a waypoint decides for a client at the workloads behind it.
type Behind = asked.Behind

// hintBehind says what to do about a refusal of the waypoint's, whatever is asked for.
func (a *Answer) hintBehind() []string {
	e := a.Behind.Refusing()
	if e == nil {
		if a.Reason == mesh.ReasonNoEndpoint.String() {
			return []string{"the waypoint takes the connection, and no pod of the service is ready: `kubectl get pods` with the selector of its Service says"}
		}
		return nil
	}
	at := fmt.Sprintf(": it is refused at the waypoint, for %s port %d", e.Workload, e.Port)
	switch a.Reason {
	case mesh.ReasonPolicyNoMatch.String():
		return []string{unmatched(e.Selecting) + at}
	case mesh.ReasonPolicyDeny.String():
		return []string{"AuthorizationPolicy " + e.Policy + " is to DENY it" + at}
	case mesh.ReasonForeignIdentity.String():
		return []string{"an identity of another trust domain is let in by an ALLOW policy that names it, in from.identities, and by nothing else" + at}
	case mesh.ReasonRequestUnseen.String():
		return []string{"AuthorizationPolicy " + e.Policy + " is about requests, which the waypoint does not see, as it passes connections to this port on as they are" + at}
	}
	return []string{strings.TrimPrefix(at, ": ")}
}

// unmatched says which ALLOW policies, of all that select a workload, admit nothing of it.
func unmatched(selecting []string) string {
	var allowing []string
	for _, p := range selecting {
		if name, ok := strings.CutPrefix(p, "ALLOW "); ok {
			allowing = append(allowing, name)
		}
	}
	return fmt.Sprintf("no rule of %s admits it: add one that names the source and the port", strings.Join(allowing, ", "))
}
