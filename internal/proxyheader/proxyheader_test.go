package proxyheader_test

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxyheader"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const signature = "0d0a0d0a000d0a515549540a"

func header(client, service, identity string) proxyheader.Header {
	return proxyheader.Header{Client: netip.MustParseAddrPort(client), Service: netip.MustParseAddrPort(service), Identity: identity}
}

func bytesOf(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAppend has the bytes as section 2.2 lays them out.
func TestAppend(t *testing.T) {
	for _, c := range []struct {
		name string
		h    proxyheader.Header
		want string
	}{
		{"IPv4", header("10.1.2.3:4660", "10.96.0.1:80", ""),
			signature + "21 11 000c 0a010203 0a600001 1234 0050"},
		{"IPv6", header("[fd00::3]:4660", "[fd00::1]:80", ""),
			signature + "21 21 0024 fd000000000000000000000000000003 fd000000000000000000000000000001 1234 0050"},
		{"both", header("10.1.2.3:4660", "[fd00::1]:80", ""),
			signature + "21 21 0024 00000000000000000000ffff0a010203 fd000000000000000000000000000001 1234 0050"},
		{"mapped", header("[::ffff:10.1.2.3]:4660", "10.96.0.1:80", ""),
			signature + "21 11 000c 0a010203 0a600001 1234 0050"},
		{"identity", header("10.1.2.3:0", "10.96.0.1:80", "spiffe://a/b"),
			signature + "21 11 001b 0a010203 0a600001 0000 0050 e0 000c 7370696666653a2f2f612f62"},
	} {
		before := []byte("before")
		got := proxyheader.Append(before, c.h)
		if want := append(before, bytesOf(t, c.want)...); string(got) != string(want) {
			t.Errorf("%s: got %x, want %x", c.name, got, want)
		}
	}
}

// TestParse gives every beginning of a header, and then what follows it.
func TestParse(t *testing.T) {
	for _, h := range []proxyheader.Header{
		header("10.1.2.3:4660", "10.96.0.1:80", ""),
		header("10.1.2.3:0", "10.96.0.1:80", "spiffe://mesh.test/ns/shop/sa/web"),
		header("[fd00::3]:65535", "[fd00::1]:443", strings.Repeat("x", proxyheader.MaxIdentity)),
		header("10.1.2.3:1", "[fd00::1]:443", "spiffe://mesh.test/ns/shop/sa/web"),
	} {
		whole := proxyheader.Append(nil, h)
		for n := range whole {
			if _, _, err := proxyheader.Parse(whole[:n]); !errors.Is(err, proxyheader.ErrMore) {
				t.Fatalf("%v: %d of %d bytes: %v, want ErrMore", h, n, len(whole), err)
			}
		}
		got, n, err := proxyheader.Parse(append(whole, "GET / HTTP/1.1"...))
		if err != nil || got != h || n != len(whole) {
			t.Errorf("got %v, %d, %v; want %v, %d", got, n, err, h, len(whole))
		}
	}
}

// TestOthersTLVs: their types are skipped, as the specification asks of readers.
func TestOthersTLVs(t *testing.T) {
	b := bytesOf(t, signature+"21 11 0021 0a010203 0a600001 1234 0050 04 0003 000000 e0 0006 7370696666 65 02 0000 ea 0000")
	got, n, err := proxyheader.Parse(b)
	if want := header("10.1.2.3:4660", "10.96.0.1:80", "spiffe"); err != nil || got != want || n != len(b) {
		t.Errorf("got %v, %d, %v; want %v, %d", got, n, err, want, len(b))
	}
}

func TestRefused(t *testing.T) {
	const tcp4 = " 0a010203 0a600001 1234 0050"
	long := strings.Repeat("78", proxyheader.MaxIdentity+1)
	for _, c := range []struct{ name, text, want string }{
		{"version 1", hex.EncodeToString([]byte("PROXY TCP4 10.1.2.3 10.96.0.1 1 2\r\n")), "signature"},
		{"the first byte", "47", "signature"},
		{"the last byte of the signature", "0d0a0d0a000d0a515549540b", "signature"},
		{"LOCAL", signature + "20", "LOCAL"},
		{"another command", signature + "22", "command"},
		{"version 3", signature + "31", "command"},
		{"UDP", signature + "21 12", "family"},
		{"UNIX", signature + "21 31", "family"},
		{"unspecified", signature + "21 00", "family"},
		{"no room for addresses", signature + "21 11 000b", "no room"},
		{"IPv4's room for IPv6", signature + "21 21 000c" + tcp4, "no room"},
		{"too long", signature + "21 11 ffff", "more than 4096"},
		{"one byte too long", signature + "21 11 0ff1", "more than 4096"},
		{"half a TLV", signature + "21 11 000e" + tcp4 + "e0 00", "within a TLV"},
		{"a TLV that lies", signature + "21 11 000f" + tcp4 + "e0 0001", "longer than what is left"},
		{"an empty identity", signature + "21 11 000f" + tcp4 + "e0 0000", "0 bytes"},
		{"two identities", signature + "21 11 0014" + tcp4 + "e0 0001 78 e0 0001 78", "two identities"},
		{"an endless identity", signature + "21 11 0810" + tcp4 + "e0 0801" + long, "2049 bytes"},
	} {
		_, n, err := proxyheader.Parse(bytesOf(t, c.text))
		if !errors.Is(err, proxyheader.ErrInvalid) || n != 0 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d, %v; want an error about %q", c.name, n, err, c.want)
		}
	}
}

func TestAppendPanics(t *testing.T) {
	for _, h := range []proxyheader.Header{
		{},
		{Client: netip.MustParseAddrPort("10.1.2.3:1")},
		header("10.1.2.3:1", "10.96.0.1:80", strings.Repeat("x", proxyheader.MaxIdentity+1)),
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v was written", h)
				}
			}()
			proxyheader.Append(nil, h)
		}()
	}
}

// FuzzParse: what is read and written again is read the same, and is never longer; a
// beginning of what is refused is refused too, or not whole.
func FuzzParse(f *testing.F) {
	f.Add(proxyheader.Append(nil, header("10.1.2.3:4660", "10.96.0.1:80", "spiffe://mesh.test/ns/shop/sa/web")))
	f.Add(proxyheader.Append(nil, header("[fd00::3]:1", "10.96.0.1:80", "")))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := proxyheader.Parse(b)
		if err != nil {
			if n != 0 || h != (proxyheader.Header{}) {
				t.Fatalf("%v with %v, %d", err, h, n)
			}
			if errors.Is(err, proxyheader.ErrMore) == errors.Is(err, proxyheader.ErrInvalid) {
				t.Fatalf("%v is both or neither", err)
			}
			if errors.Is(err, proxyheader.ErrMore) && len(b) >= proxyheader.MaxLength {
				t.Fatalf("%d bytes are not enough", len(b))
			}
			return
		}
		if n > len(b) || n > proxyheader.MaxLength || len(h.Identity) > proxyheader.MaxIdentity {
			t.Fatalf("%v takes %d of %d bytes", h, n, len(b))
		}
		for _, k := range []int{0, n / 2, n - 1} {
			if _, _, err := proxyheader.Parse(b[:k]); !errors.Is(err, proxyheader.ErrMore) {
				t.Fatalf("%d of %d bytes: %v", k, n, err)
			}
		}
		again := proxyheader.Append(nil, h)
		if back, m, err := proxyheader.Parse(again); err != nil || back != h || m != len(again) || m > n {
			t.Fatalf("%v was written as %x and read as %v, %d, %v", h, again, back, m, err)
		}
	})
}
