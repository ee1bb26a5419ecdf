package interop

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
)

// rustClient is what rustspiffe.sh builds: a third library, which is tried when it is there.
var rustClient = flag.String("rust-client", "", "a client of the Workload API by the Rust crate spiffe")

const workloadAPI = "tcp://127.0.0.1:15054"

// twoLibraries: a process with py-spiffe and one with go-spiffe, in pods of two nodes,
// talk by mutual TLS with what the Workload API gave each; and the first hears of a
// rotation's new root.
func (m *meshWorld) twoLibraries(t *testing.T) {
	lib, err := exec.Command("./pyspiffe.sh").Output()
	must(t, err)
	server := m.serveSVID(t, "shop/server", ":7001", "shop", "client")
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	python := m.speak(ctx, t, "shop/client", []string{"PYTHONPATH=" + strings.TrimSpace(string(lib)), "PYTHONDONTWRITEBYTECODE=1"},
		"python3", "workload_api.py", strings.TrimPrefix(workloadAPI, "tcp://"), "10.244.2.10:7001", m.id("shop", "server").String())
	token := strings.Fields(python.said("jwt"))
	if len(token) != 2 || token[0] != m.id("shop", "client").String() {
		t.Fatalf("asked for a JWT-SVID: %v", token)
	}
	m.validate(t, token[1])
	python.said("peer")
	must(t, <-server)
	all := []*speaker{python}
	if *rustClient != "" {
		rust := m.speak(ctx, t, "shop/client", []string{"SPIFFE_ENDPOINT_SOCKET=" + workloadAPI}, *rustClient)
		if got := strings.Fields(rust.said("jwt")); len(got) != 2 || got[0] != m.id("shop", "client").String() {
			t.Errorf("asked for a JWT-SVID: %v", got)
		}
		all = append(all, rust)
	}
	serial := ""
	for _, s := range all {
		before := strings.Fields(s.said("svid"))
		if len(before) != 3 || before[0] != m.id("shop", "client").String() || before[2] != "1" || serial != "" && before[1] != serial {
			t.Fatalf("%s is given %v", s.cmd.Args, before)
		}
		serial = before[1]
	}
	if out, err := m.Heddle("certs", "rotate", "--root", "--name", meshName); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, s := range all {
		if after := strings.Fields(s.said("svid")); len(after) != 3 || after[0] != m.id("shop", "client").String() || after[2] != "2" {
			t.Errorf("%s hears %v of a rotation", s.cmd.Args, after)
		}
		must(t, s.input.Close())
		must(t, s.cmd.Wait())
	}
}

// validate: the token that py-spiffe has in one pod is valid for go-spiffe in another, by the bundle
// and for its agent.
func (m *meshWorld) validate(t *testing.T, token string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(workloadAPI),
		workloadapi.WithDialOptions(grpc.WithContextDialer(func(_ context.Context, to string) (net.Conn, error) { return m.Dial("shop/server", to, wait) })))
	must(t, err)
	defer client.Close()
	bundles, err := client.FetchJWTBundles(ctx)
	must(t, err)
	svid, err := jwtsvid.ParseAndValidate(token, bundles, []string{"server"})
	must(t, err)
	_, err = client.ValidateJWTSVID(ctx, token, "server")
	must(t, err)
	if _, err := client.ValidateJWTSVID(ctx, token, "somebody else"); err == nil || svid.ID != m.id("shop", "client") {
		t.Errorf("the token of %v is valid for somebody else", svid.ID)
	}
}

// speaker is a process in a pod that says what it gets.
type speaker struct {
	t     *testing.T
	cmd   *exec.Cmd
	input io.Closer
	lines *bufio.Scanner
}

func (m *meshWorld) speak(ctx context.Context, t *testing.T, pod string, env []string, args ...string) *speaker {
	t.Helper()
	s := &speaker{t: t, cmd: m.Command(ctx, pod, args...)}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stderr = t.Output()
	var err error
	s.input, err = s.cmd.StdinPipe()
	must(t, err)
	output, err := s.cmd.StdoutPipe()
	must(t, err)
	must(t, s.cmd.Start())
	s.lines = bufio.NewScanner(output)
	return s
}

// said waits for a line of a kind, and returns the rest of it.
func (s *speaker) said(what string) string {
	s.t.Helper()
	for s.lines.Scan() {
		if rest, ok := strings.CutPrefix(s.lines.Text(), what+" "); ok {
			return rest
		}
		s.t.Logf("%s: %s", s.cmd.Args, s.lines.Text())
	}
	s.t.Fatalf("%s ended without %q: %v", s.cmd.Args, what, s.lines.Err())
	return ""
}

// serveSVID echoes five bytes to one client that proves an identity, with the SVID that
// go-spiffe gets in the pod; the channel receives how it went.
func (m *meshWorld) serveSVID(t *testing.T, pod, at, namespace, account string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	svids, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(workloadAPI),
		workloadapi.WithDialOptions(grpc.WithContextDialer(func(_ context.Context, to string) (net.Conn, error) { return m.Dial(pod, to, wait) }))))
	must(t, err)
	l := m.Listen(t, pod, at)
	config := tlsconfig.MTLSServerConfig(svids, svids, tlsconfig.AuthorizeID(m.id(namespace, account)))
	served := make(chan error, 1)
	go func() {
		defer svids.Close()
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			if err = c.SetDeadline(time.Now().Add(wait)); err == nil {
				secure := tls.Server(c, config)
				_, err = io.CopyN(secure, secure, 5)
			}
		}
		served <- err
	}()
	return served
}
