package aesgcm

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// guarded returns n bytes that end where memory ends, and n that begin where it
// begins: one step beside either is a fault.
func guarded(t *testing.T, n int) (end, start []byte) {
	t.Helper()
	page := unix.Getpagesize()
	room := (n + page - 1) / page * page
	m, err := unix.Mmap(-1, 0, room+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	for _, beside := range [][]byte{m[:page], m[page+room:]} {
		if err := unix.Mprotect(beside, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return m[page+room-n : page+room : page+room], m[page : page+n : page+n]
}

// TestNoByteBeside has every buffer between pages that cannot be touched. A
// fault ends the test.
func TestNoByteBeside(t *testing.T) {
	testenv.NeedProcessor(t, missing())
	const most = 1100
	srcEnd, srcStart := guarded(t, most+tagBytes)
	dstEnd, dstStart := guarded(t, most+tagBytes)
	aadEnd, aadStart := guarded(t, 64)
	plain, nonce := random(9, most), random(10, nonceBytes)
	for _, keyBytes := range []int{16, 32} {
		own, standard := pair(t, newVector, random(11, keyBytes))
		for n := range most + 1 {
			aadN := n % 65
			aad := random(12, aadN)
			want := standard.Seal(nil, nonce, plain[:n], aad)
			for _, b := range [][3][]byte{
				{srcEnd[len(srcEnd)-n-tagBytes:], dstEnd[len(dstEnd)-n-tagBytes:], aadEnd[64-aadN:]},
				{srcStart[:n+tagBytes], dstStart[:n+tagBytes], aadStart[:aadN]},
			} {
				src, dst := b[0], b[1]
				copy(b[2], aad)
				// The source ends at the guard; its tag is in front of it here.
				in := src[tagBytes:]
				if &src[0] == &srcStart[0] {
					in = src[:n]
				}
				copy(in, plain[:n])
				if own.Seal(dst[:0], nonce, in, b[2]); !bytes.Equal(dst, want) {
					t.Fatalf("%d bytes beside the guard: sealed otherwise", n)
				}
				copy(src, want)
				out := dst[:n]
				if &src[0] != &srcStart[0] {
					out = dst[tagBytes:]
				}
				opened, err := own.Open(out[:0], nonce, src, b[2])
				if err != nil || !bytes.Equal(opened, plain[:n]) {
					t.Fatalf("%d bytes beside the guard: %v", n, err)
				}
			}
		}
	}
}

// TestWritesNothingElse looks at the bytes around the output.
func TestWritesNothingElse(t *testing.T) {
	testenv.NeedProcessor(t, missing())
	own, _ := pair(t, newVector, make([]byte, 16))
	nonce := make([]byte, nonceBytes)
	for n := range 600 {
		buf := bytes.Repeat([]byte{0xa5}, n+tagBytes+128)
		sealed := own.Seal(buf[64:64:64+n+tagBytes], nonce, make([]byte, n), nil)
		other := bytes.Repeat([]byte{0xa5}, n+128)
		if _, err := own.Open(other[64:64:64+n], nonce, sealed, nil); err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{buf, other} {
			if bytes.Count(b[:64], []byte{0xa5}) != 64 || bytes.Count(b[len(b)-64:], []byte{0xa5}) != 64 {
				t.Fatalf("%d bytes: written outside", n)
			}
		}
	}
}

// TestCounterWraps begins near the counter's end, which no nonce of 12 bytes
// reaches with less than 64 GiB: the other 96 bits stay (SP 800-38D section 6.2).
func TestCounterWraps(t *testing.T) {
	testenv.NeedProcessor(t, missing())
	for _, keyBytes := range []int{16, 32} {
		key := random(13, keyBytes)
		aead, err := newVector(key)
		if err != nil {
			t.Fatal(err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		for back := range uint32(40) {
			for _, n := range []int{100, 255, 256, 640, 1000} {
				counter := [16]byte(bytes.Repeat([]byte{0xff}, 16))
				binary.BigEndian.PutUint32(counter[12:], -back)
				want, in := make([]byte, n), random(14, n)
				for i, at := 0, counter; i < n; i += 16 {
					var stream [16]byte
					binary.BigEndian.PutUint32(at[12:], binary.BigEndian.Uint32(at[12:])+1)
					block.Encrypt(stream[:], at[:])
					for j := i; j < min(i+16, n); j++ {
						want[j] = in[j] ^ stream[j-i]
					}
				}
				var tag, again [16]byte
				got := make([]byte, n)
				s := &aead.(*vector).schedule
				seal(s, &counter, &got[0], &in[0], n, nil, 0, &tag)
				if !bytes.Equal(got, want) {
					t.Fatalf("AES-%d, %d before the end: wrong after the wrap", keyBytes*8, back)
				}
				if open(s, &counter, &got[0], &got[0], n, nil, 0, &again); !bytes.Equal(got, in) || tag != again {
					t.Fatalf("AES-%d, %d before the end: not opened", keyBytes*8, back)
				}
			}
		}
	}
}

func TestWipe(t *testing.T) {
	testenv.NeedProcessor(t, missing())
	v := &vector{schedule{long: 1}}
	expand(&v.schedule, unsafe.SliceData(random(15, 32)))
	if v.rounds[14] == [16]byte{} || v.powers[0] == [16]byte{} {
		t.Fatal("nothing to wipe")
	}
	if v.Wipe(); v.schedule != (schedule{}) {
		t.Error("something of the key is left")
	}
}

// TestLayout holds the assembler's offsets to the type.
func TestLayout(t *testing.T) {
	var s schedule
	if unsafe.Offsetof(s.powers) != 48 || unsafe.Offsetof(s.rounds) != 320 || unsafe.Sizeof(s) > 576 {
		t.Errorf("powers at %d, rounds at %d, %d bytes", unsafe.Offsetof(s.powers), unsafe.Offsetof(s.rounds), unsafe.Sizeof(s))
	}
	testenv.NeedProcessor(t, missing())
	aead, err := newVector(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	if at := uintptr(unsafe.Pointer(aead.(*vector))); at%64 != 0 {
		t.Errorf("a schedule begins at %#x: vectors of powers straddle lines of cache", at)
	}
}

// TestWithoutVAES is this package's tests on a processor without it: what cannot
// be tested there is skipped, and says why, rather than passed.
func TestWithoutVAES(t *testing.T) {
	needs := []string{"TestNoByteBeside", "TestWritesNothingElse", "TestCounterWraps", "TestWipe", "TestLayout", "FuzzAgainstStandard"}
	again := exec.Command("/proc/self/exe", "-test.v", "-test.run=^(TestFastest|TestMisuse|"+strings.Join(needs, "|")+")$")
	again.Env = append(os.Environ(), "GODEBUG=cpu.avx512vaes=off")
	out, err := again.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range append(needs, "TestMisuse/own") {
		if !bytes.Contains(out, []byte("--- SKIP: "+name+" ")) {
			t.Errorf("%s is not skipped", name)
		}
	}
	for _, said := range []string{"--- PASS: TestFastest", "--- PASS: TestMisuse/standard", "this processor has no VAES"} {
		if missing() != "" && strings.Contains(said, "has no") {
			said = "this processor has no " + missing()
		}
		if !bytes.Contains(out, []byte(said)) {
			t.Errorf("%q is not said", said)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
