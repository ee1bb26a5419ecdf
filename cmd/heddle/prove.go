package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/adversary"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
)

func (a *app) prove() *cobra.Command {
	var attacked string
	var port uint16
	var peers []string
	cmd := &cobra.Command{
		Use: "prove [POD]", Args: cobra.MaximumNArgs(1), Short: "Show from the kernel's counters what left and entered each pod",
		Long: `Read, from the kernel, what the gate of each pod counted since enrolment: bytes in
mutual TLS, plaintext that policy allowed and with whom, what was dropped and why.

With --attack POD, try the ways around the gate that a pod with NET_ADMIN and
NET_RAW has, and from the wire; a tap behind the gate and the kernel's counters
say what became of each. It needs root, and a local mesh, whose addresses alone it
sends to; or a node of a cluster, to be run there, with the address of a pod on
another node, which is sent to. Exit status 1 if anything got through, or if it was
not shown that nothing did.`,
		Example: `  heddle prove
  heddle prove shop/web
  heddle prove --attack shop/web
  heddle prove --attack shop/web --peer 10.244.2.7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if attacked != "" {
				if len(args) > 0 {
					return fmt.Errorf("%w: --attack names the pod: %s is one too many", errUsage, args[0])
				}
				return a.attack(cmd.Context(), attacked, port, peers)
			}
			pod := ""
			if len(args) > 0 {
				pod = args[0]
			}
			return a.showProof(cmd.Context(), pod)
		},
	}
	cmd.Flags().StringVar(&attacked, "attack", "", "try to get around the gate of this pod, NAMESPACE/NAME")
	cmd.Flags().Uint16Var(&port, "port", 80, "with --attack: the application's port, STRICT")
	cmd.Flags().StringSliceVar(&peers, "peer", nil, "with --attack, on a node of a cluster: addresses of a pod on another node, one of a family")
	return cmd
}

// attack runs the adversarial suite against one pod's gate.
func (a *app) attack(ctx context.Context, pod string, port uint16, peers []string) error {
	parties, err := adversary.Find(ctx, &a.mesh, pod, peers)
	if err != nil {
		return err
	}
	held, err := parties.Run(ctx, port, adversary.Report{Out: a.out, Color: a.color, JSON: a.output == "json"})
	if err == nil && !held {
		err = errNotWell
	}
	return err
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

func (a *app) showProof(ctx context.Context, pod string) error {
	var all []show.Proof
	answers, err := agents(ctx, a, func(ctx context.Context, c *admin.Client) (*meshpb.ProveResponse, error) {
		response, err := c.Admin.Prove(ctx, &meshpb.ProveRequest{Workload: pod})
		if pod != "" && a.mesh.Socket == "" && isNotFound(err) {
			return nil, nil // another node's, maybe
		}
		return response, err
	})
	for _, answer := range answers {
		for _, p := range answer.Value.GetPods() {
			all = append(all, show.ProofOf(answer.Value.GetNode(), p))
		}
	}
	if len(all) == 0 && err != nil {
		return err
	}
	if pod != "" && len(all) == 0 {
		return fmt.Errorf("no pod %s is enrolled: `heddle check` lists those that are", pod)
	}
	// An agent that does not answer hides the pods of its node only.
	if a.output == "json" {
		err = errors.Join(a.document(all), err)
	} else {
		err = errors.Join(show.Proofs(a.out, a.color, all), err)
	}
	if err == nil && slices.ContainsFunc(all, func(p show.Proof) bool { return p.Error != "" }) {
		err = errNotWell
	}
	return err
}
