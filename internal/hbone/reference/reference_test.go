package reference_test

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newReference(o enginetest.Options) hbone.Engine {
	return reference.New(reference.Config{
		PingInterval: o.PingInterval, PingTimeout: o.PingTimeout, WriteTimeout: o.WriteTimeout, IdleTimeout: o.IdleTimeout, ServerIdleTimeout: o.ServerIdleTimeout, HandshakeTimeout: o.HandshakeTimeout,
	})
}

func TestReference(t *testing.T) { enginetest.RunSuite(t, newReference) }

// TestFIPS: in FIPS 140-3 mode, also when that is enforced, this engine carries
// streams with whom it should, and the key exchange is a post-quantum one still.
func TestFIPS(t *testing.T) {
	for _, mode := range []string{"on", "only"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			again := exec.Command("/proc/self/exe", "-test.v", "-test.run=^(TestReference|TestApproved)$/^(streams|identity)$/^(echo.*|server_first|FIN.*|.*cert.*|what_secures.*)$")
			again.Env = append(os.Environ(), "GODEBUG=fips140="+mode)
			out, err := again.CombinedOutput()
			for _, want := range []string{"PASS: TestReference/identity/what_secures_it_is_told", "PASS: TestReference/streams", "PASS: TestApproved"} {
				if err != nil || !bytes.Contains(out, []byte(want)) {
					t.Fatalf("%v, want %s in\n%s", err, want, out)
				}
			}
		})
	}
}

// TestApproved: which groups a peer may offer. Outside of FIPS 140-3 mode that is all
// that crypto/tls has, in it the approved ones.
func TestApproved(t *testing.T) {
	ca := enginetest.NewCA(t, "mesh.test")
	cert := ca.SVID(t, "server")
	for group, approved := range map[tls.CurveID]bool{
		tls.X25519MLKEM768: true, tls.SecP256r1MLKEM768: true, tls.CurveP256: true, tls.CurveP384: true, tls.X25519: false,
	} {
		near, far := net.Pipe()
		var peer spiffeid.ID
		server := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			cfg := hbone.ServerTLS(cert, ca.Bundle(), &peer)
			server <- errors.Join(tls.Server(far, cfg).HandshakeContext(ctx), far.Close())
		}()
		cfg := hbone.ClientTLS(ca.SVID(t, "client"), ca.Bundle(), ca.ID("server"))
		cfg.CurvePreferences = []tls.CurveID{group}
		client := tls.Client(near, cfg)
		err := client.HandshakeContext(t.Context())
		state := client.ConnectionState()
		err = errors.Join(err, near.Close(), <-server)
		if want := approved || !fips140.Enabled(); (err == nil) != want {
			t.Errorf("%v: %v, want it to succeed: %v", group, err, want)
		}
		if fips140.Enabled() && err == nil && state.CipherSuite != tls.TLS_AES_128_GCM_SHA256 && state.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
			t.Errorf("%v: %s is not approved", group, tls.CipherSuiteName(state.CipherSuite))
		}
	}
}
