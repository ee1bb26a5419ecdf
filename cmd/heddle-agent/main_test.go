package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/agent/cni/chain"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestFlagsAndEnvironment(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		want string // in the output or the error
		fail bool
	}{
		{"in order", []string{"--node", "n1", "--check"}, nil, "in order", false},
		{"node from the environment", []string{"--check"}, map[string]string{"HEDDLE_NODE": "n1"}, "in order", false},
		{"flags win", []string{"--node", "n1", "--check"}, map[string]string{"HEDDLE_NODE": "N!"}, "in order", false},
		{"no node", []string{"--check"}, nil, "--node", true},
		{"bad environment", []string{"--node", "n1", "--check"}, map[string]string{"HEDDLE_DRAIN": "soon"}, "HEDDLE_DRAIN", true},
		{"unknown flag", []string{"--nod", "n1"}, nil, "unknown flag", true},
		{"stray argument", []string{"n1"}, nil, "unknown command", true},
		{"bad level", []string{"--node", "n1", "--log-level", "loud", "--check"}, nil, "--log-level", true},
		{"bad format", []string{"--node", "n1", "--log-format", "xml", "--check"}, nil, "--log-format", true},
		{"engine", []string{"--node", "n1", "--engine", "reference", "--check"}, nil, "in order", false},
		{"bad engine from the environment", []string{"--node", "n1", "--check"}, map[string]string{"HEDDLE_ENGINE": "steam"}, "set --engine to loop or reference", true},
		{"crypto", []string{"--node", "n1", "--crypto", "standard", "--check"}, nil, "in order", false},
		{"bad crypto from the environment", []string{"--node", "n1", "--check"}, map[string]string{"HEDDLE_CRYPTO": "homemade"}, "set --crypto to auto or standard", true},
		{"token", []string{"--node", "n1", "--join-token-file", token, "--check"}, nil, "in order", false},
		{"token gone", []string{"--node", "n1", "--join-token-file", token + "x", "--check"}, nil, "no join token file", false},
		{"token is a folder", []string{"--node", "n1", "--join-token-file", filepath.Dir(token), "--check"}, nil, "read join token", true},
		{"a pod's token", []string{"--node", "n1", "--token-file", token, "--roots-file", "/r", "--operator", "o:1", "--check"}, nil, "in order", false},
		{"a pod's token alone", []string{"--node", "n1", "--token-file", token, "--check"}, nil, "--roots-file", true},
		{"a runtime's node", []string{"--node", "n1", "--cni-socket", "/run/h/cni.sock", "--cri-socket", "/run/c.sock", "--cni-conf-dir", "/x", "--cni-bin-dir", "/y", "--check"}, nil, "in order", false},
		{"half of a runtime", []string{"--node", "n1", "--cni-socket", "/run/h/cni.sock", "--check"}, nil, "--cri-socket", true},
		{"uninstall from nowhere", []string{"--node", "n1", "--cni-uninstall"}, nil, "--cni-conf-dir", true},
		{"ready without a node", []string{"ready"}, nil, "--node", true},
		{"ready without an agent", []string{"ready"}, map[string]string{"HEDDLE_NODE": "nobody"}, `no agent of node "nobody"`, true},
		{"FIPS 140-3 mode is wanted, and off", []string{"--node", "n1", "--check"}, map[string]string{"HEDDLE_FIPS140": "true"}, "set GODEBUG=fips140=on", true},
		{"help", []string{"--help"}, nil, "HEDDLE_STATE_DIR", false},
		{"version", []string{"--version"}, nil, version, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			env := func(name string) (string, bool) { v, ok := c.env[name]; return v, ok }
			err := run(context.Background(), c.args, env, &out, &out)
			if (err != nil) != c.fail {
				t.Errorf("error %v, want one: %v", err, c.fail)
			}
			said := out.String()
			if err != nil {
				said += err.Error()
			}
			if !strings.Contains(said, c.want) {
				t.Errorf("said %q, want %q", said, c.want)
			}
		})
	}
}

// TestUninstallCNI leaves the node's folders as they were before.
func TestUninstallCNI(t *testing.T) {
	dir := t.TempDir()
	const before = `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge"}]}`
	conf, program := filepath.Join(dir, "10-x.conflist"), filepath.Join(dir, "heddle-cni")
	with := strings.Replace(before, "]}", `,{"type":"heddle-cni"}]}`, 1)
	copied := filepath.Join(dir, chain.Own)
	if err := errors.Join(os.WriteFile(conf, []byte(with), 0o644), os.WriteFile(copied, []byte(with), 0o644), os.WriteFile(program, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	args := []string{"--node", "n1", "--cni-socket", "/run/h/cni.sock", "--cri-socket", "/run/c.sock", "--cni-conf-dir", dir, "--cni-bin-dir", dir, "--cni-uninstall"}
	if err := run(context.Background(), args, func(string) (string, bool) { return "", false }, &out, &out); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(conf); err != nil || string(after) != before {
		t.Errorf("%q, %v; want %q", after, err, before)
	}
	for _, path := range []string{program, copied} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if !strings.Contains(out.String(), dir) {
		t.Errorf("said %q", out.String())
	}
}

// TestFIPS runs the program in FIPS 140-3 mode: it starts where it is wanted, and takes
// no loop engine.
func TestFIPS(t *testing.T) {
	if args := os.Getenv("TEST_AGENT_ARGS"); args != "" {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), func(string) (string, bool) { return "", false }, &out, &out)
		if fails := os.Getenv("TEST_AGENT_FAILS"); (err == nil) != (fails == "") || err != nil && !strings.Contains(err.Error(), fails) {
			t.Errorf("%v, want %q\n%s", err, fails, out.String())
		}
		return
	}
	for _, mode := range []string{"on", "only"} {
		for args, fails := range map[string]string{
			"--node n1 --fips140 --check":                    "",
			"--node n1 --fips140 --engine reference --check": "",
			"--node n1 --fips140 --engine loop --check":      "not allowed in FIPS 140-3 mode",
		} {
			again := exec.Command("/proc/self/exe", "-test.run=^TestFIPS$", "-test.v")
			again.Env = append(os.Environ(), "GODEBUG=fips140="+mode, "TEST_AGENT_ARGS="+args, "TEST_AGENT_FAILS="+fails)
			if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestFIPS")) {
				t.Errorf("%s, %s: %v\n%s", mode, args, err, out)
			}
		}
	}
}
