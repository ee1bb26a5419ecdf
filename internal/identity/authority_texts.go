package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// NewAuthorityTexts makes a new root and a configuration key, as texts by the
// names that an Authority's directory has for them: what a Secret holds.
func NewAuthorityTexts(cfg AuthorityConfig) (map[string][]byte, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate root key: %w", err)
	}
	root, err := newRoot(cfg, key)
	if err != nil {
		return nil, err
	}
	_, configuration, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate configuration key: %w", err)
	}
	texts := map[string][]byte{rootCertFile: certificateText(root)}
	if texts[rootKeyFile], err = keyText(key); err != nil {
		return nil, err
	}
	if texts[configurationKeyFile], err = keyText(configuration); err != nil {
		return nil, err
	}
	return texts, nil
}

// AuthorityFromTexts is OpenAuthority for texts that are kept elsewhere than in
// files; nothing is made anew. It also returns the configuration key.
func AuthorityFromTexts(texts map[string][]byte, cfg AuthorityConfig) (*Authority, ed25519.PrivateKey, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	key, err := signerFromText(texts, rootKeyFile)
	if err != nil {
		return nil, nil, err
	}
	configuration, err := keyFromText[ed25519.PrivateKey](texts, configurationKeyFile)
	if err != nil {
		return nil, nil, err
	}
	roots, err := certificatesFromTexts(texts)
	if err != nil {
		return nil, nil, err
	}
	a, err := newAuthority(cfg, key, roots)
	return a, configuration, err
}

// certificateFiles are the names of texts with certificates, of which only the first
// must be there: a rotation leaves an empty bundleFile when it needs none.
func certificateFiles() [3]string { return [...]string{rootCertFile, bundleFile, furtherFile} }

func certificatesFromTexts(texts map[string][]byte) (all []*x509.Certificate, err error) {
	for _, name := range certificateFiles() {
		if len(texts[name]) == 0 && name != rootCertFile {
			continue
		}
		certs, err := keystore.ParseCertificates(texts[name], MaxBundle)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = join(all, certs)
	}
	return all, nil
}

// AddConfigurationKey puts a configuration key into texts that somebody else has made
// and that have none: the given one, or with nil a new one. It returns false, and changes
// nothing, when they have one.
func AddConfigurationKey(texts map[string][]byte, key ed25519.PrivateKey) (bool, error) {
	if len(texts[configurationKeyFile]) > 0 {
		return false, nil
	}
	var err error
	if key == nil {
		if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return false, fmt.Errorf("generate configuration key: %w", err)
		}
	}
	texts[configurationKeyFile], err = keyText(key)
	return err == nil, err
}

// join adds what is not there yet.
func join(certs, others []*x509.Certificate) []*x509.Certificate {
	for _, cert := range others {
		if !slices.ContainsFunc(certs, cert.Equal) {
			certs = append(certs, cert)
		}
	}
	return certs
}

// NewIntermediateTexts makes an intermediate below the root of texts, whose key
// must be among them: root.key, or tls.key where the root signs itself. It
// returns what takes the place of tls.crt, tls.key and root.key.
func NewIntermediateTexts(texts map[string][]byte, cfg AuthorityConfig) (map[string][]byte, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a, _, err := AuthorityFromTexts(texts, cfg)
	if err != nil {
		return nil, err
	}
	name := RootKeyFile
	if len(texts[name]) == 0 && a.Signing() == a.root {
		name = rootKeyFile
	}
	if len(texts[name]) == 0 {
		return nil, fmt.Errorf("%s: the key of root %s is not there", name, a.root.SerialNumber.Text(16))
	}
	rootKey, err := signerFromText(texts, name)
	if err != nil {
		return nil, err
	}
	if !cakey.Belongs(rootKey, a.root.PublicKey) {
		return nil, fmt.Errorf("%s: is not the key of root %s", name, a.root.SerialNumber.Text(16))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of intermediate: %w", err)
	}
	cert, err := newIntermediate(cfg, key, a.root, rootKey)
	if err != nil {
		return nil, err
	}
	text, err := keyText(key)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{rootCertFile: CertificatesText([]*x509.Certificate{cert, a.root}), rootKeyFile: text, RootKeyFile: texts[name]}, nil
}

func signerFromText(texts map[string][]byte, name string) (crypto.Signer, error) {
	key, err := cakey.Parse(name, texts[name])
	if err != nil {
		return nil, err
	}
	return cakey.Signer(name, key)
}

func keyFromText[K any](texts map[string][]byte, name string) (K, error) {
	var none K
	key, err := cakey.Parse(name, texts[name])
	if err != nil {
		return none, err
	}
	typed, ok := key.(K)
	if !ok {
		return none, fmt.Errorf("%s: is %T, %T is needed", name, key, none)
	}
	return typed, nil
}

// BundleText returns the roots of Bundle in PEM.
func (a *Authority) BundleText() []byte {
	return CertificatesText(a.roots)
}

// CertificatesText returns certificates in PEM.
func CertificatesText(certs []*x509.Certificate) []byte {
	var text []byte
	for _, cert := range certs {
		text = append(text, certificateText(cert)...)
	}
	return text
}

func certificateText(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
