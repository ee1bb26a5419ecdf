package status

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// maxPolicies is how many policies are shown when not all are asked for.
const maxPolicies = 20

// Print writes a Summary for people: a table of each kind of thing, and then what
// is not well. Of many policies, it shows those that are not in force everywhere,
// unless all are asked for.
func (s *Summary) Print(out io.Writer, color, allPolicies bool) error {
	operators := show.NewTable(out, color, "OPERATOR", "VERSION", "EPOCH", "NODES", "ROOT EXPIRES", "STATE")
	for _, o := range s.Operators {
		state := show.In("ready", show.Green)
		switch {
		case o.Error != "":
			state = show.In("no answer", show.Red)
		case o.Name == s.Leader:
			state = show.In("leader", show.Green)
		}
		operators.Add(show.Text(o.Name), show.Text(versionText(o.Version, o.FIPS140)), number(o.Epoch), show.Text(fmt.Sprint(o.Nodes)), until(o.RootExpires), state)
	}
	nodes := show.NewTable(out, color, "NODE", "VERSION", "EPOCH", "LAG", "PODS", "CONNECTIONS", "CERTIFICATES", "FIRST EXPIRES", "STATE")
	for _, n := range s.Nodes {
		state, lag := show.In("connected", show.Green), show.In("in sync", show.Green)
		switch {
		case n.Error != "":
			state, lag = show.In("no answer", show.Red), show.Text("")
		case !n.Connected:
			state = show.In("no operator", show.Yellow)
		}
		if n.LagSeconds > 0 {
			lag = show.In(show.Duration(time.Duration(n.LagSeconds*float64(time.Second))), show.Yellow)
		}
		nodes.Add(show.Text(n.Name), show.Text(versionText(n.Version, n.FIPS140)), number(n.Epoch), lag, show.Text(fmt.Sprintf("%d/%d", n.Enrolled, n.Pods)), show.Text(fmt.Sprint(n.Connections)),
			show.Text(fmt.Sprint(n.Certificates)), until(n.Expires), state)
	}
	namespaces := show.NewTable(out, color, "NAMESPACE", "LABEL", "IN THE MESH", "STRICT")
	for _, n := range s.Namespaces {
		in := fmt.Sprintf("%d/%d", n.Enrolled, n.Pods)
		if n.Unknown > 0 {
			in += fmt.Sprintf(", %d unknown", n.Unknown)
		}
		namespaces.Add(show.Text(n.Name), show.Text(n.Label), show.Text(in), show.Text(fmt.Sprint(n.Strict)))
	}
	policies, more := s.policyTable(out, color, allPolicies)
	tables := []*show.Table{operators, nodes, namespaces, policies}
	if len(s.Federated) > 0 {
		tables = append(tables, s.federatedTable(out, color))
	}
	for i, table := range tables {
		if i > 0 {
			if _, err := fmt.Fprintln(out); err != nil {
				return err
			}
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if more > 0 {
		if _, err := fmt.Fprintf(out, "and %d more, which `heddle status --policies` shows\n", more); err != nil {
			return err
		}
	}
	return s.printProblems(out, color)
}

func (s *Summary) federatedTable(out io.Writer, color bool) *show.Table {
	table := show.NewTable(out, color, "TRUST DOMAIN", "WORKLOADS", "ADDRESSES", "ROOTS EXPIRE", "STATE")
	for _, f := range s.Federated {
		state := show.In("verifiable", show.Green)
		if !f.Verifiable {
			state = show.In("refused", show.Red)
		}
		table.Add(show.Text(f.TrustDomain), show.Text(fmt.Sprint(f.Workloads)), show.Text(fmt.Sprint(f.Addresses)), until(f.RootsExpire), state)
	}
	return table
}

// policyTable returns the table, and how many policies are not in it.
func (s *Summary) policyTable(out io.Writer, color, all bool) (table *show.Table, more int) {
	table = show.NewTable(out, color, "POLICY", "STATE", "LIVE ON NODES", "DETAIL")
	shown := s.Policies
	if !all && len(shown) > maxPolicies {
		shown = slices.DeleteFunc(slices.Clone(shown), func(p Policy) bool { return p.well() })
		shown = shown[:min(len(shown), maxPolicies)]
	}
	for i := range shown {
		p := &shown[i]
		state, live, detail := show.In("accepted", show.Green), show.In(fmt.Sprintf("%d/%d", p.Live, p.Nodes), show.Green), p.Message
		switch {
		case p.Live < p.Nodes:
			live.Paint, detail = show.Yellow, strings.TrimPrefix(detail+"; not yet on "+strings.Join(p.Pending, ", "), "; ")
		case p.Nodes == 0:
			live.Paint, detail = show.Plain, cmp.Or(detail, "no enrolled workload is concerned")
		}
		if !p.Accepted {
			state, detail = show.In("refused", show.Red), "" // it is said among what is not well
		}
		table.Add(show.Text(p.String()), state, live, show.Text(detail))
	}
	return table, len(s.Policies) - len(shown) + s.PoliciesLeftOut
}

func (s *Summary) printProblems(out io.Writer, color bool) error {
	for _, p := range s.Problems {
		if _, err := fmt.Fprintf(out, "\n%s %s", show.Painted("not well:", show.Red, color), show.Lines(p)); err != nil {
			return err
		}
	}
	if len(s.Problems) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(out, "\n`heddle check` says what to do.")
	return err
}

func number(n uint64) show.Cell {
	if n == 0 {
		return show.Text("")
	}
	return show.Text(fmt.Sprint(n))
}

// until is how long something lasts, in red when it ends within an hour.
func until(t time.Time) show.Cell {
	if t.IsZero() {
		return show.Text("")
	}
	left := time.Until(t)
	switch {
	case left <= 0:
		return show.In("expired", show.Red)
	case left > 48*time.Hour:
		return show.Text(fmt.Sprintf("in %d days", int(left.Hours()/24)))
	case left < time.Hour:
		return show.In("in "+left.Round(time.Second).String(), show.Red)
	}
	return show.Text(fmt.Sprintf("in %dh%02dm", int(left.Hours()), int(left.Minutes())%60))
}

// versionText is a program's version, and that it is in FIPS 140-3 mode.
func versionText(version, mode string) string {
	if mode == "" || mode == "off" {
		return version
	}
	return version + " (FIPS 140-3)"
}
