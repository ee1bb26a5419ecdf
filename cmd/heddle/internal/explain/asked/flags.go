package asked

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Flags are what a command line says of a request.
type Flags struct {
	method, path, host string
	headers            []string
}

// Add defines the flags, and how they are completed.
func (f *Flags) Add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.method, "method", "", "ask about a request with this method (GET if another of these flags is given)")
	cmd.Flags().StringVar(&f.path, "path", "", "its path, with its query (/ unless given)")
	cmd.Flags().StringVar(&f.host, "host", "", "its host, with a port if it has one (the service's name unless given)")
	cmd.Flags().StringArrayVar(&f.headers, "header", nil, "one of its headers, as NAME=VALUE; may be repeated")
	methods := cobra.FixedCompletions([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"}, cobra.ShellCompDirectiveNoFileComp)
	for name, complete := range map[string]cobra.CompletionFunc{"method": methods, "path": cobra.NoFileCompletions, "host": cobra.NoFileCompletions, "header": cobra.NoFileCompletions} {
		if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
			panic(err) // the flag is defined above
		}
	}
}

// Parse returns the request; nil when no flag is about one. Errors name the flag.
func (f *Flags) Parse(cmd *cobra.Command) (*Request, error) {
	for _, name := range []string{"method", "path", "host"} {
		if flag := cmd.Flags().Lookup(name); flag.Changed && flag.Value.String() == "" {
			return nil, fmt.Errorf("--%s is empty: give it a value, or leave it out", name)
		}
	}
	if f.method+f.path+f.host == "" && len(f.headers) == 0 {
		return nil, nil
	}
	return Parse(f.method, f.host, f.path, f.headers)
}
