package interop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// istio runs Istio's end of a tunnel until the test ends, and returns the
// address that it listens on.
func (w *world) istio(account, role string, args ...string) string {
	t := w.t
	t.Helper()
	dir := t.TempDir()
	testenv.Build(t, "istio", dir+"/istio", ".")
	cert := w.ca.SVID(t, account)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	must(t, err)
	writePEM(t, dir+"/cert.pem", "CERTIFICATE", cert.Certificate...)
	writePEM(t, dir+"/key.pem", "PRIVATE KEY", key)
	writePEM(t, dir+"/root.pem", "CERTIFICATE", w.ca.Cert.Raw)
	free := listen(t)
	address := free.Addr().String()
	must(t, free.Close())
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	defer log.Close()
	cmd := exec.Command(dir+"/istio", append([]string{"--role", role, "--listen", address,
		"--certificate", dir + "/cert.pem", "--key", dir + "/key.pem", "--root", dir + "/root.pem"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("kill Istio's end: %v", err)
		}
		_ = cmd.Wait() // killed
		if out, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("Istio's end said at last:\n%s", out[max(0, len(out)-4000):])
		}
	})
	testenv.Eventually(t, wait, "Istio's end listens", func() bool {
		out, err := os.ReadFile(log.Name())
		return err == nil && strings.Contains(string(out), "istio: listening")
	})
	return address
}

// TestToIstio: our client's end, Istio's Go code terminates the tunnel.
func TestToIstio(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		endpoint := netip.MustParseAddrPort(w.istio("server", "server"))
		cert := w.ca.SVID(t, "client")
		exerciseWhole(t, func(t *testing.T) (*net.TCPConn, *net.TCPConn, <-chan hbone.Outcome) {
			program, local := pair(t)
			done := make(chan hbone.Outcome, 1)
			w.engine.Connect(local, w.request(cert, endpoint, w.app.Addr().String(), done))
			return program, accept(t, w.app), done
		})
	})
}

// TestFromIstio: Istio's Go code opens the tunnel, our server's end terminates it.
func TestFromIstio(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		cert := w.ca.SVID(t, "server")
		outcomes := make(chan hbone.Outcome, 200)
		l := w.serve(&hbone.Server{
			Local: "pod", Certificate: func() (*tls.Certificate, error) { return cert, nil }, Bundles: w.ca.Bundle(),
			Refused: func(r hbone.Refusal) { t.Errorf("refused: %v", r.Err) },
			Accept: func(_ context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
				if req.Peer != w.ca.ID("client") || req.Authority.String() != authority {
					t.Errorf("request %+v", req)
				}
				c, err := net.Dial("tcp", w.app.Addr().String())
				if err != nil {
					return nil, err
				}
				return &hbone.Accepted{Conn: c.(*net.TCPConn), Done: func(o hbone.Outcome) { outcomes <- o }}, nil
			},
		})
		address := w.istio("client", "client", "--endpoint", l.Addr().String(), "--authority", authority)
		exerciseWhole(t, func(t *testing.T) (*net.TCPConn, *net.TCPConn, <-chan hbone.Outcome) {
			program, err := net.Dial("tcp", address)
			must(t, err)
			t.Cleanup(func() { program.Close() })
			return program.(*net.TCPConn), accept(t, w.app), outcomes
		})
	})
}

// exerciseWhole is exercise without half-closed streams, which Istio's code, with
// its pipes, does not carry.
func exerciseWhole(t *testing.T, connect connector) {
	end := func(t *testing.T, program, app *net.TCPConn, done <-chan hbone.Outcome) {
		t.Helper()
		must(t, program.Close())
		expectEnd(t, app)
		must(t, app.Close())
		outcome(t, done)
	}
	t.Run("echo", func(t *testing.T) {
		program, app, done := connect(t)
		say(t, program, app, "question")
		say(t, app, program, "answer")
		end(t, program, app, done)
	})
	t.Run("server first", func(t *testing.T) {
		program, app, done := connect(t)
		say(t, app, program, "220 ready")
		end(t, program, app, done)
	})
	t.Run("big messages", func(t *testing.T) {
		program, app, done := connect(t)
		message := make([]byte, 8<<20)
		for i := range message {
			message[i] = byte(i * i >> 3)
		}
		for range 4 {
			sayWhile(t, program, app, string(message))
			sayWhile(t, app, program, string(message))
		}
		end(t, program, app, done)
	})
	t.Run("many", func(t *testing.T) {
		type flow struct {
			program, app *net.TCPConn
			done         <-chan hbone.Outcome
		}
		var flows []flow
		for range 150 {
			program, app, done := connect(t)
			flows = append(flows, flow{program, app, done})
			say(t, program, app, "hello")
		}
		for _, f := range flows {
			say(t, f.app, f.program, "good day")
		}
		for _, f := range flows {
			end(t, f.program, f.app, f.done)
		}
	})
}

// sayWhile is say for more than the sockets on the way hold.
func sayWhile(t *testing.T, from, to *net.TCPConn, message string) {
	t.Helper()
	wrote := make(chan error, 1)
	go func() {
		_, err := from.Write([]byte(message))
		wrote <- err
	}()
	hear(t, to, message)
	must(t, <-wrote)
}
