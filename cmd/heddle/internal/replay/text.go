package replay

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Print writes a result for people.
func (r *Result) Print(out io.Writer, color bool) error {
	var b strings.Builder
	r.printHistory(&b, color)
	for _, part := range []struct {
		title   string
		paint   show.Paint
		changes []Change
	}{{"Would break", show.Red, r.Breaks}, {"Would be let in, and is refused now", show.Yellow, r.Opens}} {
		if len(part.changes) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n", show.Painted(part.title, part.paint, color))
		table := show.NewTable(&b, color, "SOURCE", "DESTINATION", "CONNECTIONS", "LAST", "NOW", "THEN")
		for _, c := range part.changes {
			table.Add(show.Text(c.Source.Name), show.Text(over(to(c.Destination, c.Port), c.Protocol)), show.Text(fmt.Sprint(c.Count)), show.Text(past.Stamp(c.Last)),
				show.Text(c.Before.text()), show.Text(c.After.text()))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if len(r.Unjudged) > 0 {
		fmt.Fprintf(&b, "\n%s:\n", show.Painted("Could not be judged", show.Yellow, color))
		table := show.NewTable(&b, color, "SOURCE", "DESTINATION", "CONNECTIONS", "LAST", "WHY")
		for _, u := range r.Unjudged {
			table.Add(show.Text(u.Source.Name), show.Text(over(to(u.Destination, u.Port), u.Protocol)), show.Text(fmt.Sprint(u.Count)), show.Text(past.Stamp(u.Last)), show.Text(u.Why))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	verdict := show.Painted("Nothing would break.", show.Green, color)
	switch {
	case len(r.Breaks) == 0 && slices.ContainsFunc(r.Unjudged, func(u Unjudged) bool { return u.Why == string(byRequest) || u.Why == string(byRouting) }):
		verdict = show.Painted("Nothing else would break: where it depends on the request, this cannot say.", show.Yellow, color)
	case len(r.Breaks) > 0:
		verdict = show.Painted(counted(len(r.Breaks), "kind")+" of "+kinds(r.Breaks)+" would break.", show.Red, color)
	case r.Judged == 0:
		verdict = show.Painted("There is no recorded connection to judge by.", show.Yellow, color)
	case len(r.Unjudged) > 0:
		verdict = show.Painted("Nothing that could be judged would break.", show.Yellow, color)
	}
	fmt.Fprintf(&b, "\n%s\n", verdict)
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *Result) printHistory(b *strings.Builder, color bool) {
	what := counted(r.Connections, "connection")
	if r.Datagrams > 0 {
		what += ", and " + counted(r.Datagrams, "flow") + " over UDP,"
	}
	fmt.Fprintf(b, "%s of %s", what, counted(r.Judged, "kind"))
	if r.Since != nil && r.Until != nil {
		fmt.Fprintf(b, ", from %s to %s", past.Stamp(*r.Since), past.Stamp(*r.Until))
	}
	fmt.Fprintf(b, ", on %s.\n", counted(len(r.Nodes), "node"))
	for _, text := range r.Warnings {
		fmt.Fprintf(b, "%s %s\n", show.Painted("warning:", show.Yellow, color), show.Lines(text))
	}
}

// kinds says what changes are of.
func kinds(changes []Change) string {
	datagrams := func(c Change) bool { return c.Protocol == overUDP }
	connections := func(c Change) bool { return !datagrams(c) }
	switch {
	case !slices.ContainsFunc(changes, datagrams):
		return "connections"
	case !slices.ContainsFunc(changes, connections):
		return "datagrams"
	}
	return "connections and datagrams"
}

// over adds the protocol to a destination, as flows do.
func over(to, protocol string) string {
	if protocol == "" {
		return to
	}
	return to + " " + protocol
}

// to names a destination and its port, or all of its ports when none was kept.
func to(w Who, port uint16) string {
	switch {
	case port != 0:
		return fmt.Sprintf("%s:%d", w.Name, port)
	case w.Name == anywhere:
		return w.Name
	}
	return w.Name + ":*"
}

// text is the reason, and the policy and rule that decide.
func (d Decision) text() string {
	text := d.Verdict
	if d.Reason != "" && d.Reason != "Unknown" {
		text += " " + d.Reason
	}
	if d.Policy != "" {
		text += " " + d.Policy
		if d.Rule >= 0 {
			text += fmt.Sprintf("[%d]", d.Rule)
		}
	}
	if d.Endpoint != "" {
		text += " at its endpoint " + d.Endpoint
	}
	return text
}

// PrintHistory writes summaries for people.
func PrintHistory(h *past.History, out io.Writer, color bool) error {
	table := show.NewTable(out, color, "HOUR", "VERDICT", "REASON", "DIRECTION", "SOURCE", "DESTINATION", "TRANSPORT", "CONNECTIONS", "SENT", "RECEIVED", "NODE")
	for i := range h.Summaries {
		s := &h.Summaries[i]
		c, err := s.Connection()
		if err != nil {
			return err
		}
		paint := show.Green
		if s.Verdict == "deny" {
			paint = show.Red
		}
		rule := -1
		if s.Rule != nil {
			rule = int(*s.Rule)
		}
		reason := strings.TrimPrefix(Decision{Reason: s.Reason, Policy: s.Policy, Rule: rule}.text(), " ")
		table.Add(show.In(past.Stamp(s.Hour), show.Dim), show.In(s.Verdict, paint), show.In(reason, paint), show.Text(s.Direction), show.Text(who(&c.Source, &c).exact()),
			show.Text(to(Who{Name: who(&c.Destination, &c).exact()}, s.Port)), show.Text(carrier(s)), show.Text(fmt.Sprint(s.Count)),
			show.Text(show.Bytes(s.BytesSent)), show.Text(show.Bytes(s.BytesReceived)), show.Text(s.Node))
	}
	return table.Flush()
}

// carrier is the transport, or the protocol of a packet that was dropped.
func carrier(s *past.Summary) string {
	switch s.Protocol {
	case 0:
		return s.Transport
	case 1, 58: // IANA's protocol numbers
		return "ICMP"
	case 17:
		return "UDP"
	}
	return fmt.Sprintf("protocol %d", s.Protocol)
}

// exact is the pod, where there is one.
func (w Who) exact() string {
	if w.Workload != "" {
		return w.Workload
	}
	return w.Name
}

// Print writes the policies as YAML, with comments.
func (s *Suggestion) Print(out io.Writer, of *past.History) error {
	var b strings.Builder
	r := Result{}
	r.cover(of)
	if r.Since != nil && r.Until != nil {
		fmt.Fprintf(&b, "# What the connections from %s to %s need.\n", past.Stamp(*r.Since), past.Stamp(*r.Until))
	}
	for _, note := range s.Notes {
		fmt.Fprintf(&b, "# - %s\n", show.Printable(strings.ReplaceAll(note, "\n", " ")))
	}
	for _, p := range s.Policies {
		if err := p.Write(&b); err != nil {
			return err
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func counted[T int | uint64](n T, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
