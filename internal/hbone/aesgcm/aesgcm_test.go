package aesgcm

import (
	"bytes"
	"crypto/cipher"
	"crypto/fips140"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestFastest fails where a processor has what is needed and does not use it. In
// FIPS mode, and so in a process of its own, it is the standard library's.
func TestFastest(t *testing.T) {
	c, why := Fastest()
	aead, err := c(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	_, own := aead.(Wiper)
	if can := missing() == "" && !fips140.Enabled(); own != can || (why == "") != can {
		t.Errorf("own %v, reason %q; the processor lacks %q, FIPS %v", own, why, missing(), fips140.Enabled())
	}
	if fips140.Enabled() {
		return
	}
	again := exec.Command("/proc/self/exe", "-test.run=^TestFastest$", "-test.v")
	again.Env = append(os.Environ(), "GODEBUG=fips140=on")
	if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestFastest")) {
		t.Errorf("in FIPS mode: %v\n%s", err, out)
	}
}

// wrong is a cipher with one mistake.
type wrong struct {
	cipher.AEAD
	seal func(sealed, plaintext, aad []byte)
	open func(ret []byte, err error) ([]byte, error)
}

func (w wrong) Seal(dst, nonce, plaintext, aad []byte) []byte {
	n := len(plaintext)
	ret := w.AEAD.Seal(dst, nonce, plaintext, aad)
	if w.seal != nil {
		w.seal(ret, ret[:n], aad)
	}
	return ret
}

func (w wrong) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	ret, err := w.AEAD.Open(dst, nonce, ciphertext, aad)
	if w.open != nil {
		return w.open(ret, err)
	}
	return ret, err
}

func TestSelfTestFindsMistakes(t *testing.T) {
	for name, w := range map[string]wrong{
		"the last byte of the tag":     {seal: func(s, _, _ []byte) { s[len(s)-1] ^= 1 }},
		"one bit of a full vector":     {seal: func(s, p, _ []byte) { flipIf(s, 63, len(p) == 64) }},
		"the first byte after a loop":  {seal: func(s, p, _ []byte) { flipIf(s, 256, len(p) == 257) }},
		"a whole record":               {seal: func(s, p, _ []byte) { flipIf(s, 16000, len(p) > 16384) }},
		"additional data of 15 bytes":  {seal: func(s, _, aad []byte) { flipIf(s, 0, len(aad) == 15) }},
		"what is forged is opened":     {open: func(b []byte, _ error) ([]byte, error) { return b, nil }},
		"what is right is not opened":  {open: func([]byte, error) ([]byte, error) { return nil, errors.New("no") }},
		"what is opened is not itself": {open: func(b []byte, err error) ([]byte, error) { flipIf(b, 0, len(b) > 0); return b, err }},
	} {
		err := SelfTest(func(key []byte) (cipher.AEAD, error) {
			aead, err := Standard(key)
			w := w
			w.AEAD = aead
			return w, err
		})
		if err == nil {
			t.Errorf("%s: not found", name)
		}
	}
	if err := SelfTest(Standard); err != nil {
		t.Errorf("the standard library: %v", err)
	}
	if SelfTest(func([]byte) (cipher.AEAD, error) { return nil, errors.New("no") }) == nil {
		t.Error("a cipher that cannot be made")
	}
}

func flipIf(b []byte, i int, yes bool) {
	if yes {
		b[i] ^= 4
	}
}

// each tests the standard library's and our own, which a processor that cannot
// run it skips.
func each(t *testing.T, test func(t *testing.T, c Cipher)) {
	t.Run("standard", func(t *testing.T) { test(t, Standard) })
	t.Run("own", func(t *testing.T) {
		testenv.NeedProcessor(t, missing())
		test(t, newVector)
	})
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n+8)
	r := rand.New(rand.NewPCG(seed, 38))
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

// pair is our own cipher and the standard library's with the same key.
func pair(t testing.TB, c Cipher, key []byte) (own, standard cipher.AEAD) {
	t.Helper()
	own, err := c(key)
	if err != nil {
		t.Fatal(err)
	}
	if standard, err = Standard(key); err != nil {
		t.Fatal(err)
	}
	return own, standard
}

// same seals and opens in place and beside, and wants what the standard library
// makes.
func same(t testing.TB, own, standard cipher.AEAD, nonce, plain, aad []byte) {
	t.Helper()
	want := standard.Seal(nil, nonce, plain, aad)
	head := []byte("head")
	beside := own.Seal(head, nonce, plain, aad)
	if !bytes.Equal(beside[:4], head) || !bytes.Equal(beside[4:], want) {
		t.Fatalf("%d bytes, %d additional: sealed otherwise beside", len(plain), len(aad))
	}
	in := append(make([]byte, 0, len(plain)+tagBytes), plain...)
	in = own.Seal(in[:0], nonce, in, aad)
	if !bytes.Equal(in, want) {
		t.Fatalf("%d bytes, %d additional: sealed otherwise in place", len(plain), len(aad))
	}
	opened, err := own.Open(head, nonce, want, aad)
	if err != nil || !bytes.Equal(opened[4:], plain) {
		t.Fatalf("%d bytes, %d additional: opened otherwise beside, %v", len(plain), len(aad), err)
	}
	if opened, err = own.Open(in[:0], nonce, in, aad); err != nil || !bytes.Equal(opened, plain) {
		t.Fatalf("%d bytes, %d additional: opened otherwise in place, %v", len(plain), len(aad), err)
	}
}

func TestEveryLength(t *testing.T) {
	data := random(1, 16384+300)
	each(t, func(t *testing.T, c Cipher) {
		for _, keyBytes := range []int{16, 32} {
			own, standard := pair(t, c, random(uint64(keyBytes), keyBytes))
			for n := range 4097 {
				same(t, own, standard, data[n:n+nonceBytes], data[:n], data[:n%65])
			}
			for aad := range 65 {
				for _, n := range []int{0, 5, 300} {
					same(t, own, standard, data[aad:aad+nonceBytes], data[:n], data[n:n+aad])
				}
			}
			r := rand.New(rand.NewPCG(2, uint64(keyBytes)))
			for range 200 {
				n := r.IntN(len(data) + 1)
				same(t, own, standard, data[n%1000:n%1000+nonceBytes], data[:n], data[:r.IntN(1000)])
			}
		}
	})
}

// TestEveryAlignment moves source, destination and additional data over a line
// of cache, each alone and all together.
func TestEveryAlignment(t *testing.T) {
	data := random(3, 2048)
	each(t, func(t *testing.T, c Cipher) {
		for _, keyBytes := range []int{16, 32} {
			own, standard := pair(t, c, random(4, keyBytes))
			for _, n := range []int{1, 33, 64, 255, 256, 300, 600} {
				for at := range 64 {
					for _, place := range [][3]int{{at, 0, 0}, {0, at, 0}, {0, 0, at}, {at, at, at}, {at, 63 - at, at / 2}} {
						plain, aad := data[place[0]:place[0]+n], data[1024+place[2]:1024+place[2]+13]
						want := standard.Seal(nil, data[:nonceBytes], plain, aad)
						room := make([]byte, place[1], 1024)
						sealed := own.Seal(room, data[:nonceBytes], plain, aad)[place[1]:]
						opened, err := own.Open(make([]byte, place[0], 1024), data[:nonceBytes], sealed, aad)
						if err != nil || !bytes.Equal(sealed, want) || !bytes.Equal(opened[place[0]:], plain) {
							t.Fatalf("%d bytes at %v: %v", n, place, err)
						}
					}
				}
			}
		}
	})
}

// TestForgeries flips every bit of a message, its tag and its additional data.
func TestForgeries(t *testing.T) {
	each(t, func(t *testing.T, c Cipher) {
		for _, n := range []int{0, 1, 47, 64, 256, 320, 700} {
			own, _ := pair(t, c, random(5, 16+n%2*16))
			nonce, aad := random(6, nonceBytes), random(7, 5)
			sealed := own.Seal(nil, nonce, random(8, n), aad)
			try := func(what string, i int) {
				t.Helper()
				in := bytes.Clone(sealed)
				got, err := own.Open(in[:0], nonce, in, aad)
				if err == nil || got != nil {
					t.Fatalf("%s, bit %d of %d bytes: opened", what, i, n)
				}
				if bytes.Count(in[:n], []byte{0}) != n || !bytes.Equal(in[n:], sealed[n:]) {
					t.Fatalf("%s, bit %d of %d bytes: plaintext is left", what, i, n)
				}
			}
			for what, b := range map[string][]byte{"message": sealed[:n], "tag": sealed[n:], "additional data": aad, "nonce": nonce} {
				for i := range len(b) * 8 {
					b[i/8] ^= 1 << (i % 8)
					try(what, i)
					b[i/8] ^= 1 << (i % 8)
				}
			}
			if _, err := own.Open(nil, nonce, sealed[:len(sealed)-1], aad); err == nil {
				t.Error("a shorter message is opened")
			}
			if _, err := own.Open(nil, nonce, sealed, append(aad, 0)); err == nil {
				t.Error("longer additional data is accepted")
			}
			for short := range tagBytes {
				if _, err := own.Open(nil, nonce, sealed[:short], aad); err == nil {
					t.Errorf("%d bytes are opened", short)
				}
			}
		}
	})
}

// TestMisuse wants a panic where crypto/cipher has one.
func TestMisuse(t *testing.T) {
	each(t, func(t *testing.T, c Cipher) {
		aead, _ := pair(t, c, make([]byte, 32))
		if aead.NonceSize() != nonceBytes || aead.Overhead() != tagBytes {
			t.Errorf("nonce of %d, overhead of %d", aead.NonceSize(), aead.Overhead())
		}
		buf, nonce := make([]byte, 400), make([]byte, nonceBytes)
		for what, misuse := range map[string]func(){
			"nonce too short to seal":         func() { aead.Seal(nil, nonce[:11], nil, nil) },
			"nonce too long to open":          func() { _, _ = aead.Open(nil, append(nonce, 0), buf, nil) },
			"output before input":             func() { aead.Seal(buf[:0], nonce, buf[1:101], nil) },
			"output behind input":             func() { aead.Seal(buf[1:1], nonce, buf[:100], nil) },
			"tag over additional data":        func() { aead.Seal(buf[:0], nonce, buf[:100], buf[110:120]) },
			"output before input, opened":     func() { _, _ = aead.Open(buf[:0], nonce, buf[1:101], nil) },
			"plain over additional data":      func() { _, _ = aead.Open(buf[:0], nonce, buf[:100], buf[10:12]) },
			"additional data in front of it":  nil,
			"additional data right behind it": func() {},
		} {
			if misuse == nil {
				aead.Seal(buf[5:5], nonce, buf[5:100], buf[:5])
				continue
			}
			panicked := func() (p bool) {
				defer func() { p = recover() != nil }()
				misuse()
				return false
			}()
			if want := !strings.HasPrefix(what, "additional"); panicked != want {
				t.Errorf("%s: panic %v", what, panicked)
			}
		}
		for _, n := range []int{0, 15, 17, 24, 31, 33} {
			if _, err := c(make([]byte, n)); err == nil {
				t.Errorf("a key of %d bytes", n)
			}
		}
	})
}

func TestAllocations(t *testing.T) {
	each(t, func(t *testing.T, c Cipher) {
		aead, _ := pair(t, c, make([]byte, 16))
		buf, nonce, aad := make([]byte, 1000+tagBytes), make([]byte, nonceBytes), make([]byte, 5)
		if n := testing.AllocsPerRun(100, func() {
			aead.Seal(buf[:0], nonce, buf[:1000], aad)
			if _, err := aead.Open(buf[:0], nonce, buf, aad); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// FuzzAgainstStandard seals and opens what comes, and opens it changed.
func FuzzAgainstStandard(f *testing.F) {
	testenv.NeedProcessor(f, missing())
	f.Add(make([]byte, 16), make([]byte, 12), []byte("plain"), []byte{23, 3, 3, 0, 22}, uint16(3))
	f.Add(make([]byte, 32), random(1, 12), random(2, 600), []byte{}, uint16(9000))
	f.Fuzz(func(t *testing.T, key, nonce, plain, aad []byte, at uint16) {
		k, n := make([]byte, 16+len(key)%2*16), [nonceBytes]byte{}
		copy(k, key)
		copy(n[:], nonce)
		own, standard := pair(t, newVector, k)
		same(t, own, standard, n[:], plain, aad)
		sealed := own.Seal(nil, n[:], plain, aad)
		bit := int(at) % (len(sealed) * 8)
		sealed[bit/8] ^= 1 << (bit % 8)
		if opened, err := own.Open(sealed[:0], n[:], sealed, aad); err == nil || opened != nil {
			t.Fatalf("bit %d flipped: opened", bit)
		}
	})
}

func benchmark(b *testing.B, do func(b *testing.B, aead cipher.AEAD, buf, sealed, nonce, aad []byte)) {
	for _, n := range []int{64, 1024, 16384} {
		for _, keyBytes := range []int{16, 32} {
			for name, c := range map[string]Cipher{"standard": Standard, "own": newVector} {
				b.Run(fmt.Sprintf("bytes=%d/AES-%d/%s", n, keyBytes*8, name), func(b *testing.B) {
					if name == "own" {
						testenv.NeedProcessor(b, missing())
					}
					aead, _ := pair(b, c, make([]byte, keyBytes))
					buf, nonce, aad := make([]byte, n+tagBytes), make([]byte, nonceBytes), make([]byte, 5)
					sealed := aead.Seal(nil, nonce, buf[:n], aad)
					b.SetBytes(int64(n))
					b.ReportAllocs()
					do(b, aead, buf, sealed, nonce, aad)
				})
			}
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	benchmark(b, func(b *testing.B, aead cipher.AEAD, buf, _, nonce, aad []byte) {
		for b.Loop() {
			aead.Seal(buf[:0], nonce, buf[:len(buf)-tagBytes], aad)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	benchmark(b, func(b *testing.B, aead cipher.AEAD, buf, sealed, nonce, aad []byte) {
		for b.Loop() {
			if _, err := aead.Open(buf[:0], nonce, sealed, aad); err != nil {
				b.Fatal(err)
			}
		}
	})
}
