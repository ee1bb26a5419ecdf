package replay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/draft"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
)

// DefaultDeny is the name of the policy that admits nobody.
const DefaultDeny = "default-deny"

// Suggestion is the policies that the recorded connections need.
type Suggestion struct {
	Policies []draft.Policy `json:"policies"`
	// Notes are what a person has to look at.
	Notes []string `json:"notes"`
}

// Suggest writes, for each workload of a namespace, the policy that admits those that
// reached it and are allowed to now, and no others; and one that admits nobody for
// the rest, unless open is set. The same for datagrams, in policies of their own, where
// policies may be about UDP. Routes are those that waypoints go by: who came to one needs to be let
// in by whomever these lead to.
func Suggest(m *explain.Model, h *past.History, namespace string, open bool, routes ...draft.Route) (*Suggestion, error) {
	all, err := h.Connections()
	if err != nil {
		return nil, err
	}
	out := &Suggestion{Policies: []draft.Policy{}, Notes: append([]string{}, h.Gaps()...)}
	if len(all) == 0 {
		out.Notes = append(out.Notes, nothingRecorded)
	}
	groups := draft.Groups(m.Workloads(), namespace, ownerOf)
	if len(groups) == 0 {
		return nil, fmt.Errorf("namespace %q has no workload in the mesh: `heddle enroll %s` first", namespace, namespace)
	}
	j := newJudge(m, m)
	out.Notes = append(out.Notes, j.others(all)...)
	connections, datagrams := &connectionNeeds{judge: j, groups: groups, namespace: namespace, routes: routes}, newDatagramNeeds(j, groups, namespace)
	for _, c := range all {
		if c.UDP {
			out.Notes = append(out.Notes, datagrams.consider(c)...)
			continue
		}
		if note := connections.consider(c); note != "" {
			out.Notes = append(out.Notes, note)
		}
	}
	out.Notes = slices.Concat(out.Notes, datagrams.settle(), connections.unproven(), connections.unruled())
	for _, g := range groups {
		tcp, udp := g.Policies(namespace, m.Settings().TrustDomain), g.Datagrams(namespace, m.Settings().TrustDomain)
		over := "" // what it is closed over
		if len(udp) > 0 {
			over = " over TCP"
		}
		if len(tcp) == 0 && !open && !slices.ContainsFunc(g.Members, m.AboutRequests) && !slices.ContainsFunc(g.Members, m.IsWaypoint) { // whose clients no policy keeps from it
			out.Notes = append(out.Notes, fmt.Sprintf("nobody%s has reached %s%s: %s closes it", connections.others(g), strings.Join(g.Owners, ", "), over, DefaultDeny))
		}
		out.Policies = slices.Concat(out.Policies, tcp, udp)
		if n := g.BytesOverUDP(udp, m.Settings().TrustDomain); n > draft.MaxOverUDP {
			out.Notes = append(out.Notes, fmt.Sprintf("policies about UDP of %s come to %d bytes with AuthorizationPolicy %s/%s, more than the %d that may be said of a workload, and then no datagrams pass: write namespaces in place of service accounts",
				strings.Join(g.Owners, ", "), n, namespace, udp[0].Policy.Name, draft.MaxOverUDP))
		}
	}
	if !open { // last, as kubectl applies one after the other: until then, nobody is refused whom another lets in
		out.Policies = append(out.Policies, draft.Closed(namespace, DefaultDeny))
	}
	out.Notes = append(out.Notes, draft.Remaining(m.View, groups, out.Policies, namespace)...)
	slices.Sort(out.Notes)
	out.Notes = slices.Compact(out.Notes)
	return out, nil
}
