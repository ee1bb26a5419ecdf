package explain

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Print writes an answer for people.
func Print(out io.Writer, color bool, a *Answer) error {
	if _, err := fmt.Fprintf(out, "%s\n→ %s\n\n", a.Source.describe(), a.Destination.describe()); err != nil {
		return err
	}
	word := verdictWord(a.Verdict, "endpoints")
	paint := show.Green
	if a.Verdict != "allow" {
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
	if err := printBehind(out, color, a); err != nil {
		return err
	}
	if err := printRequest(out, color, a.Request); err != nil {
		return err
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

// printBehind says what the waypoint decides at the workloads behind it; nothing without one, or where a request says it.
func printBehind(out io.Writer, color bool, a *Answer) error {
	if a.Behind == nil || a.Request != nil && a.Request.Seen || len(a.Behind.Endpoints) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(out, "\nbehind waypoint %s, whatever is asked for:\n", a.Waypoint); err != nil {
		return err
	}
	t := show.NewTable(out, color, "ENDPOINT", "VERDICT", "REASON", "POLICIES")
	for i := range a.Behind.Endpoints {
		e := &a.Behind.Endpoints[i]
		paint, verdict := show.Green, e.Verdict
		switch e.Verdict {
		case asked.Deny:
			paint = show.Red
		case asked.ByRequest:
			paint, verdict = show.Yellow, "depends on the request"
		}
		t.Add(show.Text(fmt.Sprintf("%s port %d", e.Workload, e.Port)), show.In(verdict, paint), show.Text(because(e.Reason, e.Policy, e.Rule)), show.Text(strings.Join(e.Selecting, ", ")))
	}
	return t.Flush()
}

// printRequest says what becomes of the request that was asked about; nothing without one.
func printRequest(out io.Writer, color bool, r *asked.Answer) error {
	if r == nil {
		return nil
	}
	word, paint := verdictWord(r.Verdict, "backends"), show.Green
	if r.Verdict != "allow" {
		paint = show.Red
	}
	line := fmt.Sprintf("\nrequest %s: %s", &r.Request, show.Painted(word, paint, color))
	if known(r.Reason) {
		line += ": " + r.Reason
	}
	switch {
	case !r.Seen:
		line += ", not seen by a waypoint"
	case r.Status != 0:
		line += fmt.Sprintf(", answered by the waypoint with %d", r.Status)
	}
	if r.Route != "" {
		line += "\nby " + r.Route
	}
	if len(r.Mirrors) > 0 {
		line += "\ncopies, which are judged by themselves, to " + strings.Join(r.Mirrors, ", ")
	}
	if _, err := fmt.Fprintln(out, line); err != nil || len(r.Backends) == 0 {
		return err
	}
	t := show.NewTable(out, color, "BACKEND", "WEIGHT", "SENT AS", "ENDPOINT", "VERDICT", "REASON")
	for i := range r.Backends {
		b := &r.Backends[i]
		weight := ""
		if r.Route != "" {
			weight = fmt.Sprint(b.Weight)
		}
		row := func(endpoint, verdict, reason string) {
			paint := show.Green
			if verdict == "deny" {
				paint = show.Red
			}
			t.Add(show.Text(b.Service), show.Text(weight), show.Text(strings.TrimSpace(b.Host+" "+b.Path)), show.Text(endpoint), show.In(verdict, paint), show.Text(reason))
		}
		if len(b.Endpoints) == 0 {
			row("", map[bool]string{true: "deny"}[b.Reason != ""], strings.TrimSpace(fmt.Sprintf("%s %s", map[bool]string{true: fmt.Sprint(b.Status)}[b.Status != 0], b.Reason)))
		}
		for j := range b.Endpoints {
			e := &b.Endpoints[j]
			row(fmt.Sprintf("%s port %d", e.Workload, e.Port), e.Verdict, because(e.Reason, e.Policy, e.Rule))
		}
	}
	return t.Flush()
}

// because is a reason, with the policy and the rule that decided.
func because(reason, policy string, rule *int) string {
	if policy != "" {
		reason += " " + policy
	}
	if rule != nil {
		reason += fmt.Sprintf("[%d]", *rule)
	}
	return reason
}

func verdictWord(verdict, of string) string {
	return map[string]string{"allow": "allowed", "deny": "refused", "mixed": "allowed by some " + of + ", refused by others"}[verdict]
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
			lines = append(lines, fmt.Sprintf("key exchange with %s: %s%s, at %s", cmp.Or(e.Workload, e.Identity), s.KeyExchange, map[bool]string{true: " (post-quantum)"}[s.PostQuantum], s.At.Local().Format(minutes)))
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
		t.Add(show.Text(cmp.Or(e.Workload, e.Identity)), show.Text(e.Node), show.Text(fmt.Sprintf("%s port %d", e.Address, e.Port)), show.Text(e.Path), show.Text(e.Mode),
			show.In(e.Verdict, paint), show.Text(because(e.Reason, e.Policy, e.Rule)), show.Text(strings.Join(e.Selecting, ", ")), show.Text(strings.Join(network(e.NetworkPolicies), ", ")))
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
