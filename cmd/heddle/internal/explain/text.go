package explain

import (
	"fmt"
	"io"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Print writes an answer for people.
func Print(out io.Writer, color bool, a *Answer) error {
	if _, err := fmt.Fprintf(out, "%s\n→ %s\n\n", a.Source.describe(), a.Destination.describe()); err != nil {
		return err
	}
	word := map[string]string{"allow": "allowed", "deny": "refused", "mixed": "allowed by some endpoints, refused by others"}[a.Verdict]
	paint := show.Green
	if a.Denied() {
		paint = show.Red
	}
	verdict := show.Painted(word, paint, color)
	if known(a.Reason) {
		verdict += ": " + a.Reason
	}
	if _, err := fmt.Fprintln(out, verdict); err != nil {
		return err
	}
	if len(a.Endpoints) > 0 {
		if err := table(out, color, a.Endpoints); err != nil {
			return err
		}
	}
	if err := security(out, a); err != nil {
		return err
	}
	for i := range a.NetworkPolicies {
		if _, err := fmt.Fprintf(out, "NetworkPolicy %s: %s\n", &a.NetworkPolicies[i], a.NetworkPolicies[i].Verdict); err != nil {
			return err
		}
	}
	for _, note := range a.Notes {
		if _, err := fmt.Fprintln(out, show.Painted("→ "+note, show.Yellow, color)); err != nil {
			return err
		}
	}
	return nil
}

// security names certificates and key exchange, as far as agents told.
func security(out io.Writer, a *Answer) error {
	var lines []string
	certificate := func(e *End) {
		if c := e.Certificate; c != nil {
			lines = append(lines, fmt.Sprintf("certificate of %s: %s until %s", e.Workload, c.Serial, c.NotAfter.Local().Format(minutes)))
		}
	}
	certificate(&a.Source)
	for i := range a.Endpoints {
		e := &a.Endpoints[i]
		certificate(&e.End)
		if s := e.Secured; s != nil {
			lines = append(lines, fmt.Sprintf("key exchange with %s: %s%s, at %s", e.Workload, s.KeyExchange, map[bool]string{true: " (post-quantum)"}[s.PostQuantum], s.At.Local().Format(minutes)))
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

// minutes is how precise these moments are.
const minutes = "2006-01-02 15:04"

// known reports whether a reason says anything.
func known(reason string) bool { return reason != "" && reason != "Unknown" }

func table(out io.Writer, color bool, endpoints []Endpoint) error {
	t := show.NewTable(out, color, "ENDPOINT", "NODE", "ADDRESS", "PATH", "MODE", "VERDICT", "REASON", "POLICIES", "NETWORK POLICIES")
	for i := range endpoints {
		e := &endpoints[i]
		paint := show.Green
		if e.Verdict == "deny" {
			paint = show.Red
		}
		reason := e.Reason
		if e.Policy != "" {
			reason += " " + e.Policy
		}
		if e.Rule != nil {
			reason += fmt.Sprintf("[%d]", *e.Rule)
		}
		t.Add(show.Text(e.Workload), show.Text(e.Node), show.Text(fmt.Sprintf("%s port %d", e.Address, e.Port)), show.Text(e.Path), show.Text(e.Mode),
			show.In(e.Verdict, paint), show.Text(reason), show.Text(strings.Join(e.Selecting, ", ")), show.Text(strings.Join(network(e.NetworkPolicies), ", ")))
	}
	return t.Flush()
}

// network has NetworkPolicies, with what they say, in short.
func network(policies []NetworkPolicy) []string {
	var all []string
	for i := range policies {
		all = append(all, policies[i].Verdict+" "+policies[i].String())
	}
	return all
}

// describe is one line about an end.
func (e *End) describe() string {
	var parts []string
	name := e.Address
	switch {
	case e.Service != "":
		name = "Service " + e.Service
		parts = append(parts, e.Address)
	case e.Workload != "":
		name = e.Workload
		parts = append(parts, e.Address)
	case e.Address == "": // all that is known of one of another trust domain
		name = e.Identity
	}
	if e.Port != 0 {
		name += fmt.Sprintf(" port %d", e.Port)
	}
	if e.Node != "" {
		parts = append(parts, "node "+e.Node)
	}
	switch {
	case e.Identity != "" && name != e.Identity:
		parts = append(parts, e.Identity)
	case e.Workload != "":
		parts = append(parts, "not in the mesh")
	}
	if e.DNS != "" {
		parts = append(parts, map[string]string{"agent": "DNS answered by the agent", "server": "DNS left to its server"}[e.DNS])
	}
	text := strings.Trim(strings.Join(parts, ", "), ", ")
	if text == "" {
		return name
	}
	return name + " (" + text + ")"
}
