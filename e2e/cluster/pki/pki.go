// Package pki makes the keys, certificates and kubeconfigs of a test cluster.
// They live as long as the cluster and are kept in files that only root reads;
// nothing here is fit for more than that. A Folder may be used from one
// goroutine at a time.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

// validity is longer than any test cluster lives.
const validity = 365 * 24 * time.Hour

// Folder is where all the files go: NAME.crt, NAME.key, NAME.kubeconfig.
type Folder string

// Path is a file in the folder.
func (f Folder) Path(name string) string { return filepath.Join(string(f), name) }

// Authority signs certificates. Its own are in NAME.crt and NAME.key.
type Authority struct {
	folder      Folder
	certificate *x509.Certificate
	key         crypto.Signer
	pem         []byte
}

// Subject is who a certificate is for, as client and as server.
type Subject struct {
	// Name and Groups are user name and groups to Kubernetes.
	Name   string
	Groups []string
	// DNSNames and Addresses are what a server is reached by.
	DNSNames  []string
	Addresses []netip.Addr
}

// NewAuthority makes a self-signed authority.
func (f Folder) NewAuthority(name string) (*Authority, error) {
	template, err := newTemplate(name)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate of %s: %w", name, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read certificate of %s: %w", name, err)
	}
	authority := &Authority{folder: f, certificate: certificate, key: key, pem: certificatePEM(der)}
	keyData, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return authority, f.writePair(name, authority.pem, keyData)
}

// Issue makes NAME.crt and NAME.key for a subject.
func (a *Authority) Issue(name string, subject Subject) error {
	certificate, key, err := a.issue(subject)
	if err != nil {
		return err
	}
	return a.folder.writePair(name, certificate, key)
}

func (a *Authority) issue(subject Subject) (certificate, key []byte, err error) {
	template, err := newTemplate(subject.Name)
	if err != nil {
		return nil, nil, err
	}
	template.Subject.Organization = subject.Groups
	template.DNSNames = subject.DNSNames
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, address := range subject.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", subject.Name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate of %s: %w", subject.Name, err)
	}
	key, err = keyPEM(private)
	return certificatePEM(der), key, err
}

// Kubeconfig makes a kubeconfig file with a certificate for a subject in it.
func (a *Authority) Kubeconfig(file, server, cluster string, subject Subject) error {
	certificate, key, err := a.issue(subject)
	if err != nil {
		return err
	}
	type object = map[string]any
	data, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": cluster,
		"clusters": []object{{"name": cluster, "cluster": object{"server": server, "certificate-authority-data": a.pem}}},
		"users":    []object{{"name": subject.Name, "user": object{"client-certificate-data": certificate, "client-key-data": key}}},
		"contexts": []object{{"name": cluster, "context": object{"cluster": cluster, "user": subject.Name}}},
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return write(file, data)
}

// KeyPair makes NAME.key and NAME.pub, with which service-account tokens are
// signed and verified.
func (f Folder) KeyPair(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key %s: %w", name, err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("write key %s: %w", name, err)
	}
	private, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := write(f.Path(name+".key"), private); err != nil {
		return err
	}
	return write(f.Path(name+".pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
}

func newTemplate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		// An hour ago: clocks of the same machine, but time may be stepped back.
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
	}, nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func (f Folder) writePair(name string, certificate, key []byte) error {
	if err := write(f.Path(name+".crt"), certificate); err != nil {
		return err
	}
	return write(f.Path(name+".key"), key)
}

func write(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}
