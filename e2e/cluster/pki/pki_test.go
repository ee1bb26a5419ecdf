package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/e2e/cluster/pki"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func authority(t *testing.T, folder pki.Folder, name string) (*pki.Authority, *x509.CertPool) {
	t.Helper()
	ca, err := folder.NewAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(folder.Path(name + ".crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		t.Fatalf("%s.crt holds no certificate", name)
	}
	return ca, pool
}

func TestIssuedCertificateServesItsNamesAndIsItsUser(t *testing.T) {
	folder := pki.Folder(t.TempDir())
	ca, roots := authority(t, folder, "ca")
	_, others := authority(t, folder, "front-proxy-ca")
	err := ca.Issue("kubelet", pki.Subject{
		Name: "system:node:n1", Groups: []string{"system:nodes"}, DNSNames: []string{"n1"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")},
	})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(folder.Path("kubelet.crt"), folder.Path("kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "10.0.0.11"} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: others}); err == nil {
		t.Error("another authority vouches for it")
	}
	if pair.Leaf.Subject.CommonName != "system:node:n1" || !slices.Equal(pair.Leaf.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("the user is %v", pair.Leaf.Subject)
	}
	info, err := os.Stat(folder.Path("kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v", info.Mode())
	}
}

func TestKubeconfigCarriesAllThatItNeeds(t *testing.T) {
	folder := pki.Folder(t.TempDir())
	ca, roots := authority(t, folder, "ca")
	file := folder.Path("admin.kubeconfig")
	if err := ca.Kubeconfig(file, "https://127.0.0.1:6443", "dev", pki.Subject{Name: "admin"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		CurrentContext string `json:"current-context"`
		Clusters       []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	if config.CurrentContext != "dev" || config.Clusters[0].Cluster.Server != "https://127.0.0.1:6443" {
		t.Errorf("context %q, server %q", config.CurrentContext, config.Clusters[0].Cluster.Server)
	}
	pair, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(config.Clusters[0].Cluster.CA) || !pool.Equal(roots) {
		t.Error("the kubeconfig trusts something else than the authority")
	}
}

func TestKeyPairBelongsTogether(t *testing.T) {
	folder := pki.Folder(t.TempDir())
	if err := folder.KeyPair("sa"); err != nil {
		t.Fatal(err)
	}
	private, public := readPEM(t, folder.Path("sa.key")), readPEM(t, folder.Path("sa.pub"))
	key, err := x509.ParseECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	verify, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(verify) {
		t.Error("sa.pub does not verify what sa.key signs")
	}
}

func readPEM(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s is not PEM", file)
	}
	return block.Bytes
}
