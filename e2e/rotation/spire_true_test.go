//go:build spire

package rotation_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
)

// TestTrueSPIRE is TestSPIRE with the programs spire-server and spire-agent, which
// `make spire` builds and names.
func TestTrueSPIRE(t *testing.T) {
	programs := os.Getenv("HEDDLE_SPIRE")
	if programs == "" {
		t.Fatal("HEDDLE_SPIRE does not name the folder of SPIRE's programs: run `make spire`")
	}
	s := startSPIRE(t, programs)
	spireIssues(t, s)
}

// TestTrueSPIREIsAwaited starts the operator before SPIRE has the operator's entry; and a
// workload that has its SVID of SPIRE and one of the mesh believe each other.
func TestTrueSPIREIsAwaited(t *testing.T) {
	programs := os.Getenv("HEDDLE_SPIRE")
	if programs == "" {
		t.Fatal("HEDDLE_SPIRE does not name the folder of SPIRE's programs: run `make spire`")
	}
	s := startSPIREWithout(t, programs)
	go func() {
		time.Sleep(3 * time.Second)
		s.entry()
	}()
	began := time.Now()
	w := newWorldBelow(t, s.where())
	if waited := time.Since(began); waited < 2*time.Second {
		t.Errorf("the operator served after %s, before SPIRE had its entry", waited)
	}
	one, _ := w.node(1, filepath.Join(t.TempDir(), "n1"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.where().WorkloadAPI)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	cert, err := one.Source().Certificate(workload(1))
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	deadline := time.Now().Add(patience)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	server := tls.Server(a, tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(workload(1))))
	done := make(chan error, 1)
	go func() { _, err := io.ReadFull(server, make([]byte, 1)); done <- err }()
	mesh := tlsconfig.MTLSClientConfig(source, one.Source(), tlsconfig.AuthorizeAny())
	mesh.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	conn := tls.Client(b, mesh)
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if id := conn.ConnectionState().PeerCertificates[0].URIs[0].String(); id != operatorEntry {
		t.Errorf("SPIRE's workload is %s", id)
	}
}

const operatorEntry = "spiffe://test.example/heddle/operator"

// trueSPIRE is a server and an agent of the programs.
type trueSPIRE struct {
	t             *testing.T
	programs, dir string
	port          int
	kill          []func()
}

func startSPIRE(t *testing.T, programs string) *trueSPIRE {
	s := startSPIREWithout(t, programs)
	s.entry()
	return s
}

// startSPIREWithout starts server and agent, without the operator's entry.
func startSPIREWithout(t *testing.T, programs string) *trueSPIRE {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a folder of the machine's temporary ones
	s := &trueSPIRE{t: t, programs: programs, dir: dir, port: freePort(t)}
	server := fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = %d
  socket_path = "%s/server.sock"
  trust_domain = "test.example"
  data_dir = "%s/server"
  log_level = "INFO"
  ca_ttl = "168h"
  default_x509_svid_ttl = "1h"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "%s/store.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
`, s.port, dir, dir, dir)
	s.run("server.log", "spire-server", "run", "-config", s.file("server.conf", server))
	testenv.Eventually(t, patience, "the SPIRE server is well", func() bool {
		return exec.Command(s.program("spire-server"), "healthcheck", "-socketPath", s.dir+"/server.sock").Run() == nil
	})
	token := strings.TrimSpace(strings.TrimPrefix(s.server("token", "generate", "-spiffeID", "spiffe://test.example/host"), "Token:"))
	bundle := s.file("bundle.pem", s.server("bundle", "show"))
	agent := fmt.Sprintf(`agent {
  server_address = "127.0.0.1"
  server_port = %d
  socket_path = "%s/agent.sock"
  trust_domain = "test.example"
  trust_bundle_path = "%s"
  data_dir = "%s/agent"
  log_level = "INFO"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, s.port, dir, bundle, dir)
	s.run("agent.log", "spire-agent", "run", "-config", s.file("agent.conf", agent), "-joinToken", token)
	testenv.Eventually(t, patience, "the SPIRE agent is well", func() bool {
		return exec.Command(s.program("spire-agent"), "healthcheck", "-socketPath", s.dir+"/agent.sock").Run() == nil
	})
	return s
}

// entry makes the operator's registration entry.
func (s *trueSPIRE) entry() {
	s.server("entry", "create", "-parentID", "spiffe://test.example/host", "-spiffeID", operatorEntry,
		"-selector", fmt.Sprintf("unix:uid:%d", os.Getuid()), "-downstream")
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *trueSPIRE) program(name string) string { return filepath.Join(s.programs, name) }

func (s *trueSPIRE) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// run starts a program, which ends with the test; its log is shown when the test fails.
func (s *trueSPIRE) run(log, name string, args ...string) {
	s.t.Helper()
	out, err := os.Create(filepath.Join(s.dir, log))
	if err != nil {
		s.t.Fatal(err)
	}
	command := exec.Command(s.program(name), args...)
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		s.t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_, _ = command.Process.Kill(), command.Wait() // it has been told to end, and says so
		text, err := os.ReadFile(out.Name())
		if err == nil && s.t.Failed() {
			s.t.Logf("%s:\n%s", name, text)
		}
		_ = out.Close()
	})
	s.kill = append(s.kill, end)
	s.t.Cleanup(end)
}

// server runs a command of the server's.
func (s *trueSPIRE) server(args ...string) string {
	s.t.Helper()
	out, err := exec.Command(s.program("spire-server"), append(args, "-socketPath", s.dir+"/server.sock")...).CombinedOutput()
	if err != nil {
		s.t.Errorf("spire-server %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *trueSPIRE) where() *operator.SPIRE {
	return &operator.SPIRE{Server: fmt.Sprintf("127.0.0.1:%d", s.port), WorkloadAPI: "unix://" + s.dir + "/agent.sock"}
}

// roots are those of `spire-server bundle show`.
func (s *trueSPIRE) roots() []*x509.Certificate {
	s.t.Helper()
	var all []*x509.Certificate
	for rest := []byte(s.server("bundle", "show")); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, cert)
	}
}

// authority is the ID of the one that is active, prepared or old.
func (s *trueSPIRE) authority(which string) string {
	s.t.Helper()
	text := s.server("localauthority", "x509", "show", "-output", "json")
	var all map[string]struct {
		ID string `json:"authority_id"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil || all[which].ID == "" {
		s.t.Fatalf("no %s authority: %v: %s", which, err, text)
	}
	return all[which].ID
}

func (s *trueSPIRE) prepare() { s.server("localauthority", "x509", "prepare") }

func (s *trueSPIRE) activate() {
	s.server("localauthority", "x509", "activate", "-authorityID", s.authority("prepared"))
}

// revoke waits until SPIRE's own SVIDs are of the new root: to taint the old one replaces them.
func (s *trueSPIRE) revoke() {
	old := s.authority("old")
	s.server("localauthority", "x509", "taint", "-authorityID", old)
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	next := s.roots()
	testenv.Eventually(s.t, patience, "the operator has an SVID of SPIRE's new root", func() bool {
		svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(s.where().WorkloadAPI))
		return err == nil && svid.Certificates[len(svid.Certificates)-1].CheckSignatureFrom(next[len(next)-1]) == nil
	})
	s.server("localauthority", "x509", "revoke", "-authorityID", old)
}

func (s *trueSPIRE) stop() {
	for _, kill := range s.kill {
		kill()
	}
}
