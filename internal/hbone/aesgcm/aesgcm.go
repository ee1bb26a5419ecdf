// Package aesgcm makes AES-GCM for the record layer: the standard library's, or
// its own on processors with VAES and VPCLMULQDQ for vectors of 512 bits, which
// the standard library does not use (golang/go#42726) and which seal three times
// as fast. It is a cipher.AEAD for nonces of 12 bytes and tags of 16 and nothing
// else: no other modes, no other sizes, no policy about nonces. See
// docs/decisions/0025-own-aes-gcm.md.
package aesgcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrFIPS140 is why there is no AES-GCM of our own in FIPS 140-3 mode: it is in no
// validated module.
var ErrFIPS140 = errors.New("heddle's own AES-GCM is refused in FIPS 140-3 mode")

const (
	nonceBytes = 12
	tagBytes   = 16
)

// Cipher makes the AEAD of an AES key of 16 or 32 bytes, which it does not keep.
// What it makes takes nonces of 12 bytes, and is safe for concurrent use.
type Cipher func(key []byte) (cipher.AEAD, error)

// Wiper is what an AEAD of this package is that can forget its key. The standard
// library's cannot.
type Wiper interface {
	// Wipe forgets the key: nothing may be sealed or opened from then on.
	Wipe()
}

// Standard is the standard library's AES-GCM.
func Standard(key []byte) (cipher.AEAD, error) {
	if len(key) != 16 && len(key) != 32 {
		return nil, fmt.Errorf("AES key of %d bytes, want 16 or 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Fastest returns this package's own AES-GCM, once it has passed SelfTest, and
// Standard where it cannot be had; why is then the reason, and "" otherwise. A
// process in FIPS 140-3 mode has Standard.
func Fastest() (c Cipher, why string) {
	if fips140.Enabled() {
		return Standard, "FIPS 140-3 mode"
	}
	if lacking := missing(); lacking != "" {
		return Standard, "the processor or the system has no " + lacking
	}
	if err := SelfTest(newVector); err != nil {
		return Standard, err.Error()
	}
	return newVector, ""
}

// knownAnswers are test cases 4 and 16 of "The Galois/Counter Mode of Operation"
// (McGrew and Viega, 2005), which is SP 800-38D's: key, ciphertext and tag; the
// nonce, the plaintext and the additional data are the same.
func knownAnswers() [][2]string {
	const key = "feffe9928665731c6d6a8f9467308308"
	return [][2]string{
		{key, "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091" +
			"5bc94fbc3221a5db94fae95ae7121a47"},
		{key + key, "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
			"76fc6ece0f4e1768cddf8853bb2d551b"},
	}
}

const (
	knownNonce = "cafebabefacedbaddecaf888"
	knownPlain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
	knownAAD   = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
)

// SelfTest asks a cipher for known answers, and compares it with Standard at the
// lengths around which this package's own changes its ways. It takes a
// fifth of a millisecond.
func SelfTest(c Cipher) error {
	for _, known := range knownAnswers() {
		aead, err := c(unhex(known[0]))
		if err != nil {
			return fmt.Errorf("self-test: %w", err)
		}
		sealed := aead.Seal(nil, unhex(knownNonce), unhex(knownPlain), unhex(knownAAD))
		if !bytes.Equal(sealed, unhex(known[1])) {
			return errors.New("self-test: not the known answer")
		}
	}
	pattern := make([]byte, 16384+1)
	for i := range pattern {
		pattern[i] = byte(i*7 + i>>8)
	}
	for _, keyBytes := range [...]int{16, 32} {
		if err := compare(c, pattern[:keyBytes], pattern); err != nil {
			return fmt.Errorf("self-test with a key of %d bytes: %w", keyBytes, err)
		}
	}
	return nil
}

// compare is SelfTest with one key.
func compare(c Cipher, key, pattern []byte) error {
	own, err := c(key)
	if err != nil {
		return err
	}
	standard, err := Standard(key)
	if err != nil {
		return err
	}
	for i, n := range [...]int{0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192, 240, 241, 255, 256, 257, 511, 512, 513, 768, 1023, 4097, len(pattern)} {
		nonce, aad := pattern[i:i+nonceBytes], pattern[:i%4*5]
		want := standard.Seal(nil, nonce, pattern[:n], aad)
		sealed := append(make([]byte, 0, n+tagBytes), pattern[:n]...)
		if sealed = own.Seal(sealed[:0], nonce, sealed, aad); !bytes.Equal(sealed, want) {
			return fmt.Errorf("%d bytes are sealed otherwise than by the standard library", n)
		}
		opened, err := own.Open(sealed[:0], nonce, sealed, aad)
		if err != nil || !bytes.Equal(opened, pattern[:n]) {
			return fmt.Errorf("%d bytes are not opened", n)
		}
		want[i*n/24] ^= 0x10
		opened, err = own.Open(want[:0], nonce, want, aad)
		if err == nil || opened != nil || bytes.ContainsFunc(want[:n], func(r rune) bool { return r != 0 }) {
			return fmt.Errorf("%d forged bytes are opened", n)
		}
	}
	return nil
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // a constant of ours
	}
	return b
}
