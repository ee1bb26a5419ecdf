package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// The files of an Authority's directory, in the layout of a TLS Secret.
const (
	rootKeyFile  = "tls.key" // as cakey.Parse reads it, mode 0600 or less
	rootCertFile = "tls.crt" // the certificate that signs
	// bundleFile has further roots that verifiers trust; it is optional.
	bundleFile = "ca.crt"
	// furtherFile has more of them, where somebody else writes bundleFile.
	furtherFile          = "roots.crt"
	configurationKeyFile = "configuration.key"
	// RootKeyFile is the root's key, as tls.key, where an intermediate signs.
	RootKeyFile = "root.key"
)

const (
	maxKeyFile  = 16 << 10
	maxCertFile = 1 << 20
)

// OpenAuthority loads the Authority of a directory, and makes a new root there
// when it has none. Both are made private, 0700 and 0600; a key that others may
// read, or that is another user's, is refused. Operators that share
// the directory and begin at the same moment agree on one root.
func OpenAuthority(dir string, cfg AuthorityConfig) (*Authority, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make authority directory: %w", err)
	}
	key, err := openRootKey(dir)
	if err != nil {
		return nil, err
	}
	roots, err := openRoots(dir, cfg, key)
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(cfg, key, roots)
	if err != nil {
		return nil, fmt.Errorf("authority in %s: %w", dir, err)
	}
	return a, nil
}

func openRootKey(dir string) (crypto.Signer, error) {
	key, err := openKey(filepath.Join(dir, rootKeyFile), func() (any, error) {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	})
	if err != nil {
		return nil, err
	}
	return cakey.Signer(filepath.Join(dir, rootKeyFile), key)
}

// openRoots reads the signing root and the others. A crash, or another
// operator, may have come between key and certificate: then the certificate is
// made from the key that is there.
func openRoots(dir string, cfg AuthorityConfig, key crypto.Signer) ([]*x509.Certificate, error) {
	path := filepath.Join(dir, rootCertFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		root, err := newRoot(cfg, key)
		if err != nil {
			return nil, err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
		if err := keystore.CreateFile(path, text, 0o644); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("store root certificate: %w", err)
		}
	}
	texts := map[string][]byte{}
	for _, name := range certificateFiles() {
		text, err := keystore.ReadFile(filepath.Join(dir, name), maxCertFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		texts[name] = text
	}
	certs, err := certificatesFromTexts(texts)
	if err != nil {
		return nil, fmt.Errorf("authority in %s: %w", dir, err)
	}
	return certs, nil
}

// OpenConfigurationKey loads the Ed25519 key with which the operator signs
// configuration from its directory, and makes one when there is none; the rules
// of OpenAuthority's key hold.
func OpenConfigurationKey(dir string) (ed25519.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make authority directory: %w", err)
	}
	path := filepath.Join(dir, configurationKeyFile)
	key, err := openKey(path, func() (any, error) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	})
	if err != nil {
		return nil, err
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: is %T, an Ed25519 key is needed", path, key)
	}
	return ed, nil
}

// openKey reads a key, after putting a generated one there if need be.
// Creation never replaces a file, so that of several processes one wins and
// all read the same key.
func openKey(path string, generate func() (any, error)) (any, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		key, err := generate()
		if err != nil {
			return nil, fmt.Errorf("generate key: %w", err)
		}
		text, err := keyText(key)
		if err != nil {
			return nil, err
		}
		if err := keystore.CreateFile(path, text, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("store key: %w", err)
		}
	}
	text, err := keystore.ReadSecretFile(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	return cakey.Parse(path, text)
}

func keyText(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
