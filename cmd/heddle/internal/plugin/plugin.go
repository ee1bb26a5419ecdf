// Package plugin lets the program be called by other names: as kubectl-heddle it
// is kubectl's plugin, and says so in its usage; as kubectl_complete-heddle it
// completes that plugin's command lines, as kubectl asks for it. It knows no
// command.
package plugin

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// Called prepares a root command for the name that the program was called by, the
// first of args. It returns that name as a person types it, and the arguments.
func Called(root *cobra.Command, args []string) (name string, rest []string) {
	if len(args) == 0 {
		return root.Name(), nil
	}
	rest = args[1:]
	switch filepath.Base(args[0]) {
	case "kubectl_complete-heddle": // it gets the words to complete
		rest = append([]string{cobra.ShellCompRequestCmd}, rest...)
	case "kubectl-heddle":
	default:
		return root.Name(), rest
	}
	name = "kubectl " + root.Name()
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: name}
	rename(root, root.Name(), name)
	return name, rest
}

// rename has the examples and texts of a command, and of those below it, begin
// with the name by which it is called.
func rename(cmd *cobra.Command, from, to string) {
	cmd.Example = strings.ReplaceAll("\n"+cmd.Example, "\n  "+from+" ", "\n  "+to+" ")[1:]
	cmd.Long = strings.ReplaceAll(cmd.Long, "`"+from+" ", "`"+to+" ")
	for _, sub := range cmd.Commands() {
		rename(sub, from, to)
	}
}
