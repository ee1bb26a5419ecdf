package tlsrecord

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"slices"
	"strings"
	"testing"
)

// The simple 1-RTT handshake of RFC 8448 section 3: its application traffic
// secrets, what they become, and the records under them in their order.
const (
	traceClientSecret = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"
	traceServerSecret = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"

	traceServerKey, traceServerIV = "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"
	traceClientKey, traceClientIV = "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"

	traceTicket = "040000c90000001efad6aac502000000b22c035d829359ee5ff7af4ec900000000" +
		"262a6494dc486d2c8a34cb33fa90bf1b0070ad3c498883c9367c09a2be785abc55cd226097a3a98211" +
		"7283f82a03a143efd3ff5dd36d64e861be7fd61d2827db279cce145077d454a3664d4e6da4d29ee037" +
		"25a6a4dafcd0fc67d2aea70529513e3da2677fa5906c5b3f7d8f92f228bda40dda721470f9fbf297b5" +
		"aea617646fac5c03272e970727c621a79141ef5f7de6505e5bfbc388e93343694093934ae4d3570008" +
		"002a000400000400"
	traceTicketRecord = "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d1" +
		"1d63c758db289a015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca" +
		"7f2b9fa1b6c0d4a3d03f75e09c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b4" +
		"06f16e3fc181a77ca475840025db2f0a77f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d1" +
		"43f9605d64f650db4d023e70e952ca49fe5137121c74bc2697687e248746d6df353005f3bce18696129c81" +
		"53556b3b6c6779b37bf15985684f"
	traceClientData = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd5" +
		"4a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4"
	traceServerData = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc60" +
		"2dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d"
	traceClientAlert = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3"
	traceServerAlert = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// traceEnds are both ends of the trace's connection.
func traceEnds(t *testing.T) (client, server *Session) {
	t.Helper()
	keys := func(secret string) Keys { return Keys{Suite: tls.TLS_AES_128_GCM_SHA256, Secret: unhex(t, secret)} }
	client, err := New(State{In: keys(traceServerSecret), Out: keys(traceClientSecret)}, fastest())
	if err != nil {
		t.Fatal(err)
	}
	server, err = New(State{In: keys(traceClientSecret), Out: keys(traceServerSecret)}, fastest())
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// TestVectors seals and opens every record of the trace under the application
// keys, byte for byte.
func TestVectors(t *testing.T) {
	data := make([]byte, 50)
	for i := range data {
		data[i] = byte(i)
	}
	client, server := traceEnds(t)
	for _, c := range []struct {
		name     string
		from, to *Session
		kind     byte
		plain    []byte
		want     string
		err      error
	}{
		{"NewSessionTicket", server, client, typeHandshake, unhex(t, traceTicket), traceTicketRecord, nil},
		{"the client's data", client, server, typeApplication, data, traceClientData, nil},
		{"the server's data", server, client, typeApplication, data, traceServerData, nil},
		{"the client's close_notify", client, server, typeAlert, []byte{alertLevelWarning, byte(CloseNotify)}, traceClientAlert, ErrClosed},
		{"the server's close_notify", server, client, typeAlert, []byte{alertLevelWarning, byte(CloseNotify)}, traceServerAlert, ErrClosed},
	} {
		sealed := record(c.from, c.kind, c.plain)
		if want := unhex(t, c.want); !bytes.Equal(sealed, want) {
			t.Errorf("%s: sealed %x\nwant %x", c.name, sealed, want)
		}
		got, err := c.to.Open(unhex(t, c.want))
		if !errors.Is(err, c.err) {
			t.Fatalf("%s: %v, want %v", c.name, err, c.err)
		}
		if c.kind == typeApplication && !bytes.Equal(got, c.plain) {
			t.Errorf("%s: opened %x", c.name, got)
		}
	}
}

// TestVectorKeys: keys and IVs of the trace (RFC 8446 section 7.3).
func TestVectorKeys(t *testing.T) {
	newHash, keyBytes, err := suiteHash(tls.TLS_AES_128_GCM_SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for secret, want := range map[string][2]string{
		traceClientSecret: {traceClientKey, traceClientIV}, traceServerSecret: {traceServerKey, traceServerIV},
	} {
		key, err := expandLabel(newHash, unhex(t, secret), "key", keyBytes)
		if err != nil || hex.EncodeToString(key) != want[0] {
			t.Errorf("key %x, %v; want %s", key, err, want[0])
		}
		iv, err := expandLabel(newHash, unhex(t, secret), "iv", nonceBytes)
		if err != nil || hex.EncodeToString(iv) != want[1] {
			t.Errorf("iv %x, %v; want %s", iv, err, want[1])
		}
	}
}

// onceExpanded is HKDF-Expand-Label(secret, label, "", n) for n of at most one
// block, written out from RFC 5869 section 2.3 with nothing but an HMAC.
func onceExpanded(newHash func() hash.Hash, secret []byte, label string, n int) []byte {
	mac := hmac.New(newHash, secret)
	mac.Write(binary.BigEndian.AppendUint16(nil, uint16(n)))
	mac.Write([]byte{byte(len("tls13 " + label))})
	mac.Write([]byte("tls13 " + label))
	mac.Write([]byte{0, 1}) // no context; the counter
	return mac.Sum(nil)[:n]
}

// TestUpdateDerivation follows the secrets of every suite over generations, and
// checks that the one before is wiped (RFC 8446 section 7.2).
func TestUpdateDerivation(t *testing.T) {
	for name, k := range suites() {
		newHash, keyBytes, err := suiteHash(k.Suite)
		if err != nil {
			t.Fatal(err)
		}
		a, b := two(t, k)
		want := bytes.Clone(k.Secret)
		for generation := range 5 {
			want = onceExpanded(newHash, want, "traffic upd", len(want))
			old := a.out.keys.Secret
			update, err := a.AppendUpdate(nil)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(old, make([]byte, len(old))) {
				t.Errorf("%s: the secret of generation %d is still in memory", name, generation)
			}
			if _, err := b.Open(update); err != nil {
				t.Fatalf("%s: generation %d: %v", name, generation, err)
			}
			if !bytes.Equal(a.out.keys.Secret, want) || !bytes.Equal(b.in.keys.Secret, want) {
				t.Errorf("%s: generation %d: secrets %x and %x, want %x", name, generation, a.out.keys.Secret, b.in.keys.Secret, want)
			}
			aead, err := (&half{gcm: StandardGCM}).newAEAD(k.Suite, onceExpanded(newHash, want, "key", keyBytes))
			if err != nil {
				t.Fatal(err)
			}
			sealed := record(a, typeApplication, []byte("x"))
			plain, err := aead.Open(nil, onceExpanded(newHash, want, "iv", nonceBytes), sealed[HeaderBytes:], sealed[:HeaderBytes])
			if err != nil || string(plain) != "x\x17" {
				t.Errorf("%s: generation %d: another implementation opens %q, %v", name, generation, plain, err)
			}
			if _, err := b.Open(sealed); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestUnknownKeys: a suite that is none of TLS 1.3's, and a secret of another
// suite's length, make no session.
func TestUnknownKeys(t *testing.T) {
	good := aes128()
	for _, bad := range []Keys{
		{Suite: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, Secret: good.Secret}, {Suite: 0, Secret: good.Secret},
		{Suite: tls.TLS_AES_256_GCM_SHA384, Secret: good.Secret}, {Suite: good.Suite, Secret: nil}, {Suite: good.Suite, Secret: []byte(strings.Repeat("x", 48))},
	} {
		if _, err := New(State{In: bad, Out: good}, nil); err == nil {
			t.Errorf("suite %#x with %d bytes reads", bad.Suite, len(bad.Secret))
		}
		if _, err := New(State{In: good, Out: bad}, nil); err == nil {
			t.Errorf("suite %#x with %d bytes writes", bad.Suite, len(bad.Secret))
		}
	}
}

// forgetful writes down which ciphers were wiped, and that none is used after.
type forgetful struct {
	cipher.AEAD
	t     *testing.T
	wiped bool
}

func (f *forgetful) Wipe() { f.wiped = true }

func (f *forgetful) Seal(dst, nonce, plaintext, aad []byte) []byte {
	if f.wiped {
		f.t.Error("a wiped cipher seals")
	}
	return f.AEAD.Seal(dst, nonce, plaintext, aad)
}

func (f *forgetful) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if f.wiped {
		f.t.Error("a wiped cipher opens")
	}
	return f.AEAD.Open(dst, nonce, ciphertext, aad)
}

// forgetfulSession has the ciphers of its generations, incoming ones and outgoing ones
// in the order in which they were made.
func forgetfulSession(t *testing.T) (s *Session, made *[]*forgetful) {
	t.Helper()
	made = &[]*forgetful{}
	keys := func() Keys { k := aes128(); k.Secret = bytes.Clone(k.Secret); return k }
	s, err := New(State{In: keys(), Out: keys()}, func(key []byte) (cipher.AEAD, error) {
		aead, err := StandardGCM(key)
		f := &forgetful{AEAD: aead, t: t}
		*made = append(*made, f)
		return f, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, made
}

func wiped(made []*forgetful) (w []bool) {
	for _, f := range made {
		w = append(w, f.wiped)
	}
	return w
}

// TestUpdateWipesTheCipher: where the old key's cipher can forget it, it does, and
// no other; of the secret, nothing is left.
func TestUpdateWipesTheCipher(t *testing.T) {
	s, made := forgetfulSession(t)
	oldIn, oldOut := s.in.keys.Secret, s.out.keys.Secret
	record, err := s.AppendUpdate(nil)
	if got := wiped(*made); err != nil || !slices.Equal(got, []bool{false, true, false}) {
		t.Errorf("ours: wiped %v, %v", got, err)
	}
	if bytes.Equal(oldIn, make([]byte, len(oldIn))) || !bytes.Equal(oldOut, make([]byte, len(oldOut))) {
		t.Error("ours: the wrong secret is wiped")
	}
	// The peer's, which has the key that we read with.
	if _, err := s.Open(record); err != nil {
		t.Fatal(err)
	}
	if got := wiped(*made); !slices.Equal(got, []bool{true, true, false, false}) {
		t.Errorf("the peer's: wiped %v", got)
	}
	if !bytes.Equal(oldIn, make([]byte, len(oldIn))) {
		t.Error("the peer's: its secret is left")
	}
}

// TestWipedSessionRefuses: it has no key, and uses none.
func TestWipedSessionRefuses(t *testing.T) {
	s, made := forgetfulSession(t)
	record := make([]byte, 4+Overhead)
	record = record[:s.Seal(record, 4)]
	s.fragment = []byte{messageTicket, 0, 0, 100, 1}
	in, out, fragment := s.in.keys.Secret, s.out.keys.Secret, s.fragment
	s.Wipe()
	s.Wipe()
	if got := wiped(*made); !slices.Equal(got, []bool{true, true}) {
		t.Errorf("wiped %v", got)
	}
	for what, b := range map[string][]byte{"secret to read": in, "secret to write": out, "fragment": fragment, "iv to read": s.in.iv[:], "iv to write": s.out.iv[:], "nonce": s.out.nonce[:]} {
		if len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("the %s is left: %x", what, b)
		}
	}
	if r, ok := errors.AsType[*RecordError](errOf(s.Open(record))); !ok || r.Alert != InternalError {
		t.Errorf("a record is opened: %v", r)
	}
	buf := []byte("head plaintext that goes nowhere, with room for a record's tag")
	before := bytes.Clone(buf)
	if n := s.Seal(buf, 9); n != 0 || !bytes.Equal(buf, before) {
		t.Errorf("a record of %d bytes is sealed: %q", n, buf)
	}
	if b := s.AppendAlert([]byte("x"), CloseNotify); string(b) != "x" {
		t.Errorf("an alert is sealed: %x", b)
	}
	if b, err := s.AppendUpdate([]byte("x")); string(b) != "x" || err == nil {
		t.Errorf("a KeyUpdate is sealed: %x, %v", b, err)
	}
	if s.UpdateDue() {
		t.Error("a KeyUpdate is due")
	}
	if _, err := New(s.State(), nil); err == nil {
		t.Error("another session can go on from it")
	}
}

func errOf(_ []byte, err error) error { return err }
