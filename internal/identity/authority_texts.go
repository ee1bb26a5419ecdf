package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"

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
	key, err := keyFromText[*ecdsa.PrivateKey](texts, rootKeyFile)
	if err != nil {
		return nil, nil, err
	}
	configuration, err := keyFromText[ed25519.PrivateKey](texts, configurationKeyFile)
	if err != nil {
		return nil, nil, err
	}
	roots, err := keystore.ParseCertificates(texts[rootCertFile], MaxBundle)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", rootCertFile, err)
	}
	if more := texts[bundleFile]; len(more) > 0 {
		others, err := keystore.ParseCertificates(more, MaxBundle)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", bundleFile, err)
		}
		for _, root := range others {
			if !root.Equal(roots[0]) {
				roots = append(roots, root)
			}
		}
	}
	a, err := newAuthority(cfg, key, roots)
	return a, configuration, err
}

func keyFromText[K any](texts map[string][]byte, name string) (K, error) {
	var none K
	key, err := parseKey(name, texts[name])
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
	var text []byte
	for _, root := range a.roots {
		text = append(text, certificateText(root)...)
	}
	return text
}

func certificateText(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
