// Package certs is `heddle certs`: what expires when, and the rotation of the root
// and the intermediate. It asks an operator, which knows what the agents report; it
// decides nothing and keeps nothing.
package certs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/period"
)

// Program is the program that has the command.
type Program struct {
	Out, Log io.Writer
	Color    bool
	// Mesh and Output ("table" or "json") are filled in by flags.
	Mesh   *reach.Mesh
	Output *string
	// NotWell ends a command whose output has said what is wrong.
	NotWell error
}

const (
	// defaultWithin is from when a certificate of the authority expires soon.
	defaultWithin = 30 * 24 * time.Hour
	// defaultWait is what --wait alone means, and look how often it looks.
	defaultWait = 10 * time.Minute
	look        = time.Second
)

// Command returns certs.
func Command(p Program) *cobra.Command {
	within := defaultWithin
	cmd := &cobra.Command{
		Use: "certs", Args: cobra.NoArgs, Short: "Show which certificates expire when, and rotate the root and the intermediate",
		Long: `Show the certificates of the authority and, as the agents report them, of each
node and workload: issuer, kind of key, expiry, and when it is renewed; the keys of
JWT-SVIDs, and when they are replaced; the roots of federated trust domains; and how far a rotation is, and who holds it. Exit status 1 when a certificate of the authority
expires within --within, an SVID has less than a quarter of its life left or cannot
be renewed, a node does not report, the bundle of a federated trust domain is not
refreshed, or a key of JWT-SVIDs is not replaced; 3 when no operator answers.`,
		Example: `  heddle certs
  heddle certs --within 90d -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer *meshpb.CertificatesResponse
			err := p.ask(cmd.Context(), func(ctx context.Context, o meshpb.OperatorAdminClient) (err error) {
				answer, err = o.Certificates(ctx, &meshpb.CertificatesRequest{})
				return err
			})
			if err != nil {
				return err
			}
			report := Of(answer, time.Now(), within)
			if *p.Output == "json" {
				err = show.Document(p.Out, report)
			} else {
				err = report.Print(p.Out, p.Color)
			}
			if err == nil && !report.OK {
				err = p.NotWell
			}
			return err
		},
	}
	cmd.Flags().Var(period.Var(&within, defaultWithin), "within", "from when before its expiry a certificate of the authority is not well")
	cmd.AddCommand(p.rotate())
	return cmd
}

// what is asked of rotate.
type what struct {
	root, intermediate, abort, force, dry bool
	wait                                  time.Duration
}

func (p Program) rotate() *cobra.Command {
	var w what
	cmd := &cobra.Command{
		Use: "rotate", Args: cobra.NoArgs, Short: "Replace the root or the intermediate, without a connection that fails",
		Long: `Begin a rotation, which then goes on by itself, from stage to stage, as the agents
report; also when operators restart:

  distribute  every agent trusts the new root beside the old one, which signs
  reissue     the new one signs, and every SVID is replaced

and then the old root is no longer trusted. A rotation of the intermediate has the
second stage only. A node whose agent does not report holds it: ` + "`heddle certs`" + ` says
which, and why. --force goes on without the nodes that hold it and are not
connected; if they come back before the old root goes, they catch up, later they
have to join anew. --abort goes back: at once, or, once the new one signs, by
replacing SVIDs once more.`,
		Example: `  heddle certs rotate --root --dry-run
  heddle certs rotate --root --wait
  heddle certs rotate --intermediate --wait=30m -o json
  heddle certs rotate --abort`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w.wait = max(w.wait, 0)
			return p.doRotate(cmd.Context(), w)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&w.root, "root", false, "replace the root")
	flags.BoolVar(&w.intermediate, "intermediate", false, "replace the intermediate, or make the first one below the root")
	flags.BoolVar(&w.abort, "abort", false, "go back to what signed before")
	flags.BoolVar(&w.force, "force", false, "go on without the nodes that hold the rotation and are not connected")
	flags.BoolVar(&w.dry, "dry-run", false, "say whether it is possible and who would hold it; change nothing")
	flags.DurationVar(&w.wait, "wait", 0, "wait until it is complete, this long; alone: for the one that is under way")
	flags.Lookup("wait").NoOptDefVal = defaultWait.String()
	return cmd
}

// request is what the flags mean; nil is to wait only.
func (w what) request() (*meshpb.RotateCertificatesRequest, error) {
	r := &meshpb.RotateCertificatesRequest{DryRun: w.dry}
	chosen := 0
	for _, c := range []struct {
		set    bool
		action meshpb.RotateCertificatesRequest_Action
		kind   string
	}{
		{w.root, meshpb.RotateCertificatesRequest_ACTION_BEGIN, "root"},
		{w.intermediate, meshpb.RotateCertificatesRequest_ACTION_BEGIN, "intermediate"},
		{w.abort, meshpb.RotateCertificatesRequest_ACTION_ABORT, ""},
		{w.force, meshpb.RotateCertificatesRequest_ACTION_FORCE, ""},
	} {
		if c.set {
			chosen++
			r.Action, r.Kind = c.action, c.kind
		}
	}
	switch {
	case chosen == 0 && w.wait > 0 && !w.dry:
		return nil, nil
	case chosen != 1:
		return nil, fmt.Errorf("%w: choose one of --root, --intermediate, --abort and --force", reach.ErrUsage)
	case w.dry && w.wait > 0:
		return nil, fmt.Errorf("%w: --dry-run begins nothing to --wait for", reach.ErrUsage)
	}
	return r, nil
}

func (p Program) doRotate(ctx context.Context, w what) error {
	request, err := w.request()
	if err != nil {
		return err
	}
	var state *meshpb.RotationState
	if request != nil {
		err := p.ask(ctx, func(ctx context.Context, o meshpb.OperatorAdminClient) error {
			answer, err := o.RotateCertificates(ctx, request)
			state = answer.GetRotation()
			return err
		})
		if err != nil {
			return err
		}
	}
	if w.wait > 0 {
		ended := ""
		if state != nil {
			ended = show.Moment(state.GetEndedNs())
		}
		if state, err = p.await(ctx, w.wait, ended, request == nil); err != nil {
			return err
		}
	}
	r := rotationOf(state)
	if *p.Output == "json" {
		return show.Document(p.Out, r)
	}
	_, err = fmt.Fprintln(p.Out, r.text(w.dry))
	return err
}

// await looks until no rotation is under way, and says when that changes.
func (p Program) await(ctx context.Context, bound time.Duration, before string, any bool) (*meshpb.RotationState, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	told := ""
	var last Rotation
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		var state *meshpb.RotationState
		err := p.ask(ctx, func(ctx context.Context, o meshpb.OperatorAdminClient) error {
			answer, err := o.Certificates(ctx, &meshpb.CertificatesRequest{})
			state = answer.GetRotation()
			return err
		})
		switch {
		case err == nil:
			last = rotationOf(state)
			if last.Kind == "" && (any || last.EndedAt != before) {
				return state, nil
			}
			if text := last.text(false); text != told && last.Kind != "" {
				told = text
				fmt.Fprintln(p.Log, text)
			}
		case ctx.Err() == nil && !errors.Is(err, admin.ErrUnreachable): // operators may restart meanwhile
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("not complete after %v: %s; it goes on by itself", bound, strings.ReplaceAll(last.text(false), "\n", "; "))
		case <-tick.C:
		}
	}
}

// ask asks the first operator that answers.
func (p Program) ask(ctx context.Context, ask func(context.Context, meshpb.OperatorAdminClient) error) error {
	operators, err := p.Mesh.Operators(ctx)
	if err != nil {
		return err
	}
	if len(operators) == 0 {
		if !p.Mesh.OnCluster() && p.Mesh.Socket == "" {
			if _, err := p.Mesh.Local(); err != nil {
				return err
			}
		}
		if p.Mesh.OnCluster() {
			namespace := cmp.Or(p.Mesh.Cluster.Namespace, "heddle-system")
			return fmt.Errorf("%w: no operator runs in namespace %s of the cluster; remedy: `kubectl -n %s get deployment heddle-operator` says whether it is to, or name the namespace with --system-namespace", admin.ErrUnreachable, namespace, namespace)
		}
		return fmt.Errorf("%w: no operator: run this where it runs, name its socket with --operator-socket, or a cluster with --kubeconfig", admin.ErrUnreachable)
	}
	var errs []error
	for _, o := range operators {
		answers := reach.Ask(ctx, p.Mesh.Timeout, []reach.Target{o}, func(ctx context.Context, c *admin.Client) (struct{}, error) {
			return struct{}{}, ask(ctx, meshpb.NewOperatorAdminClient(c.Conn()))
		})
		if err = answers[0].Err; err == nil || !errors.Is(err, admin.ErrUnreachable) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
