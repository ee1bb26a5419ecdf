package interop

import (
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

//go:embed *.yaml
var configs embed.FS

// settings are what a configuration of Envoy leaves open.
type settings struct {
	certificate *tls.Certificate
	root        *x509.Certificate
	peer        spiffeid.ID
	authority   string
	// listen is Envoy's own; target is the tunnel's endpoint or the application.
	listen, target netip.AddrPort
}

// write writes the configuration and its files into a folder, and returns its
// path.
func (s settings) write(t *testing.T, dir, config string) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(s.certificate.PrivateKey)
	must(t, err)
	writePEM(t, dir+"/cert.pem", "CERTIFICATE", s.certificate.Certificate...)
	writePEM(t, dir+"/key.pem", "PRIVATE KEY", key)
	writePEM(t, dir+"/root.pem", "CERTIFICATE", s.root.Raw)
	text, err := configs.ReadFile(config)
	must(t, err)
	address := func(a netip.AddrPort) string { return fmt.Sprintf("{address: %q, port_value: %d}", a.Addr(), a.Port()) }
	filled := strings.NewReplacer("%LISTEN%", address(s.listen), "%TARGET%", address(s.target), "%DIR%", dir,
		"%PEER%", s.peer.String(), "%AUTHORITY%", s.authority).Replace(string(text))
	path := filepath.Join(dir, config)
	must(t, os.WriteFile(path, []byte(filled), 0o600))
	return path
}

// run runs Envoy until the test ends, by a command that program makes. It
// returns when Envoy serves.
func run(t *testing.T, program func(name string, args ...string) *exec.Cmd, config string, s settings) {
	t.Helper()
	binary, err := exec.Command("./envoy.sh").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("get Envoy: %v", err)
	}
	dir := t.TempDir()
	path := s.write(t, dir, config)
	log, err := os.Create(dir + "/log")
	must(t, err)
	defer log.Close()
	cmd := program(strings.TrimSpace(string(binary)), "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "info")
	cmd.Stdout, cmd.Stderr = log, log
	ended := testenv.StartBound(t, cmd)
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("kill Envoy: %v", err)
		}
		<-ended
		if t.Failed() {
			if out, err := os.ReadFile(dir + "/log"); err == nil {
				t.Logf("Envoy said at last:\n%s", out[max(0, len(out)-4000):])
			}
		}
	})
	testenv.Eventually(t, wait, "Envoy serves", func() bool {
		out, err := os.ReadFile(dir + "/log")
		return err == nil && strings.Contains(string(out), "starting main dispatch loop")
	})
}

func writePEM(t *testing.T, path, kind string, ders ...[]byte) {
	t.Helper()
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	must(t, os.WriteFile(path, text, 0o600))
}
