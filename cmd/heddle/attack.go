package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/attack"
	"github.com/heddle-mesh/heddle/internal/local"
)

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// attack runs the adversarial suite against one pod's gate.
func (a *app) attack(ctx context.Context, pod string, port uint16) error {
	m, err := a.mesh.Local()
	if err != nil {
		return err
	}
	cfg, node, err := attackConfig(m.Status(), pod, a.enrolled(ctx))
	if err != nil {
		return err
	}
	cfg.Port = port
	client, err := admin.Dial(ctx, m.AgentSocket(node))
	if err != nil {
		return fmt.Errorf("agent of node %s: %w", node, err)
	}
	cfg.Dropped = func(ctx context.Context) (map[string]uint64, error) { return droppedAt(ctx, client, pod) }
	return errors.Join(a.runAttack(ctx, pod, cfg), client.Close())
}

func (a *app) runAttack(ctx context.Context, pod string, cfg attack.Config) error {
	if _, err := cfg.Dropped(ctx); err != nil {
		return err
	}
	var results []attack.Result
	t := show.NewTable(a.out, a.color, "ATTACK", "DIRECTION", "FAMILY", "RESULT", "KERNEL'S COUNTER OF DROPS", "BEHIND THE GATE", "WITHOUT A GATE")
	t.Widen(18, 9, 6, 8, 44, 15, 14)
	var printErr error
	err := attack.Run(ctx, cfg, func(r attack.Result) {
		results = append(results, r)
		if a.output != "json" {
			t.Add(attackRow(r)...)
			printErr = errors.Join(printErr, t.Flush())
		}
	})
	if err := errors.Join(err, printErr); err != nil {
		return err
	}
	held := 0
	for _, r := range results {
		if r.Held() {
			held++
		}
	}
	if a.output == "json" {
		err = a.document(map[string]any{"pod": pod, "held": held == len(results) && held > 0, "attacks": results})
	} else {
		mark, verdict := show.Green, fmt.Sprintf("The gate of %s held against all %d attacks.", pod, held)
		if held < len(results) || held == 0 {
			mark, verdict = show.Red, fmt.Sprintf("The gate of %s held against %d of %d attacks.", pod, held, len(results))
		}
		_, err = fmt.Fprintln(a.out, show.Painted(verdict, mark, a.color))
	}
	if err == nil && (held < len(results) || held == 0) {
		err = errNotWell
	}
	return err
}

func attackRow(r attack.Result) []show.Cell {
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

// enrolled lists the pods that are enrolled on any node; an agent that does not
// answer has none.
func (a *app) enrolled(ctx context.Context) map[string]bool {
	pods := map[string]bool{}
	// An error is told by the agent of the attacked pod, which is asked next.
	answers, _ := agents(ctx, a, reach.Status)
	for _, answer := range answers {
		for _, p := range answer.Value.GetPods() {
			pods[p.GetWorkload()] = p.GetState() == "enrolled"
		}
	}
	return pods
}

// attackConfig chooses the other parties: a client that is enrolled and a peer,
// both on other nodes, so that what gets through crosses the wire and meets no
// other gate before the tap; and a third pod to forge.
func attackConfig(s local.Status, pod string, enrolled map[string]bool) (cfg attack.Config, node string, err error) {
	var known []string
	place := func(n local.NodeStatus, p local.Pod) attack.Pod {
		return attack.Pod{NetNS: p.NetNS, Node: filepath.Join("/run/netns", n.NetNS), Addresses: p.Addresses}
	}
	for _, n := range s.Nodes {
		for _, p := range n.Pods {
			known = append(known, p.Workload)
			if p.Workload == pod {
				cfg.Target, node = place(n, p), n.Name
			}
		}
	}
	if node == "" {
		return cfg, "", fmt.Errorf("%w: no pod %q in mesh %q: there are %s", errUsage, pod, s.Name, strings.Join(known, ", "))
	}
	for _, n := range s.Nodes {
		for _, p := range n.Pods {
			if n.Name != node && enrolled[p.Workload] && len(p.Addresses) > len(cfg.Client.Addresses) {
				cfg.Client = place(n, p)
			}
			switch {
			case p.Workload == pod:
			case n.Name != node && len(p.Addresses) > len(cfg.Peer.Addresses):
				cfg.Peer = place(n, p)
			case len(cfg.Other.Addresses) == 0:
				cfg.Other = place(n, p)
			}
		}
	}
	if len(cfg.Peer.Addresses) == 0 {
		return cfg, "", fmt.Errorf("attack %s: mesh %q has no pod on another node to send to: add a Workload on a second node", pod, s.Name)
	}
	return cfg, node, nil
}
