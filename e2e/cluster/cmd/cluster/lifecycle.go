package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/build"
)

func (t *tool) upCommand() *cobra.Command {
	var o cluster.Options
	var nodes, pods, services string
	command := &cobra.Command{
		Use: "up", Args: args(cobra.NoArgs),
		Short: "Bring a cluster up",
		Long: `Bring a cluster up, and return when its nodes are Ready and its DNS answers: in
about 20 s once the programs are built, which takes about 12 minutes of two cores.
When it fails the machines stay, for ` + "`cluster logs`" + `; when it is interrupted, they go.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, r := range []struct {
				flag, text string
				prefix     *netip.Prefix
			}{{"--node-range", nodes, &o.NodeRange}, {"--pod-range", pods, &o.PodRange}, {"--service-range", services, &o.ServiceRange}} {
				if r.text == "" {
					continue
				}
				prefix, err := netip.ParsePrefix(r.text)
				if err != nil {
					return usageError{fmt.Errorf("%s: %w", r.flag, err)}
				}
				*r.prefix = prefix
			}
			return t.up(cmd.Context(), o)
		},
	}
	command.Flags().IntVar(&o.Workers, "workers", 2, "nodes that run pods")
	command.Flags().IntVar(&o.APIPort, "api-port", 0, "port of 127.0.0.1 that leads to the API server (default: a free one)")
	command.Flags().StringVar(&nodes, "node-range", "10.231.0.0/24", "addresses of the machines")
	command.Flags().StringVar(&pods, "pod-range", "10.244.0.0/16", "addresses of the pods; each node has a /24 of it")
	command.Flags().StringVar(&services, "service-range", "10.96.0.0/16", "addresses of the services")
	command.Flags().StringSliceVar(&o.IPFamilies, "ip-families", []string{"ipv4"}, "families of the pods' and services' addresses, the primary one first: ipv4; ipv6; ipv4,ipv6; ipv6,ipv4")
	command.Flags().StringVar(&o.ProxyMode, "proxy-mode", "nftables", "kube-proxy's mode: nftables or iptables")
	return command
}

func (t *tool) up(ctx context.Context, o cluster.Options) error {
	root, err := t.findRoot()
	if err != nil {
		return err
	}
	if o.Dir, err = t.stateDir(); err != nil {
		return err
	}
	o.Name, o.Root, o.Say = t.name, root, t.say
	if _, err := o.WithDefaults(); err != nil {
		return usageError{err}
	}
	// Before the clock of --timeout starts.
	if _, err := build.Ensure(ctx, root, t.say); err != nil {
		return err
	}
	bounded, cancel := t.bounded(ctx)
	defer cancel()
	c, err := cluster.Up(bounded, o)
	switch {
	case err == nil:
	case c != nil && ctx.Err() != nil:
		t.say("interrupted: taking the cluster down")
		return errors.Join(err, c.Down(context.WithoutCancel(ctx)))
	case c != nil:
		return fmt.Errorf("%w\nits machines are still there: look with `cluster logs NODE --name %s`, then `cluster down --name %[2]s`", err, t.name)
	default:
		return err
	}
	t.say("DNS answers: the cluster " + t.name + " is up")
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig())
	fmt.Printf("# kubectl of its version: %s\n", c.KubectlPath())
	return nil
}

func (t *tool) buildCommand() *cobra.Command {
	var enforcer bool
	command := &cobra.Command{
		Use: "build", Args: args(cobra.NoArgs),
		Short: "Build the programs that clusters run, and print their folder",
		Long: `Build the programs that clusters run, and print their folder. They are kept in
.cache/ of the checkout until their modules or the version of Go change. An
interrupted build goes on where it was: the Go build cache keeps the rest.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := t.findRoot()
			if err != nil {
				return err
			}
			programs, err := build.Ensure(cmd.Context(), root, t.say)
			if err != nil {
				return err
			}
			if enforcer {
				if _, err := build.Enforcer(cmd.Context(), root, t.say); err != nil {
					return err
				}
			}
			fmt.Println(programs.Dir)
			return nil
		},
	}
	command.Flags().BoolVar(&enforcer, "enforcer", false, "build kube-router too, which enforces NetworkPolicies in a test (four minutes more)")
	return command
}

func (t *tool) downCommand() *cobra.Command {
	var all bool
	command := &cobra.Command{
		Use: "down", Args: args(cobra.NoArgs),
		Short: "Take a cluster down, whatever state it is in",
		Long:  "Take a cluster down, whatever state it is in. It leaves no process, mount, network\nnamespace, cgroup or file behind. It is no error when there is no such cluster.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := t.bounded(cmd.Context())
			defer cancel()
			dir, err := t.stateDir()
			if err != nil {
				return err
			}
			names := []string{t.name}
			if all {
				if names, err = cluster.Names(dir); err != nil {
					return err
				}
			}
			for _, name := range names {
				c, err := cluster.Open(dir, name)
				if errors.Is(err, cluster.ErrNotFound) {
					t.say("there is no cluster " + name)
					continue
				}
				if err != nil {
					return err
				}
				if err := c.Down(ctx); err != nil {
					return err
				}
				t.say("the cluster " + name + " is gone")
			}
			return nil
		},
	}
	command.Flags().BoolVar(&all, "all", false, "every cluster whose state is in --dir")
	return command
}

func (t *tool) statusCommand() *cobra.Command {
	var output string
	command := &cobra.Command{
		Use: "status", Args: args(cobra.NoArgs),
		Short: "Show how a cluster fares; exit code 3 when it is not healthy",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("-o %s: use text or json", output)}
			}
			ctx, cancel := t.bounded(cmd.Context())
			defer cancel()
			c, err := t.open()
			if err != nil {
				return err
			}
			status, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if err := printStatus(status, output); err != nil {
				return err
			}
			if !status.Healthy {
				return errUnhealthy
			}
			return nil
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return command
}

func printStatus(s cluster.Status, output string) error {
	if output == "json" {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(s)
	}
	health := "healthy"
	if !s.Healthy {
		health = "NOT HEALTHY"
	}
	fmt.Printf("cluster %s: %s\nAPI server  %s\nkubeconfig  %s\n\n", s.Name, health, s.API, s.Kubeconfig)
	if s.APIError != "" {
		fmt.Printf("%s\n\n", s.APIError)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tROLE\tREADY\tADDRESS\tPODS\tPID\tPROGRAMS (STARTS)")
	for _, n := range s.Nodes {
		ready := "yes"
		if !n.Ready {
			ready = "no: " + n.Reason
		}
		var programs []string
		for _, p := range n.Programs {
			text := fmt.Sprintf("%s (%d)", p.Name, p.Starts)
			if p.PID == 0 {
				text = fmt.Sprintf("%s DOWN: %s", p.Name, p.LastExit)
			}
			programs = append(programs, text)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", n.Name, n.Role, ready, strings.Join(n.Addresses, ","), strings.Join(n.PodRanges, ","), n.PID, strings.Join(programs, ", "))
	}
	return w.Flush()
}
