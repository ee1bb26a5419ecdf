package interop

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
)

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
	cmd := m.Command(ctx, "shop/client", "python3", "workload_api.py", strings.TrimPrefix(workloadAPI, "tcp://"), "10.244.2.10:7001", m.id("shop", "server").String())
	cmd.Env = append(os.Environ(), "PYTHONPATH="+strings.TrimSpace(string(lib)), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = t.Output()
	input, err := cmd.StdinPipe()
	must(t, err)
	output, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(output)
	said := func(what string) []string {
		t.Helper()
		for lines.Scan() {
			if words := strings.Fields(lines.Text()); len(words) > 0 && words[0] == what {
				return words[1:]
			}
			t.Logf("py-spiffe: %s", lines.Text())
		}
		t.Fatalf("py-spiffe ended without %q: %v", what, lines.Err())
		return nil
	}
	if code := said("jwt"); len(code) != 1 || code[0] != "UNIMPLEMENTED" {
		t.Errorf("asked for a JWT-SVID: %v", code)
	}
	said("peer")
	must(t, <-server)
	before := said("svid")
	if len(before) != 3 || before[0] != m.id("shop", "client").String() || before[2] != "1" {
		t.Fatalf("py-spiffe is given %v", before)
	}
	if out, err := m.Heddle("certs", "rotate", "--root", "--name", meshName); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if after := said("svid"); len(after) != 3 || after[0] != before[0] || after[2] != "2" {
		t.Errorf("py-spiffe had %v, and hears %v of a rotation", before, after)
	}
	must(t, input.Close())
	must(t, cmd.Wait())
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
