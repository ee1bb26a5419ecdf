package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
)

func (a *app) prove() *cobra.Command {
	var attacked string
	var port uint16
	cmd := &cobra.Command{
		Use: "prove [POD]", Args: cobra.MaximumNArgs(1), Short: "Show from the kernel's counters what left and entered each pod",
		Long: `Read, from the kernel, what the gate of each pod counted since enrolment: bytes in
mutual TLS, plaintext that policy allowed and with whom, what was dropped and why.

With --attack POD, try the ways around the gate that a pod with NET_ADMIN and
NET_RAW has, and from the wire; a tap behind the gate and the kernel's counters
say what became of each. It needs a local mesh and root, and sends packets to
addresses of that mesh only. Exit status 1 if anything got through, or if it was
not shown that nothing did.`,
		Example: `  heddle prove
  heddle prove shop/web
  heddle prove --attack shop/web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if attacked != "" {
				if len(args) > 0 {
					return fmt.Errorf("%w: --attack names the pod: %s is one too many", errUsage, args[0])
				}
				return a.attack(cmd.Context(), attacked, port)
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
	return cmd
}

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
