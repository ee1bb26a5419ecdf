package startup

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/admin"
)

// AdminPipe returns the subcommand by which `heddle` reaches a program's admin
// socket from another machine: whoever may execute a command in the program's pod
// may use it. Socket is the default of --admin-socket.
func AdminPipe(socket string, env func(string) (string, bool), in io.Reader, out io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin-pipe",
		Short: "Connect standard input and output to the admin socket",
		Long: `Connect standard input and output to the admin socket of the program that runs
in this container, until that one, or the input, has ended. It is how heddle
reaches a pod's program: through the API server, as kubectl exec does.`,
		Args:    cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return FromEnvironment(cmd.Flags(), env) },
		RunE:    func(cmd *cobra.Command, _ []string) error { return admin.Pipe(cmd.Context(), socket, in, out) },
	}
	cmd.Flags().StringVar(&socket, "admin-socket", socket, "the unix socket, which only root reaches, or the program's own user")
	return cmd
}
