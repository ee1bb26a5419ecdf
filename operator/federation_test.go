package operator

import (
	"crypto/x509"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	gofederation "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// federates is an operator of a folder that serves its bundle, with one node.
type federates struct {
	*running
	td       spiffeid.TrustDomain
	folder   string
	endpoint string
	node     *nodeauth.Node
	source   *identity.Source
	id       spiffeid.ID
}

func newFederates(t *testing.T, td, endpoint, state string) *federates {
	t.Helper()
	f := &federates{td: spiffeid.RequireTrustDomainFromString(td), folder: newFolder(t), id: spiffeid.RequireFromString("spiffe://" + td + "/ns/shop/sa/web")}
	f.federate(t, "")
	f.start(t, endpoint, state)
	f.node = f.join(t, "n1", filepath.Join(t.TempDir(), "node"))
	f.source = follow(t, f.node, f.id.String())
	testenv.Eventually(t, 20*time.Second, td+" has a certificate", func() bool { _, err := f.source.Certificate(f.id); return err == nil })
	return f
}

func (f *federates) start(t *testing.T, endpoint, state string) {
	t.Helper()
	listener, err := net.Listen("tcp", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	f.endpoint = listener.Addr().String()
	before := f.running
	f.running = start(t, f.folder, state, func(c *Config) {
		c.BundleEndpoint, c.FederationOften = &BundleEndpoint{Listener: listener}, 50*time.Millisecond
		if before == nil {
			return
		}
		// Agents come back to where it was.
		if err := c.Listener.Close(); err != nil {
			t.Fatal(err)
		}
		if c.Listener, err = net.Listen("tcp", before.address); err != nil {
			t.Fatal(err)
		}
	})
	if before != nil {
		f.address = before.address
	}
}

// federate writes spec.federation of the Mesh.
func (f *federates) federate(t *testing.T, federation string) {
	t.Helper()
	text := strings.Replace(meshYAML, "test.example", f.td.Name(), 1)
	write(t, filepath.Join(f.folder, "mesh.yaml"), strings.Replace(text, "spec:\n", "spec:\n"+federation, 1))
}

// with is an entry for another mesh, which is believed by its bundle of now.
func (f *federates) with(t *testing.T, other *federates) string {
	t.Helper()
	bundle, err := other.source.GetX509BundleForTrustDomain(other.td)
	if err != nil {
		t.Fatal(err)
	}
	document, err := spiffebundle.FromX509Bundle(bundle).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	entry, err := json.Marshal([]map[string]string{{"trustDomain": other.td.Name(), "endpoint": "https://" + other.endpoint + "/", "profile": "https_spiffe",
		"endpointSPIFFEID": identity.OperatorID(other.td).String(), "bundle": string(document)}})
	if err != nil {
		t.Fatal(err)
	}
	return "  federation: " + string(entry) + "\n"
}

// believes says whether this mesh's node verifies the other's present certificate.
func (f *federates) believes(t *testing.T, other *federates) bool {
	t.Helper()
	cert, err := other.source.Certificate(other.id)
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	id, err := hbone.VerifyPeer(chain, f.source, time.Now())
	return err == nil && id == other.id
}

func (f *federates) certificates(t *testing.T) *meshpb.CertificatesResponse {
	t.Helper()
	c, err := f.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// followAs follows an operator's authority with somebody's certificate, for one message.
func followAs(t *testing.T, address string, as credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(as))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := meshpb.NewTrustClient(conn).Follow(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

// TestTwoMeshesFederate: each believes the other's workloads by the other's bundle endpoint, across
// restarts and a root's replacement, and for as long as the Mesh says so.
func TestTwoMeshesFederate(t *testing.T) {
	state := t.TempDir()
	a, b := newFederates(t, "a.example", "127.0.0.1:0", filepath.Join(state, "a")), newFederates(t, "b.example", "127.0.0.1:0", filepath.Join(state, "b"))
	if a.believes(t, b) || b.believes(t, a) {
		t.Fatal("they believe each other without a federation")
	}
	a.federate(t, a.with(t, b))
	b.federate(t, b.with(t, a))
	testenv.Eventually(t, 20*time.Second, "both believe each other", func() bool { return a.believes(t, b) && b.believes(t, a) })
	testenv.Eventually(t, 20*time.Second, "it is shown", func() bool {
		all := a.certificates(t).GetFederation()
		return len(all) == 1 && all[0].GetTrustDomain() == "b.example" && all[0].GetProfile() == "https_spiffe" && all[0].GetRefreshedNs() > 0 && all[0].GetError() == "" && len(all[0].GetRoots()) == 1 && all[0].GetJwtKeys() == 1
	})
	// Who is believed of another trust domain is no node, and no operator, of this mesh.
	stranger := nodeauth.NewClientCredentials(b.node.Certificate, a.node.Source(), identity.OperatorID(a.td))
	if err := followAs(t, a.address, stranger); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node of a federated mesh is answered %v", err)
	}

	// b's operator away, and a's restarted: the last good one holds.
	b.stop()
	a.stop()
	a.start(t, "127.0.0.1:0", filepath.Join(state, "a"))
	testenv.Eventually(t, 20*time.Second, "it is said that b does not answer", func() bool {
		all := a.certificates(t).GetFederation()
		return len(all) == 1 && all[0].GetError() != "" && len(all[0].GetRoots()) == 1 && all[0].GetRefreshedNs() > 0
	})
	b.start(t, b.endpoint, filepath.Join(state, "b"))
	testenv.Eventually(t, 20*time.Second, "b is asked again", func() bool {
		all := a.certificates(t).GetFederation()
		return len(all) == 1 && all[0].GetError() == ""
	})
	before := a.certificates(t).GetFederation()[0].GetSequence()

	// A rotation waits for those who ask for the bundle, who then have both roots.
	if _, err := b.admin.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "a has both roots", func() bool {
		all := a.certificates(t).GetFederation()
		return len(all) == 1 && len(all[0].GetRoots()) == 2 && all[0].GetSequence() > before
	})
	waits := b.certificates(t).GetRotation().GetWaiting()
	if len(waits) == 0 || !strings.Contains(waits[0].GetReason(), "other trust domains") {
		t.Errorf("the rotation does not wait for other trust domains: %v", waits)
	}
	if _, err := b.admin.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_ABORT}); err != nil {
		t.Fatal(err)
	}

	// go-spiffe agrees on what is served.
	own, err := b.source.GetX509BundleForTrustDomain(b.td)
	if err != nil {
		t.Fatal(err)
	}
	served, err := gofederation.FetchBundle(t.Context(), b.td, "https://"+b.endpoint+"/", gofederation.WithSPIFFEAuth(own, identity.OperatorID(b.td)))
	if err != nil || len(served.X509Authorities()) == 0 || len(served.JWTAuthorities()) != 1 {
		t.Errorf("go-spiffe fetches %v, %v", served, err)
	}

	a.federate(t, "")
	testenv.Eventually(t, 20*time.Second, "a believes b no more", func() bool { return !a.believes(t, b) })
	if len(a.certificates(t).GetFederation()) != 0 || !b.believes(t, a) {
		t.Error("the end of a's federation is another than that")
	}
}
