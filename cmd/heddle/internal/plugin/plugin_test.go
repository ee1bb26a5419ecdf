package plugin

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestCalled(t *testing.T) {
	for called, want := range map[string]string{
		"heddle": "  heddle x NAME [flags]|  heddle x a\n  heddle x b|See `heddle y`", "/usr/bin/heddle-1.2": "  heddle x NAME [flags]|  heddle x a\n  heddle x b|See `heddle y`",
		"/usr/local/bin/kubectl-heddle": "  kubectl heddle x NAME [flags]|  kubectl heddle x a\n  kubectl heddle x b|See `kubectl heddle y`",
	} {
		root := &cobra.Command{Use: "heddle"}
		root.AddCommand(&cobra.Command{Use: "x NAME", Long: "See `heddle y`.", Example: "  heddle x a\n  heddle x b", Run: func(*cobra.Command, []string) {}})
		name, args := Called(root, []string{called, "x", "--help"})
		var out bytes.Buffer
		root.SetArgs(args)
		root.SetOut(&out)
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(want, "|") {
			if !strings.Contains(out.String(), part) {
				t.Errorf("called %s: no %q in\n%s", called, part, out.String())
			}
		}
		if plugin := strings.Contains(called, "kubectl"); plugin != (name == "kubectl heddle") {
			t.Errorf("called %s: its name is %q", called, name)
		}
	}
}

func TestCompletion(t *testing.T) {
	root := &cobra.Command{Use: "heddle"}
	root.AddCommand(&cobra.Command{Use: "enroll", Run: func(*cobra.Command, []string) {}})
	_, args := Called(root, []string{"/x/kubectl_complete-heddle", "enr"})
	var out bytes.Buffer
	root.SetArgs(args)
	root.SetOut(&out)
	if err := root.Execute(); err != nil || !strings.HasPrefix(out.String(), "enroll\n") {
		t.Errorf("%v: %s", err, out.String())
	}
	if name, args := Called(root, nil); name != "heddle" || args != nil {
		t.Errorf("called without a name: %s %v", name, args)
	}
}
