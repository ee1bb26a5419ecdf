package aesgcm

import (
	"crypto/cipher"
	"crypto/fips140"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// maxPlaintext is what GCM's counter of 32 bits allows, in bytes (SP 800-38D section 5.2.1.1).
const maxPlaintext = (1<<32 - 2) * 16

// schedule is an expanded key. The assembler knows its layout; 576 bytes are a
// size of Go's allocator, whose objects of it begin at a multiple of 64, so that
// a vector of powers does not straddle two lines of cache.
type schedule struct {
	long   uint64 // 1 for AES-256
	_      [40]byte
	powers [17][16]byte // H^17/x to H/x, bytes reversed
	rounds [15][16]byte // the last round's in the last place, for AES-128 too
}

// seal encrypts n bytes from src to dst, which are the same or do not overlap,
// and makes the tag. counter is the tag's counter block; data takes those after it.
//
//go:noescape
func seal(s *schedule, counter *[16]byte, dst, src *byte, n int, aad *byte, aadLen int, tag *[16]byte)

// open is seal the other way. It makes the tag that ought to be there; to
// compare it is for the caller.
//
//go:noescape
func open(s *schedule, counter *[16]byte, dst, src *byte, n int, aad *byte, aadLen int, tag *[16]byte)

// expand makes the schedule, whose long is set, of a key of 16 or 32 bytes.
//
//go:noescape
func expand(s *schedule, key *byte)

// missing names what the processor or the system lacks; "" is nothing.
func missing() string {
	for _, feature := range []struct {
		name string
		has  bool
	}{
		{"AES-NI", cpu.X86.HasAES}, {"PCLMULQDQ", cpu.X86.HasPCLMULQDQ}, {"AVX2", cpu.X86.HasAVX2}, {"BMI2", cpu.X86.HasBMI2},
		{"AVX512F", cpu.X86.HasAVX512F}, {"AVX512BW", cpu.X86.HasAVX512BW}, {"AVX512VL", cpu.X86.HasAVX512VL},
		{"VAES", cpu.X86.HasAVX512VAES}, {"VPCLMULQDQ", cpu.X86.HasAVX512VPCLMULQDQ},
	} {
		if !feature.has {
			return feature.name
		}
	}
	return ""
}

// vector is a cipher.AEAD.
type vector struct{ schedule }

func newVector(key []byte) (cipher.AEAD, error) {
	if fips140.Enabled() {
		return nil, ErrFIPS140
	}
	v := &vector{}
	switch len(key) {
	case 16:
	case 32:
		v.long = 1
	default:
		return nil, fmt.Errorf("AES key of %d bytes, want 16 or 32", len(key))
	}
	expand(&v.schedule, unsafe.SliceData(key))
	return v, nil
}

// NonceSize implements cipher.AEAD.
func (v *vector) NonceSize() int { return nonceBytes }

// Overhead implements cipher.AEAD.
func (v *vector) Overhead() int { return tagBytes }

// Wipe forgets the key. Nothing may be sealed or opened from then on.
func (v *vector) Wipe() { v.schedule = schedule{} }

// first is the counter block of a nonce's tag (SP 800-38D section 7.1).
func first(nonce []byte) (counter [16]byte) {
	if len(nonce) != nonceBytes {
		panic("aesgcm: nonce of another length than 12 bytes")
	}
	copy(counter[:], nonce)
	binary.BigEndian.PutUint32(counter[nonceBytes:], 1)
	return counter
}

// Seal implements cipher.AEAD. It panics where crypto/cipher's does.
func (v *vector) Seal(dst, nonce, plaintext, aad []byte) []byte {
	counter := first(nonce)
	if uint64(len(plaintext)) > maxPlaintext {
		panic("aesgcm: plaintext too long")
	}
	ret, out := grow(dst, len(plaintext)+tagBytes)
	checkOverlap(out, plaintext, aad)
	var tag [tagBytes]byte
	seal(&v.schedule, &counter, unsafe.SliceData(out), unsafe.SliceData(plaintext), len(plaintext), unsafe.SliceData(aad), len(aad), &tag)
	copy(out[len(plaintext):], tag[:])
	return ret
}

var errOpen = errors.New("aesgcm: message authentication failed")

// Open implements cipher.AEAD. When the tag is wrong, what it has decrypted is
// zero again before it returns.
func (v *vector) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	counter := first(nonce)
	if len(ciphertext) < tagBytes || uint64(len(ciphertext)) > maxPlaintext+tagBytes {
		return nil, errOpen
	}
	n := len(ciphertext) - tagBytes
	sent := ciphertext[n:]
	ret, out := grow(dst, n)
	checkOverlap(out, ciphertext, aad)
	var tag [tagBytes]byte
	open(&v.schedule, &counter, unsafe.SliceData(out), unsafe.SliceData(ciphertext), n, unsafe.SliceData(aad), len(aad), &tag)
	if subtle.ConstantTimeCompare(tag[:], sent) != 1 {
		clear(out)
		return nil, errOpen
	}
	return ret, nil
}

// grow appends n bytes to dst, in its own room if that is enough.
func grow(dst []byte, n int) (whole, added []byte) {
	total := len(dst) + n
	if cap(dst) >= total {
		whole = dst[:total]
	} else {
		whole = make([]byte, total)
		copy(whole, dst)
	}
	return whole, whole[len(dst):]
}

// checkOverlap panics if out shares memory with in other than from the first
// byte, or with the additional data.
func checkOverlap(out, in, aad []byte) {
	if overlap(out, in) && unsafe.SliceData(out) != unsafe.SliceData(in) {
		panic("aesgcm: invalid buffer overlap of output and input")
	}
	if overlap(out, aad) {
		panic("aesgcm: invalid buffer overlap of output and additional data")
	}
}

func overlap(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	return uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1]))
}
