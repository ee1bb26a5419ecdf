package status

import (
	"fmt"
	"io"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Print writes a Summary for people: a table of each kind of thing, and then what
// is not well.
func (s *Summary) Print(out io.Writer, color bool) error {
	operators := show.NewTable(out, color, "OPERATOR", "VERSION", "EPOCH", "NODES", "ROOT EXPIRES", "STATE")
	for _, o := range s.Operators {
		state := show.In("ready", show.Green)
		switch {
		case o.Error != "":
			state = show.In("no answer", show.Red)
		case o.Name == s.Leader:
			state = show.In("leader", show.Green)
		}
		operators.Add(show.Text(o.Name), show.Text(o.Version), number(o.Epoch), show.Text(fmt.Sprint(o.Nodes)), until(o.RootExpires), state)
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
		nodes.Add(show.Text(n.Name), show.Text(n.Version), number(n.Epoch), lag, show.Text(fmt.Sprintf("%d/%d", n.Enrolled, n.Pods)), show.Text(fmt.Sprint(n.Connections)),
			show.Text(fmt.Sprint(n.Certificates)), until(n.Expires), state)
	}
	namespaces := show.NewTable(out, color, "NAMESPACE", "LABEL", "IN THE MESH", "STRICT")
	for _, n := range s.Namespaces {
		namespaces.Add(show.Text(n.Name), show.Text(n.Label), show.Text(fmt.Sprintf("%d/%d", n.Enrolled, n.Pods)), show.Text(fmt.Sprint(n.Strict)))
	}
	for i, table := range []*show.Table{operators, nodes, namespaces} {
		if i > 0 {
			if _, err := fmt.Fprintln(out); err != nil {
				return err
			}
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return s.printProblems(out, color)
}

func (s *Summary) printProblems(out io.Writer, color bool) error {
	for _, p := range s.Problems {
		if _, err := fmt.Fprintf(out, "\n%s %s", show.Painted("not well:", show.Red, color), p); err != nil {
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
