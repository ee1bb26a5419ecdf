package tlsrecord

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/heddle-mesh/heddle/internal/hbone/aesgcm"
)

// nonceBytes is the length of every TLS 1.3 suite's nonce (RFC 8446 section 5.3).
const nonceBytes = 12

// Keys is one direction of a connection as a plain value: with it, and the
// socket, another process could go on where this one stopped. It is a secret.
type Keys struct {
	// Suite is a TLS 1.3 cipher suite of crypto/tls.
	Suite uint16
	// Secret is application_traffic_secret_N (RFC 8446 section 7.1).
	Secret []byte
	// Sequence is the number of the next record under this secret.
	Sequence uint64
}

// GCM makes the AES-GCM of a key.
type GCM aesgcm.Cipher

// StandardGCM is crypto/cipher's.
func StandardGCM(key []byte) (cipher.AEAD, error) { return aesgcm.Standard(key) }

// FastestGCM is Heddle's own, after a self-test of a fifth of a
// millisecond, or StandardGCM, where why says why not.
func FastestGCM() (g GCM, why string) {
	c, why := aesgcm.Fastest()
	return GCM(c), why
}

// OrFastest is g, or FastestGCM if it is nil.
func (g GCM) OrFastest() GCM {
	if g == nil {
		g, _ = FastestGCM()
	}
	return g
}

// half protects the records of one direction.
type half struct {
	keys  Keys
	gcm   GCM
	aead  cipher.AEAD
	iv    [nonceBytes]byte
	nonce [nonceBytes]byte
}

// suiteHash is the hash of a suite and the length of its keys.
func suiteHash(suite uint16) (newHash func() hash.Hash, keyBytes int, err error) {
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		return sha256.New, 16, nil
	case tls.TLS_AES_256_GCM_SHA384:
		return sha512.New384, 32, nil
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return sha256.New, chacha20poly1305.KeySize, nil
	default:
		return nil, 0, fmt.Errorf("cipher suite %#04x is not one of TLS 1.3's that we know", suite)
	}
}

// expandLabel is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func expandLabel(newHash func() hash.Hash, secret []byte, label string, n int) ([]byte, error) {
	full := "tls13 " + label
	info := binary.BigEndian.AppendUint16(make([]byte, 0, 4+len(full)), uint16(n))
	info = append(info, byte(len(full)))
	info = append(info, full...)
	info = append(info, 0)
	return hkdf.Expand(newHash, secret, string(info), n)
}

// install derives key and IV of the keys (RFC 8446 section 7.3).
func (h *half) install(k Keys) error {
	newHash, keyBytes, err := suiteHash(k.Suite)
	if err != nil {
		return err
	}
	if n := newHash().Size(); len(k.Secret) != n {
		return fmt.Errorf("traffic secret of %d bytes, want %d", len(k.Secret), n)
	}
	key, err := expandLabel(newHash, k.Secret, "key", keyBytes)
	if err != nil {
		return fmt.Errorf("derive key: %w", err)
	}
	iv, err := expandLabel(newHash, k.Secret, "iv", nonceBytes)
	if err != nil {
		return fmt.Errorf("derive iv: %w", err)
	}
	if h.aead, err = h.newAEAD(k.Suite, key); err != nil {
		return fmt.Errorf("make cipher: %w", err)
	}
	clear(key)
	h.keys, h.iv = k, [nonceBytes]byte(iv)
	return nil
}

func (h *half) newAEAD(suite uint16, key []byte) (cipher.AEAD, error) {
	if suite == tls.TLS_CHACHA20_POLY1305_SHA256 {
		return chacha20poly1305.New(key)
	}
	return h.gcm(key)
}

// next returns the nonce of the next record and counts it: the IV with the
// sequence number in its last 8 bytes (RFC 8446 section 5.3). The number never
// wraps; the limits end a key long before.
func (h *half) next() []byte {
	h.nonce = h.iv
	tail := h.nonce[nonceBytes-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^h.keys.Sequence)
	h.keys.Sequence++
	return h.nonce[:]
}

// update goes to the next generation of secrets (RFC 8446 section 7.2). The
// sequence number starts again at 0 (section 5.3).
func (h *half) update() error {
	newHash, _, err := suiteHash(h.keys.Suite)
	if err != nil {
		return err
	}
	secret, err := expandLabel(newHash, h.keys.Secret, "traffic upd", len(h.keys.Secret))
	if err != nil {
		return fmt.Errorf("derive next secret: %w", err)
	}
	old := *h
	if err := h.install(Keys{Suite: h.keys.Suite, Secret: secret}); err != nil {
		return err
	}
	old.wipe()
	return nil
}

// wipe forgets the secret and what was derived of it; the standard library's
// ciphers keep theirs until they are collected.
func (h *half) wipe() {
	clear(h.keys.Secret)
	if w, ok := h.aead.(aesgcm.Wiper); ok {
		w.Wipe()
	}
	*h = half{gcm: h.gcm}
}
