package passthrough_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/passthrough"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// half is one end of a connection that keeps what is written, and has something to read.
type half struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (h *half) Read(b []byte) (int, error)       { return h.in.Read(b) }
func (h *half) Write(b []byte) (int, error)      { return h.out.Write(b) }
func (h *half) SetDeadline(time.Time) error      { return nil }
func (h *half) SetReadDeadline(time.Time) error  { return nil }
func (h *half) SetWriteDeadline(time.Time) error { return nil }
func (h *half) Close() error                     { return nil }

// hello is the ClientHello of crypto/tls for a configuration.
func hello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	h := &half{in: strings.NewReader("")}
	if err := tls.Client(h, cfg).Handshake(); !errors.Is(err, io.EOF) {
		t.Fatalf("the handshake ended with %v", err)
	}
	return h.out.Bytes()
}

// message is what a ClientHello in one record says.
func message(record []byte) []byte { return record[5:] }

// records puts a message into records of so many bytes.
func records(message []byte, size int) (all []byte) {
	for len(message) > 0 {
		n := min(size, len(message))
		all = append(all, 22, 3, 1, byte(n>>8), byte(n))
		all, message = append(all, message[:n]...), message[n:]
	}
	return all
}

func whole(b []byte) (string, passthrough.Verdict) {
	var h passthrough.Hello
	return h.Read(b)
}

func TestRealClients(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  *tls.Config
		want string
		is   passthrough.Verdict
	}{
		"as it is":       {&tls.Config{ServerName: "cart.example.com"}, "cart.example.com", passthrough.Named},
		"TLS 1.2":        {&tls.Config{ServerName: "cart.example.com", MaxVersion: tls.VersionTLS12}, "cart.example.com", passthrough.Named},
		"in capitals":    {&tls.Config{ServerName: "CART.Example.com"}, "cart.example.com", passthrough.Named},
		"with protocols": {&tls.Config{ServerName: "a_b.c", NextProtos: []string{"h2", "http/1.1"}}, "a_b.c", passthrough.Named},
		"an address":     {&tls.Config{ServerName: "10.0.0.1"}, "", passthrough.Nameless}, // which clients leave out
		"no name":        {&tls.Config{InsecureSkipVerify: true}, "", passthrough.Nameless},
	} {
		b := hello(t, c.cfg)
		if got, is := whole(b); got != c.want || is != c.is {
			t.Errorf("%s: %q, %s", name, got, is)
		}
		for n := range b { // in two pieces
			if _, is := whole(b[:n]); is != passthrough.More {
				t.Fatalf("%s: after %d of %d bytes: %s", name, n, len(b), is)
			}
		}
	}
}

// TestPieces: records and segments of any size come to the same, and more may follow.
func TestPieces(t *testing.T) {
	b := hello(t, &tls.Config{ServerName: "cart.example.com"})
	rapid.Check(t, func(t *rapid.T) {
		all := records(message(b), rapid.IntRange(1, len(b)).Draw(t, "record"))
		end := len(all)
		all = append(all, rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "behind it")...)
		var h passthrough.Hello
		for n := 0; ; {
			n = min(len(all), n+rapid.IntRange(1, len(all)).Draw(t, "segment"))
			name, is := h.Read(all[:n])
			if is == passthrough.More && n < end {
				continue
			}
			if name != "cart.example.com" || is != passthrough.Named || n < end {
				t.Fatalf("after %d of %d bytes: %q, %s", n, end, name, is)
			}
			return
		}
	})
}

// build makes a ClientHello with these extensions.
func build(extensions ...[]byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	all := bytes.Join(extensions, nil)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(all))), all...)
	return records(append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...), 1<<14)
}

func extension(kind uint16, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), uint16(len(body))), body...)
}

// names is the extension with a list of names, each of a type.
func names(entries ...string) []byte {
	var list []byte
	for _, e := range entries {
		list = append(list, e[0])
		list = append(binary.BigEndian.AppendUint16(list, uint16(len(e)-1)), e[1:]...)
	}
	return extension(0, append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)...)
}

func TestMessages(t *testing.T) {
	grease, ech := extension(0x1a1a), extension(0xfe0d, 0, 0, 1, 0, 1, 7, 0, 0, 0, 0)
	good := build(names("\x00a.b"))
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for what, c := range map[string]struct {
		b    []byte
		name string
		is   passthrough.Verdict
	}{
		"a letter that is a k only in Unicode": {build(names("\x00\u212a.b")), "", passthrough.Malformed},
		"one name":                             {good, "a.b", passthrough.Named},
		"GREASE and ECH around it":             {build(grease, names("\x00outer.example"), ech), "outer.example", passthrough.Named},
		"ECH alone":                            {build(ech), "", passthrough.Nameless},
		"a name of another type":               {build(names("\x07x")), "", passthrough.Malformed},
		"and one of a host":                    {build(names("\x07x", "\x00a.b")), "a.b", passthrough.Named},
		"two names":                            {build(names("\x00a.b", "\x00c.d")), "", passthrough.Malformed},
		"the extension twice":                  {build(names("\x00a.b"), names("\x00a.b")), "", passthrough.Malformed},
		"an empty list":                        {build(extension(0, 0, 0)), "", passthrough.Malformed},
		"an empty extension":                   {build(extension(0)), "", passthrough.Malformed},
		"an empty name":                        {build(names("\x00")), "", passthrough.Malformed},
		"a dot at the end":                     {build(names("\x00a.b.")), "", passthrough.Malformed},
		"an empty label":                       {build(names("\x00a..b")), "", passthrough.Malformed},
		"a dot first":                          {build(names("\x00.b")), "", passthrough.Malformed},
		"an address":                           {build(names("\x0010.0.0.1")), "", passthrough.Malformed},
		"an address of IPv6":                   {build(names("\x00::1")), "", passthrough.Malformed},
		"a port":                               {build(names("\x00a.b:443")), "", passthrough.Malformed},
		"a wildcard":                           {build(names("\x00*.b")), "", passthrough.Malformed},
		"a zero byte":                          {build(names("\x00a.b\x00.c")), "", passthrough.Malformed},
		"no ASCII":                             {build(names("\x00ä.b")), "", passthrough.Malformed},
		"the longest":                          {build(names("\x00" + strings.Repeat("a.", 126) + "b")), strings.Repeat("a.", 126) + "b", passthrough.Named},
		"a longer one":                         {build(names("\x00" + strings.Repeat("a.", 126) + "bb")), "", passthrough.Malformed},
		"HTTP":                                 {[]byte("GET / HTTP/1.1\r\n\r\n"), "", passthrough.Foreign},
		"SSH":                                  {[]byte("SSH-2.0-x\r\n"), "", passthrough.Foreign},
		"SSL 2":                                {[]byte{0x80, 0x2e, 1, 0, 2}, "", passthrough.Foreign},
		"an alert":                             {passthrough.Alert(50), "", passthrough.Foreign},
		"one byte of it":                       {[]byte{22}, "", passthrough.More},
		"nothing":                              {nil, "", passthrough.More},
		"version 4":                            {[]byte{22, 4}, "", passthrough.Foreign},
		"a ServerHello":                        {changed(5, 2), "", passthrough.Malformed},
		"an empty record":                      {[]byte{22, 3, 1, 0, 0}, "", passthrough.Malformed},
		"a record that is too long":            {[]byte{22, 3, 1, 0x40, 1}, "", passthrough.Malformed},
		"a message that is too long":           {changed(6, 1), "", passthrough.Malformed},
		"another record in the middle":         {append(records(message(good), 10)[:15], 23, 3, 3, 0, 1, 0), "", passthrough.Malformed},
		"a session's name of 33":               {changed(43, 33), "", passthrough.Malformed},
	} {
		if name, is := whole(c.b); name != c.name || is != c.is {
			t.Errorf("%s: %q, %s; want %q, %s", what, name, is, c.name, c.is)
		}
	}
	old := message(good)[:4+2+32+7] // without extensions at all, as before TLS 1.2
	old = append([]byte{1, 0, 0, byte(len(old) - 4)}, old[4:]...)
	if _, is := whole(records(old, 100)); is != passthrough.Nameless {
		t.Errorf("without extensions: %s", is)
	}
}

// TestBounds: no more than MaxBytes are ever asked for, in however small records they come.
func TestBounds(t *testing.T) {
	body := append([]byte{1, 0, 0x3f, 0}, make([]byte, 0x3f00)...)
	for _, size := range []int{1, 2, 3, 100, 1 << 13} {
		all, at := records(body, size), 0
		var h passthrough.Hello
		for {
			at++
			if at > len(all) {
				t.Fatalf("records of %d bytes: more than %d are asked for", size, len(all))
			}
			if _, is := h.Read(all[:at]); is != passthrough.More {
				break
			}
			if at > passthrough.MaxBytes {
				t.Fatalf("records of %d bytes: more than %d are asked for", size, at)
			}
		}
	}
}

// serverName is what crypto/tls takes for the name in what a client has sent; false when it does not take that for a ClientHello.
func serverName(b []byte) (name string, ok bool) {
	h := &half{in: bytes.NewReader(b)}
	found := errors.New("found")
	_ = tls.Server(h, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = info.ServerName, true
		return nil, found
	}}).HandshakeContext(context.Background())
	return strings.ToLower(name), ok
}

// FuzzHello: it reads the same whatever the pieces are, and where crypto/tls takes it for a ClientHello too it has the same name.
func FuzzHello(f *testing.F) {
	for _, cfg := range []*tls.Config{{ServerName: "cart.example.com"}, {ServerName: "a", MaxVersion: tls.VersionTLS12}, {InsecureSkipVerify: true}} {
		b := hello(f, cfg)
		f.Add(b, uint16(1))
		f.Add(records(message(b), 50), uint16(7))
	}
	f.Add(build(names("\x07x", "\x00a.b")), uint16(3))
	f.Add(build(names("\x00a.b"), names("\x00a.b")), uint16(3))
	f.Add(passthrough.Alert(112), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, step uint16) {
		name, is := whole(b)
		var h passthrough.Hello
		var again string
		var verdict passthrough.Verdict
		for n := 0; n < len(b) && verdict == passthrough.More; {
			n = min(len(b), n+int(step)%1000+1)
			again, verdict = h.Read(b[:n])
		}
		if again != name || verdict != is {
			t.Fatalf("at once %q, %s; in pieces %q, %s", name, is, again, verdict)
		}
		if (is == passthrough.Named) != (name != "") {
			t.Fatalf("%q, %s", name, is)
		}
		if is != passthrough.Named && is != passthrough.Nameless {
			return
		}
		if theirs, ok := serverName(b); ok && theirs != name {
			t.Fatalf("%q here, and %q to crypto/tls", name, theirs)
		}
	})
}
