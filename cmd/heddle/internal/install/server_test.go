package install

import (
	"os"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/apiserver"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// server is a real API server with its etcd, and nothing else: no controller
// does what it is asked for. It returns a kubeconfig.
func server(t *testing.T) string {
	t.Helper()
	return apiserver.Start(t).Kubeconfig
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
