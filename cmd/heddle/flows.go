package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
)

// filterFlags adds a flag for each key of a flow filter.
func filterFlags(cmd *cobra.Command) {
	for _, k := range flow.FilterKeys() {
		short := ""
		if k[0] == "namespace" {
			short = "n" // as kubectl has it
		}
		cmd.Flags().StringSliceP(k[0], short, nil, "only flows with this: "+k[1])
	}
}

// readFilter reads the flags of filterFlags.
func readFilter(cmd *cobra.Command) (*meshpb.FlowFilter, error) {
	var f flow.Filter
	now := time.Now()
	for _, k := range flow.FilterKeys() {
		values, err := cmd.Flags().GetStringSlice(k[0])
		if err != nil {
			return nil, err
		}
		if len(values) == 0 {
			continue
		}
		if err := f.Set(k[0], strings.Join(values, ","), now); err != nil {
			return nil, fmt.Errorf("%w: %w", errUsage, err)
		}
	}
	return f.ToProto(), nil
}

func (a *app) flowPrinter(wide bool) *show.FlowPrinter {
	return show.NewFlowPrinter(a.out, a.color, a.output == "json", wide)
}

func (a *app) flows() *cobra.Command {
	var last int
	var follow, wide bool
	cmd := &cobra.Command{
		Use: "flows", Args: cobra.NoArgs, Short: "Show who talked to whom, and why it was allowed or refused",
		Long: `Show the finished and refused connections, and the packets that the kernel
dropped, of every node of the mesh, and the requests at its waypoints: the newest
--last of them, and with --follow each new one as it comes.

A pod is taken for a waypoint when a Gateway's Deployment has made it, not by its
labels; what it says is believed of services of its own namespace. Others are named,
and not asked. With --follow, one that fails is named, and the others go on.

Of a request there are the method, the paths that its route is about, the status,
and who answered; of the address that was asked for, the fields and the body there
is nothing. --direction request shows nothing else, and so do --status, --method and
--route.

A filter's values are alternatives; filters add up.`,
		Example: `  heddle flows --follow
  heddle flows -n shop --last 50 --verdict deny
  heddle flows --status 5xx --route shop/cart
  heddle flows --workload shop/web --reason PolicyDeny,PolicyNoMatch -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := readFilter(cmd)
			if err != nil {
				return err
			}
			if last < 0 || last > math.MaxInt32 {
				return fmt.Errorf("%w: --last %d: use a number from 0 on", errUsage, last)
			}
			request := &meshpb.WatchFlowsRequest{Filter: filter, Last: uint32(last), Follow: follow}
			if follow {
				return a.follow(cmd.Context(), request, a.flowPrinter(wide))
			}
			return a.lastFlows(cmd.Context(), request, a.flowPrinter(wide))
		},
	}
	cmd.Flags().IntVarP(&last, "last", "l", 20, "how many of the newest to show; of each node and waypoint with --follow")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with each new one, until interrupted")
	cmd.Flags().BoolVar(&wide, "wide", false, "more columns: identities, latencies, retransmits")
	filterFlags(cmd)
	a.completeNamespaces(cmd, "namespace")
	return cmd
}

// tellers are those who have flows that a filter may match: agents have connections, waypoints requests. Who may
// not find waypoints, which are in all namespaces, is shown the connections, and told so.
func (a *app) tellers(ctx context.Context, f *meshpb.FlowFilter) (all []reach.Target, err error) {
	filter, err := flow.FilterFromProto(f)
	if err != nil {
		return nil, err
	}
	if !filter.OfRequests() {
		if all, err = a.mesh.Agents(ctx); err != nil {
			return nil, err
		}
	}
	if len(filter.Directions) > 0 && !slices.Contains(filter.Directions, flow.DirectionRequest) {
		return all, nil
	}
	waypoints, strangers, err := a.mesh.Waypoints(ctx)
	for _, s := range strangers {
		fmt.Fprintf(a.log, "heddle: not asked, since it has a waypoint's labels and is none: %s\n", s)
	}
	switch {
	case err != nil && len(all) > 0:
		fmt.Fprintf(a.log, "heddle: without the requests at waypoints: %v\n", err)
		return all, nil
	case err == nil && len(all)+len(waypoints) == 0:
		err = fmt.Errorf("%w: there is no waypoint; remedy: `heddle waypoint apply -n NAMESPACE`, or --waypoint-socket outside Kubernetes", admin.ErrUnreachable)
	}
	return append(all, waypoints...), err
}

// lastFlows merges the newest flows of all agents and waypoints, by when they ended.
func (a *app) lastFlows(ctx context.Context, request *meshpb.WatchFlowsRequest, p *show.FlowPrinter) error {
	targets, err := a.tellers(ctx, request.GetFilter())
	if err != nil {
		return err
	}
	answers := reach.Ask(ctx, a.mesh.Timeout, targets, func(ctx context.Context, c *admin.Client) (flows []*meshpb.Flow, err error) {
		stream, err := c.Flows.Watch(ctx, request)
		if err != nil {
			return nil, err
		}
		sent := 0
		err = receive(stream, func(m *meshpb.WatchFlowsResponse) error {
			if sent++; uint32(sent) > request.GetLast() {
				return errors.New("it sends more flows than were asked for")
			}
			flows = append(flows, m.GetFlow())
			return nil
		})
		return flows, err
	})
	err = reach.Errors(answers)
	var all []*meshpb.Flow
	for _, answer := range answers {
		s := source{Target: answer.Target, log: a.log}
		for _, f := range answer.Value {
			if s.believed(f) {
				all = append(all, f)
			}
		}
	}
	if err != nil && len(all) == 0 {
		return err
	}
	slices.SortStableFunc(all, func(x, y *meshpb.Flow) int {
		return int(min(max(x.GetStartNs()+x.GetDurationNs()-y.GetStartNs()-y.GetDurationNs(), -1), 1))
	})
	for _, f := range all[max(0, len(all)-int(request.GetLast())):] {
		if err := p.Print(f); err != nil {
			return err
		}
	}
	return errors.Join(p.Flush(), err)
}

// receive calls fn with every message until the stream ends.
func receive(stream interface {
	Recv() (*meshpb.WatchFlowsResponse, error)
}, fn func(*meshpb.WatchFlowsResponse) error) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = fn(m)
		}
		if err != nil {
			return err
		}
	}
}

// follow prints the flows of all agents and waypoints as they come, until ctx is done. One
// that goes away is said so, and waited for.
func (a *app) follow(ctx context.Context, request *meshpb.WatchFlowsRequest, p *show.FlowPrinter) error {
	targets, err := a.tellers(ctx, request.GetFilter())
	if err != nil {
		return err
	}
	// The first connection tells what is wrong at once; later ones wait.
	answers := reach.Ask(ctx, a.mesh.Timeout, targets, func(context.Context, *admin.Client) (bool, error) { return true, nil })
	if err := reach.Errors(answers); err != nil {
		if !slices.ContainsFunc(answers, func(answer reach.Answer[bool]) bool { return answer.Err == nil }) {
			return err
		}
		fmt.Fprintf(a.log, "heddle: %v\n", err)
	}
	var mu sync.Mutex
	if err := p.Flush(); err != nil { // the header, before the first flow
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error // to show
	show := func(s *source, m *meshpb.WatchFlowsResponse) error {
		mu.Lock()
		defer mu.Unlock()
		if m.GetLost() > 0 {
			fmt.Fprintf(a.log, "heddle: %d flows of the %s came faster than they could be shown\n", m.GetLost(), s)
		}
		if m.GetFlow() == nil || !s.believed(m.GetFlow()) || failed != nil {
			return nil
		}
		if failed = errors.Join(p.Print(m.GetFlow()), p.Flush()); failed != nil {
			cancel()
		}
		return failed
	}
	ended := make([]error, len(targets))
	var watching sync.WaitGroup
	for i, t := range targets {
		watching.Go(func() {
			if err := a.watch(ctx, &source{Target: t, log: a.log}, request, show); err != nil {
				ended[i] = fmt.Errorf("the %s: %w", t, err)
				fmt.Fprintf(a.log, "heddle: going on without the %s: %v\n", t, err)
			}
		})
	}
	watching.Wait()
	if failed != nil || ctx.Err() != nil {
		return failed
	}
	return errors.Join(ended...) // there is nobody left to follow
}

// watch follows one source, again and again while it restarts. An error is why there is no
// use in going on with it; the others are none the worse.
func (a *app) watch(ctx context.Context, s *source, request *meshpb.WatchFlowsRequest, show func(*source, *meshpb.WatchFlowsResponse) error) error {
	gone := false
	for {
		client, err := s.Dial(ctx)
		if err == nil {
			gone = false
			err = watchOnce(ctx, client, s, request, show)
			request = &meshpb.WatchFlowsRequest{Filter: request.GetFilter(), Follow: true}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, admin.ErrUnreachable) {
			return err
		}
		if !gone {
			gone = true
			fmt.Fprintf(a.log, "heddle: the %s is gone; waiting for it\n", s)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func watchOnce(ctx context.Context, client *admin.Client, s *source, request *meshpb.WatchFlowsRequest, show func(*source, *meshpb.WatchFlowsResponse) error) error {
	stream, err := client.Flows.Watch(ctx, request)
	if err == nil {
		err = receive(stream, func(m *meshpb.WatchFlowsResponse) error { return show(s, m) })
	}
	return errors.Join(admin.Explain(err), client.Close())
}

func (a *app) connections() *cobra.Command {
	var wide bool
	cmd := &cobra.Command{
		Use: "connections", Args: cobra.NoArgs, Short: "Show the connections that are open now",
		Example: `  heddle connections --workload shop/db`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := readFilter(cmd)
			if err != nil {
				return err
			}
			answers, err := agents(cmd.Context(), a, func(ctx context.Context, c *admin.Client) ([]*meshpb.Flow, error) {
				response, err := c.Admin.Connections(ctx, &meshpb.ConnectionsRequest{Filter: filter})
				return response.GetConnections(), err
			})
			p, shown := a.flowPrinter(wide), 0
			for _, answer := range answers {
				for _, f := range answer.Value {
					shown++
					if err := p.Print(f); err != nil {
						return err
					}
				}
			}
			if err != nil && shown == 0 {
				return err
			}
			return errors.Join(p.Flush(), err)
		},
	}
	cmd.Flags().BoolVar(&wide, "wide", false, "more columns: identities, latencies, retransmits")
	filterFlags(cmd)
	a.completeNamespaces(cmd, "namespace")
	return cmd
}
