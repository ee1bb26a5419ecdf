package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/period"
)

// withOperator calls fn with a client of the operator.
func (a *app) withOperator(ctx context.Context, fn func(meshpb.OperatorAdminClient) error) error {
	if a.mesh.OnCluster() {
		return fmt.Errorf("%w: there are no join tokens on Kubernetes: agents join by their pods' service account tokens", errUsage)
	}
	operators, err := a.mesh.Operators(ctx)
	if err != nil {
		return err
	}
	if len(operators) == 0 {
		if _, err := a.mesh.Local(); err != nil && a.mesh.Socket == "" {
			return err
		}
		return fmt.Errorf("%w: no operator on this machine: run this where it runs, or name its socket with --operator-socket", admin.ErrUnreachable)
	}
	client, err := operators[0].Dial(ctx)
	if err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	return errors.Join(admin.Explain(fn(meshpb.NewOperatorAdminClient(client.Conn()))), client.Close())
}

func (a *app) joinToken() *cobra.Command {
	cmd := &cobra.Command{
		Use: "join-token", Short: "Make, list and revoke the tokens with which nodes join", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var lifetime time.Duration
	create := &cobra.Command{
		Use: "create NODE", Args: cobra.ExactArgs(1), Short: "Make a token for one node, to be used once",
		Long: `Make a join token. It names one node, pins the authority's root, expires, and is
consumed by its first use. It is printed once and stored nowhere: give it to the
agent as a file, --join-token-file.

For waypoint/NAMESPACE/NAME in place of a node's name, it is for one replica of the
waypoint whose Service that is, who has it from its first use until it is revoked.
It lets nobody have a certificate.`,
		Example: `  heddle join-token create n3 --lifetime 15m > /run/heddle/join-token
  heddle join-token create waypoint/shop/gate > /run/heddle/waypoint-token`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withOperator(cmd.Context(), func(o meshpb.OperatorAdminClient) error {
				t, err := o.CreateJoinToken(cmd.Context(), &meshpb.CreateJoinTokenRequest{Node: args[0], LifetimeSeconds: int64(lifetime / time.Second)})
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.document(map[string]string{"token": t.GetToken(), "id": t.GetId(), "expires": show.Moment(t.GetExpiresNs())})
				}
				fmt.Fprintf(a.log, "Token %s for node %s, valid until %s.\n", t.GetId(), args[0], show.Moment(t.GetExpiresNs()))
				_, err = fmt.Fprintln(a.out, t.GetToken())
				return err
			})
		},
	}
	create.Flags().Var(period.Var(&lifetime, time.Hour), "lifetime", "how long it can be used, 1s to 7d")
	list := &cobra.Command{
		Use: "list", Args: cobra.NoArgs, Short: "List tokens, without their secrets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withOperator(cmd.Context(), func(o meshpb.OperatorAdminClient) error {
				response, err := o.ListJoinTokens(cmd.Context(), &meshpb.ListJoinTokensRequest{})
				if err != nil {
					return err
				}
				return a.printTokens(response.GetTokens())
			})
		},
	}
	revoke := &cobra.Command{
		Use: "revoke ID", Args: cobra.ExactArgs(1), Short: "End a token before it is used, or a waypoint's",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withOperator(cmd.Context(), func(o meshpb.OperatorAdminClient) error {
				if _, err := o.RevokeJoinToken(cmd.Context(), &meshpb.RevokeJoinTokenRequest{Id: args[0]}); err != nil {
					return err
				}
				if a.output == "json" {
					return a.document(map[string]string{"revoked": args[0]})
				}
				_, err := fmt.Fprintf(a.out, "Token %s is revoked.\n", args[0])
				return err
			})
		},
	}
	cmd.AddCommand(create, list, revoke)
	return cmd
}

func (a *app) printTokens(tokens []*meshpb.JoinToken) error {
	if a.output == "json" {
		list := []map[string]string{}
		for _, t := range tokens {
			list = append(list, map[string]string{"id": t.GetId(), "node": t.GetNode(), "state": t.GetState(),
				"created": show.Moment(t.GetCreatedNs()), "expires": show.Moment(t.GetExpiresNs()), "ended": show.Moment(t.GetEndedNs())})
		}
		return a.document(list)
	}
	t := show.NewTable(a.out, a.color, "ID", "NODE", "STATE", "CREATED", "EXPIRES", "ENDED")
	for _, k := range tokens {
		t.Add(show.Text(k.GetId()), show.Text(k.GetNode()), show.Text(k.GetState()), show.Text(show.Moment(k.GetCreatedNs())), show.Text(show.Moment(k.GetExpiresNs())), show.Text(show.Moment(k.GetEndedNs())))
	}
	return t.Flush()
}
