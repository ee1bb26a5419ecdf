// Package adversary is `heddle prove --attack`: it chooses the parties of the
// adversarial suite of internal/attack, runs it against one pod's gate, and prints
// what became of each attack. What is tried, and how it is judged, is the suite's.
package adversary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/attack"
)

// Report is where to and how the outcome is printed.
type Report struct {
	Out   io.Writer
	Color bool
	// JSON prints one document at the end, in place of rows as they come.
	JSON bool
}

// Run tries the ways around the pod's gate, with its node's agent asked for the
// kernel's counters, and prints what became of each. Held says that all of them
// were shown to be held. One run at a time on a node, and one of Parties.
func (p Parties) Run(ctx context.Context, port uint16, report Report) (held bool, err error) {
	client, err := p.agent(ctx)
	if err != nil {
		return false, fmt.Errorf("agent of the attacked pod's node: %w", err)
	}
	cfg := p.cfg
	cfg.Port = port
	cfg.Dropped = func(ctx context.Context) (map[string]uint64, error) { return droppedAt(ctx, client, p.pod) }
	held, err = report.run(ctx, p.pod, cfg)
	if p.node != nil {
		err = errors.Join(err, p.node.Close())
	}
	return held, errors.Join(err, client.Close())
}

func (o Report) run(ctx context.Context, pod string, cfg attack.Config) (all bool, err error) {
	if _, err := cfg.Dropped(ctx); err != nil {
		return false, err
	}
	var results []attack.Result
	t := show.NewTable(o.Out, o.Color, "ATTACK", "DIRECTION", "FAMILY", "RESULT", "KERNEL'S COUNTER OF DROPS", "BEHIND THE GATE", "WITHOUT A GATE")
	t.Widen(18, 9, 6, 8, 44, 15, 14)
	var printErr error
	err = attack.Run(ctx, cfg, func(r attack.Result) {
		results = append(results, r)
		if !o.JSON {
			t.Add(row(r)...)
			printErr = errors.Join(printErr, t.Flush())
		}
	})
	if err := errors.Join(err, printErr); err != nil {
		return false, err
	}
	held := 0
	for _, r := range results {
		if r.Held() {
			held++
		}
	}
	all = held == len(results) && held > 0
	if o.JSON {
		return all, show.Document(o.Out, map[string]any{"pod": pod, "held": all, "attacks": results})
	}
	mark, verdict := show.Green, fmt.Sprintf("The gate of %s held against all %d attacks.", pod, held)
	if !all {
		mark, verdict = show.Red, fmt.Sprintf("The gate of %s held against %d of %d attacks.", pod, held, len(results))
	}
	_, err = fmt.Fprintln(o.Out, show.Painted(verdict, mark, o.Color))
	return all, err
}

func row(r attack.Result) []show.Cell {
	result := show.In("held", show.Green)
	switch {
	case r.Through > 0:
		result = show.In("THROUGH", show.Red)
	case !r.Held():
		result = show.In("unproven", show.Yellow)
	}
	var rises []string
	for _, rise := range r.Reasons {
		rises = append(rises, fmt.Sprintf("%s %d→%d", rise.Reason, rise.Before, rise.After))
	}
	control := show.Text("passes")
	switch {
	case r.Direction == "inbound":
		control = show.Text("")
	case !r.Control:
		control = show.In("not seen", show.Yellow)
	}
	return []show.Cell{show.Text(r.Name), show.Text(r.Direction), show.Text(r.Family), result, show.Text(strings.Join(rises, ", ")), show.Text(show.Packets(uint64(r.Through))), control}
}

// droppedAt reads the kernel's counters of dropped packets, by reason.
func droppedAt(ctx context.Context, client *admin.Client, pod string) (map[string]uint64, error) {
	response, err := client.Admin.Prove(ctx, &meshpb.ProveRequest{Workload: pod})
	if err != nil {
		return nil, fmt.Errorf("read the kernel's counters: %w", admin.Explain(err))
	}
	dropped := map[string]uint64{}
	for _, p := range response.GetPods() {
		for _, c := range p.GetCounters() {
			if c.GetClass() == "dropped" {
				dropped[c.GetReason()] += c.GetPackets()
			}
		}
	}
	return dropped, nil
}
