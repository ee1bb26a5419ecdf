// Package spire runs SPIRE's own programs, spire-server and spire-agent, which `make spire`
// builds, as tests want them. It is imported by tests only, and knows nothing of the mesh.
// The methods of a SPIRE are the test goroutine's.
package spire

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// patience bounds each wait for SPIRE: its loops are of seconds, and the machine may be busy.
const patience = 2 * time.Minute

// Config says what a SPIRE is to be.
type Config struct {
	// Programs is the folder of the programs, HEDDLE_SPIRE of `make spire`.
	Programs string
	// TrustDomain is its name, without a scheme.
	TrustDomain string
	// NetNS is the path of the network namespace that server and agent run in, which has its
	// loopback up; "" is the test's.
	NetNS string
	// Federation is the block of that name in the server's configuration; "" for none. In it
	// $DIR is the folder that Dir returns.
	Federation string
	// Files are written to that folder beforehand, by name.
	Files map[string][]byte
}

// SPIRE is a server, and an agent once StartAgent has started it.
type SPIRE struct {
	t    *testing.T
	cfg  Config
	dir  string
	port int
	kill []func()
}

// Start starts a server and waits until it is well. Server and agent end with the test, and
// their logs are shown when it fails.
func Start(t *testing.T, cfg Config) *SPIRE {
	t.Helper()
	if cfg.Programs == "" {
		t.Fatal("HEDDLE_SPIRE does not name the folder of SPIRE's programs: run `make spire`")
	}
	dir, err := os.MkdirTemp("", "spire") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a folder of the machine's temporary ones
	s := &SPIRE{t: t, cfg: cfg, dir: dir, port: FreePort(t, cfg.NetNS)}
	for name, data := range cfg.Files {
		s.file(name, string(data))
	}
	config := fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = %d
  socket_path = "%s/server.sock"
  trust_domain = "%s"
  data_dir = "%s/server"
  log_level = "INFO"
  ca_ttl = "168h"
  default_x509_svid_ttl = "1h"
  %s
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "%s/store.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
`, s.port, dir, cfg.TrustDomain, dir, strings.ReplaceAll(cfg.Federation, "$DIR", dir), dir)
	s.run("server.log", "spire-server", "run", "-config", s.file("server.conf", config))
	s.well("spire-server", "server.sock")
	return s
}

// StartAgent starts the agent, spiffe://TRUST_DOMAIN/host, and waits until it is well.
func (s *SPIRE) StartAgent() {
	s.t.Helper()
	token := strings.TrimSpace(strings.TrimPrefix(s.Server("token", "generate", "-spiffeID", s.host()), "Token:"))
	config := fmt.Sprintf(`agent {
  server_address = "127.0.0.1"
  server_port = %d
  socket_path = "%s/agent.sock"
  trust_domain = "%s"
  trust_bundle_path = "%s"
  data_dir = "%s/agent"
  log_level = "INFO"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, s.port, s.dir, s.cfg.TrustDomain, s.file("bundle.pem", s.Server("bundle", "show")), s.dir)
	s.run("agent.log", "spire-agent", "run", "-config", s.file("agent.conf", config), "-joinToken", token)
	s.well("spire-agent", "agent.sock")
}

func (s *SPIRE) well(program, socket string) {
	s.t.Helper()
	testenv.Eventually(s.t, patience, program+" is well", func() bool {
		return exec.Command(s.program(program), "healthcheck", "-socketPath", filepath.Join(s.dir, socket)).Run() == nil
	})
}

func (s *SPIRE) host() string { return "spiffe://" + s.cfg.TrustDomain + "/host" }

// Entry makes a registration entry for this process, at the agent.
func (s *SPIRE) Entry(id string, more ...string) {
	s.t.Helper()
	s.Server(append([]string{"entry", "create", "-parentID", s.host(), "-spiffeID", id, "-selector", fmt.Sprintf("unix:uid:%d", os.Getuid())}, more...)...)
}

// Address is the server's, of its API over TCP; WorkloadAPI the agent's, of the form unix:///PATH.
func (s *SPIRE) Address() string     { return fmt.Sprintf("127.0.0.1:%d", s.port) }
func (s *SPIRE) WorkloadAPI() string { return "unix://" + s.dir + "/agent.sock" }

// Dir is a folder of its own.
func (s *SPIRE) Dir() string { return s.dir }

// FreePort is a TCP port of the loopback address of a network namespace, by its path, that
// nobody listens on; "" is the test's.
func FreePort(t *testing.T, netNS string) (port int) {
	t.Helper()
	err := in(netNS, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		port = l.Addr().(*net.TCPAddr).Port
		return l.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// in runs fn in a network namespace, or in the test's own.
func in(netNS string, fn func() error) error {
	if netNS == "" {
		return fn()
	}
	return testenv.InNetNS(netNS, fn)
}

func (s *SPIRE) program(name string) string { return filepath.Join(s.cfg.Programs, name) }

func (s *SPIRE) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// run starts a program, which ends with the test; its log is shown when the test fails.
func (s *SPIRE) run(log, name string, args ...string) {
	s.t.Helper()
	out, err := os.Create(filepath.Join(s.dir, log))
	if err != nil {
		s.t.Fatal(err)
	}
	command := exec.Command(s.program(name), args...)
	command.Stdout, command.Stderr = out, out
	if err := in(s.cfg.NetNS, command.Start); err != nil {
		s.t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_, _ = command.Process.Kill(), command.Wait() // it has been told to end, and says so
		text, err := os.ReadFile(out.Name())
		if err == nil && s.t.Failed() {
			s.t.Logf("%s of %s:\n%s", name, s.cfg.TrustDomain, text)
		}
		_ = out.Close()
	})
	s.kill = append(s.kill, end)
	s.t.Cleanup(end)
}

// Server runs a command of spire-server's and returns what it prints. One that fails fails the test.
func (s *SPIRE) Server(args ...string) string {
	s.t.Helper()
	out, err := exec.Command(s.program("spire-server"), append(args, "-socketPath", s.dir+"/server.sock")...).CombinedOutput()
	if err != nil {
		s.t.Errorf("spire-server %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Roots are those of `spire-server bundle show`.
func (s *SPIRE) Roots() []*x509.Certificate {
	s.t.Helper()
	var all []*x509.Certificate
	for rest := []byte(s.Server("bundle", "show")); ; {
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
func (s *SPIRE) authority(which string) string {
	s.t.Helper()
	text := s.Server("localauthority", "x509", "show", "-output", "json")
	var all map[string]struct {
		ID string `json:"authority_id"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil || all[which].ID == "" {
		s.t.Fatalf("no %s authority: %v: %s", which, err, text)
	}
	return all[which].ID
}

// Prepare adds a root, Activate has it sign, and Revoke takes the one before out.
func (s *SPIRE) Prepare() { s.t.Helper(); s.Server("localauthority", "x509", "prepare") }

// Activate is described at Prepare.
func (s *SPIRE) Activate() {
	s.t.Helper()
	s.Server("localauthority", "x509", "activate", "-authorityID", s.authority("prepared"))
}

// Revoke waits until the SVIDs that the agent gives are of the new root: to taint the old one
// replaces them.
func (s *SPIRE) Revoke() {
	s.t.Helper()
	old, next := s.authority("old"), s.Roots()
	s.Server("localauthority", "x509", "taint", "-authorityID", old)
	testenv.Eventually(s.t, patience, "workloads have SVIDs of SPIRE's new root", func() bool {
		svid, err := workloadapi.FetchX509SVID(s.t.Context(), workloadapi.WithAddr(s.WorkloadAPI()))
		return err == nil && svid.Certificates[len(svid.Certificates)-1].CheckSignatureFrom(next[len(next)-1]) == nil
	})
	s.Server("localauthority", "x509", "revoke", "-authorityID", old)
}

// Stop ends server and agent.
func (s *SPIRE) Stop() {
	for _, kill := range s.kill {
		kill()
	}
}
