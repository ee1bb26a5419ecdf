package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const meshName = "interop"

// meshYAML has a pod of Envoy's outside the mesh, and one on a node of its own
// that is to be Envoy's inside: %MESH% says whether it is in already.
const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: interop.heddle.dev
  clusterRanges: ["10.244.0.0/16"]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: client, labels: {heddle.dev/workload-api: enabled}}
spec: {node: n1, serviceAccount: client, addresses: ["10.244.1.10"], networkNamespace: /run/netns/heddle-interop-client}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: plain, name: envoy}
spec: {node: n1, serviceAccount: envoy, addresses: ["10.244.1.90"], networkNamespace: /run/netns/heddle-interop-envoy}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: server, labels: {heddle.dev/workload-api: enabled}}
spec: {node: n2, serviceAccount: server, addresses: ["10.244.2.10"], networkNamespace: /run/netns/heddle-interop-server}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: foreign, labels: {heddle.dev/mesh: %MESH%}}
spec: {node: n3, serviceAccount: foreign, addresses: ["10.244.3.10"], networkNamespace: /run/netns/heddle-interop-foreign}
`

func meshObjects(foreign string) string { return strings.ReplaceAll(meshYAML, "%MESH%", foreign) }

// TestMesh puts Envoy in the place of a peer of agents that run, with SVIDs of
// the mesh's own authority, and has two SPIFFE libraries talk to each other.
func TestMesh(t *testing.T) {
	testenv.NeedRoot(t)
	m := &meshWorld{Bed: testbed.Up(t, "../..", meshName, meshObjects("disabled"))}
	domain := spiffeid.RequireTrustDomainFromString("interop.heddle.dev")
	var err error
	m.authority, err = identity.OpenAuthority(filepath.Join(local.DefaultStateDir, meshName, "operator", "ca"), identity.AuthorityConfig{TrustDomain: domain})
	must(t, err)
	t.Run("from Envoy", m.fromEnvoy)
	t.Run("to Envoy", m.toEnvoy)
	t.Run("two libraries", m.twoLibraries) // last: it begins a rotation
}

// meshWorld is a mesh that runs, and its authority.
type meshWorld struct {
	*testbed.Bed
	authority *identity.Authority
}

func (m *meshWorld) id(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromSegments(m.authority.TrustDomain(), "ns", namespace, "sa", account)
}

// svid is an identity's certificate, as the operator issues it.
func (m *meshWorld) svid(t *testing.T, id spiffeid.ID) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	chain, err := m.authority.SignCSR(csr, id, time.Hour)
	must(t, err)
	cert := &tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// in makes commands in a pod.
func (m *meshWorld) in(pod string) func(string, ...string) *exec.Cmd {
	return func(name string, args ...string) *exec.Cmd {
		return m.Command(context.Background(), pod, append([]string{name}, args...)...)
	}
}

// fromEnvoy: a program outside the mesh reaches an enrolled pod through Envoy.
func (m *meshWorld) fromEnvoy(t *testing.T) {
	app := m.Listen(t, "shop/server", ":7000")
	envoy := netip.MustParseAddrPort("10.244.1.90:9000")
	id := m.id("plain", "envoy")
	run(t, m.in("plain/envoy"), "envoy_out.yaml", settings{
		certificate: m.svid(t, id), root: m.authority.Root(), peer: m.id("shop", "server"), authority: "10.244.2.10:7000",
		listen: envoy, target: netip.MustParseAddrPort("10.244.2.10:15008"),
	})
	for range 3 { // the second and third on the same tunnel connection
		program := m.MustDial(t, "plain/envoy", envoy.String())
		behind := accept(t, app)
		if got, want := behind.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), envoy.Addr(); got != want {
			t.Errorf("the application sees %s, want %s", got, want)
		}
		converse(t, program, behind)
	}
	m.wantFlow(t, "n2", "inbound", func(f testbed.Flow) bool {
		return f.Source.Identity == id.String() && f.Source.Workload == "plain/envoy" && f.Destination.Workload == "shop/server" &&
			strings.HasPrefix(f.Source.Address, "10.244.1.90:")
	})
}

// toEnvoy: an enrolled pod reaches an application whose node has no agent, and
// whose end of the tunnel is Envoy's.
func (m *meshWorld) toEnvoy(t *testing.T) {
	m.Kill(t, "n3") // before the pod is in the mesh: nobody enrolls it
	m.Write(t, "mesh.yaml", meshObjects("enabled"))
	app := m.Listen(t, "shop/foreign", "127.0.0.1:7000")
	id := m.id("shop", "foreign")
	run(t, m.in("shop/foreign"), "envoy_in.yaml", settings{
		certificate: m.svid(t, id), root: m.authority.Root(), peer: m.id("shop", "client"), authority: "10.244.3.10:7000",
		listen: netip.MustParseAddrPort("10.244.3.10:15008"), target: netip.MustParseAddrPort("127.0.0.1:7000"),
	})
	// Nothing but Envoy listens at the pod's address, so nobody greets until
	// the client's agent knows that the pod is in the mesh.
	go greetAll(app)
	testenv.Eventually(t, wait, "the client's agent goes to Envoy", func() bool {
		c, err := m.Dial("shop/client", "10.244.3.10:7000", 5*time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(5*time.Second)))
		got, err := io.ReadAll(io.LimitReader(c, int64(len(greeting))))
		return err == nil && string(got) == greeting
	})
	must(t, app.Close())
	app = m.Listen(t, "shop/foreign", "127.0.0.1:7000")
	for range 3 {
		program := m.MustDial(t, "shop/client", "10.244.3.10:7000")
		converse(t, program, accept(t, app))
	}
	m.wantFlow(t, "n1", "outbound", func(f testbed.Flow) bool {
		return f.Destination.Identity == id.String() && f.Destination.Workload == "shop/foreign" && f.Source.Workload == "shop/client"
	})
}

const greeting = "220 ready"

// greetAll greets whoever connects, and ends with the listener.
func greetAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, greeting) // the test sees whether it arrived
		c.Close()
	}
}

// converseBytes is more than the windows of both proxies hold.
const converseBytes = 8 << 20

// converse says everything that a connection can carry, and ends it in order.
func converse(t *testing.T, program, app *net.TCPConn) {
	t.Helper()
	say(t, app, program, "server first")
	say(t, program, app, "one")
	say(t, app, program, "re: one")
	sent := make([]byte, converseBytes)
	if _, err := rand.Read(sent); err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]*net.TCPConn{{program, app}, {app, program}} {
		wrote := make(chan error, 1)
		go func() {
			_, err := ends[0].Write(sent)
			wrote <- errors.Join(err, ends[0].CloseWrite())
		}()
		must(t, ends[1].SetReadDeadline(time.Now().Add(wait)))
		got, err := io.ReadAll(ends[1])
		if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Errorf("%d of %d bytes, %v", len(got), len(sent), err)
		}
		must(t, <-wrote)
	}
}

// wantFlow waits until a node's agent has a flow of a whole conversation by
// tunnel that matches.
func (m *meshWorld) wantFlow(t *testing.T, node, direction string, match func(testbed.Flow) bool) {
	t.Helper()
	var flows []testbed.Flow
	testenv.Eventually(t, wait, fmt.Sprintf("an %s flow on %s", direction, node), func() bool {
		flows = m.Flows(t, "--node", node, "--verdict", "allow")
		for _, f := range flows {
			if f.Direction == direction && f.Transport == "tunnel" && f.Sent > converseBytes && f.Received > converseBytes && match(f) {
				return true
			}
		}
		return false
	})
}
