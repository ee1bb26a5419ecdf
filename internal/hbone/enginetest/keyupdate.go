package enginetest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/net/http2"
)

func keyTests() []test {
	return []test{
		{"KeyUpdate by a client", testKeyUpdateByClient}, {"KeyUpdate by a server", testKeyUpdateByServer},
		{"KeyUpdates often", testKeyUpdatesOften}, {"KeyUpdate flood", testKeyUpdateFlood}, {"KeyUpdate flood with data between", testKeyUpdatesAndData}, {"records that are wrong", testBadRecords},
	}
}

// tlsPeer is a TLS 1.3 connection that does what crypto/tls cannot be made to:
// change its key when it wants to, and send records that are wrong. It has a
// record layer of its own, written from RFC 8446 section 5, to try the engines'
// against. One goroutine may read while others write.
type tlsPeer struct {
	net.Conn
	writing sync.Mutex // around out
	in, out direction
	plain   []byte
	updates atomic.Int64 // KeyUpdates that came
}

// direction protects one direction's records.
type direction struct {
	suite  uint16
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	n      uint64
}

func (d *direction) install(secret []byte) error {
	newHash, keyBytes := sha256.New, 16
	switch d.suite {
	case tls.TLS_AES_256_GCM_SHA384:
		newHash, keyBytes = sha512.New384, 32
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		keyBytes = 32
	}
	key, err := label(newHash, secret, "key", keyBytes)
	if err != nil {
		return err
	}
	if d.suite == tls.TLS_CHACHA20_POLY1305_SHA256 {
		d.aead, err = chacha20poly1305.New(key)
	} else if block, blockErr := aes.NewCipher(key); blockErr == nil {
		d.aead, err = cipher.NewGCM(block)
	} else {
		err = blockErr
	}
	if err != nil {
		return err
	}
	d.secret, d.n = secret, 0
	d.iv, err = label(newHash, secret, "iv", 12)
	return err
}

func label(newHash func() hash.Hash, secret []byte, name string, n int) ([]byte, error) {
	info := append([]byte{byte(n >> 8), byte(n), byte(len("tls13 " + name))}, "tls13 "+name+"\x00"...)
	return hkdf.Expand(newHash, secret, string(info), n)
}

func (d *direction) nonce() []byte {
	nonce := bytes.Clone(d.iv)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^d.n)
	d.n++
	return nonce
}

func (d *direction) update() error {
	newHash := sha256.New
	if d.suite == tls.TLS_AES_256_GCM_SHA384 {
		newHash = sha512.New384
	}
	next, err := label(newHash, d.secret, "traffic upd", len(d.secret))
	if err != nil {
		return err
	}
	return d.install(next)
}

func (d *direction) seal(kind byte, p []byte) []byte {
	inner := append(bytes.Clone(p), kind)
	head := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+16))
	return d.aead.Seal(bytes.Clone(head), d.nonce(), inner, head)
}

// Write sends data records.
func (p *tlsPeer) Write(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	for rest := b; len(rest) > 0; {
		n := min(len(rest), 1<<14)
		if _, err := p.Conn.Write(p.out.seal(23, rest[:n])); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

// update sends a KeyUpdate, with a request for the other end's or without.
func (p *tlsPeer) update(request byte) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if _, err := p.Conn.Write(p.out.seal(22, []byte{24, 0, 0, 1, request})); err != nil {
		return err
	}
	return p.out.update()
}

// Read reads data, follows KeyUpdates, and drops session tickets.
func (p *tlsPeer) Read(b []byte) (int, error) {
	for len(p.plain) == 0 {
		record := newBuffer(5)
		if _, err := io.ReadFull(p.Conn, record); err != nil {
			return 0, err
		}
		record = append(record, newBuffer(int(binary.BigEndian.Uint16(record[3:])))...)
		if _, err := io.ReadFull(p.Conn, record[5:]); err != nil {
			return 0, err
		}
		inner, err := p.in.aead.Open(nil, p.in.nonce(), record[5:], record[:5])
		if err != nil {
			return 0, err
		}
		inner = bytes.TrimRight(inner, "\x00")
		data, kind := inner[:len(inner)-1], inner[len(inner)-1]
		switch {
		case kind == 23:
			p.plain = data
		case kind == 21:
			if data[1] == 0 { // close_notify
				return 0, io.EOF
			}
			return 0, fmt.Errorf("alert %d", data[1])
		case kind == 22 && data[0] == 24:
			if data[4] != 0 {
				return 0, errors.New("an engine asks for a KeyUpdate")
			}
			p.updates.Add(1)
			if err := p.in.update(); err != nil {
				return 0, err
			}
		}
	}
	n := copy(b, p.plain)
	p.plain = p.plain[n:]
	return n, nil
}

// byRecord gives crypto/tls one record at a time, so that it takes none beyond
// the handshake.
type byRecord struct {
	net.Conn
	left []byte
}

func (c *byRecord) Read(b []byte) (int, error) {
	if len(c.left) == 0 {
		head := newBuffer(5)
		if _, err := io.ReadFull(c.Conn, head); err != nil {
			return 0, err
		}
		c.left = append(head, newBuffer(int(binary.BigEndian.Uint16(head[3:])))...)
		if _, err := io.ReadFull(c.Conn, c.left[5:]); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.left)
	c.left = c.left[n:]
	return n, nil
}

// secretLog keeps the two application traffic secrets.
type secretLog struct {
	mu             sync.Mutex
	client, server []byte
}

func (s *secretLog) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fields := bytes.Fields(line)
	secret, err := hex.DecodeString(string(fields[2]))
	switch string(fields[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		s.client = secret
	case "SERVER_TRAFFIC_SECRET_0":
		s.server = secret
	}
	return len(line), err
}

// newTLSPeer shakes hands by crypto/tls, then takes the connection over.
func newTLSPeer(conn net.Conn, cfg *tls.Config, client bool) (*tlsPeer, error) {
	var secrets secretLog
	cfg.KeyLogWriter, cfg.SessionTicketsDisabled = &secrets, true
	secured := tls.Server(&byRecord{Conn: conn}, cfg)
	if client {
		secured = tls.Client(&byRecord{Conn: conn}, cfg)
	}
	if err := secured.Handshake(); err != nil {
		return nil, err
	}
	suite := secured.ConnectionState().CipherSuite
	p := &tlsPeer{Conn: conn, in: direction{suite: suite}, out: direction{suite: suite}}
	in, out := secrets.server, secrets.client
	if !client {
		in, out = out, in
	}
	return p, errors.Join(p.in.install(in), p.out.install(out))
}

// tlsClient connects to the rig's server by a tlsPeer.
func (r *rig) tlsClient() (*tlsPeer, *raw) {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.endpoint.String())
	must(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	p, err := newTLSPeer(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*r.client.cert}}, true)
	must(r.t, err)
	c := newRaw(r.t, p)
	_, err = p.Write([]byte(http2.ClientPreface))
	must(r.t, err)
	must(r.t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	must(r.t, c.fr.WriteWindowUpdate(0, 1<<30))
	return p, c
}

const keyTraffic = 200_000 // bytes each way, within the windows that engines begin with

// exchange writes random bytes on a stream between changes of key, reads as
// many, and compares. The engine answers a request, and nothing else: at most
// once for each.
func exchange(p *tlsPeer, c *raw, id uint32, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 46))
	data := newBuffer(keyTraffic)
	_, _ = bytesOf(seed, 0).Read(data) // never fails
	written := newChan[error](1)
	var requested atomic.Int64
	go func() {
		for rest := data; len(rest) > 0; {
			n := min(1+random.IntN(9000), len(rest))
			if err := c.fr.WriteData(id, false, rest[:n]); err != nil {
				written <- err
				return
			}
			rest = rest[n:]
			for range random.IntN(3) { // two in a row too
				request := byte(random.IntN(2))
				requested.Add(int64(request))
				if err := p.update(request); err != nil {
					written <- err
					return
				}
			}
		}
		written <- nil
	}()
	var back []byte
	for len(back) < len(data) {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", len(back), err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			back = append(back, d.Data()...)
		}
	}
	if err := <-written; err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return errors.New("bytes changed")
	}
	if got, most := p.updates.Load(), requested.Load(); got == 0 || got > most {
		return fmt.Errorf("%d KeyUpdates for %d requests", got, most)
	}
	return nil
}

func testKeyUpdateByClient(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	for seed := range uint64(4) {
		p, c := r.tlsClient()
		must(t, p.update(0)) // before the first stream too
		c.connect(1, false)
		application := within(t, r.apps, "the application's connection")
		go func() {
			defer application.Close()
			_, _ = io.Copy(application, application) // exchange sees what comes back
		}()
		if err := exchange(p, c, 1, seed); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	r.open(r.request()).finish()
}

func testKeyUpdateByServer(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	l := listen(t, "127.0.0.1:0")
	served := newChan[error](1)
	go func() { served <- r.serveKeys(l) }()
	t.Cleanup(func() { l.Close() })
	f := r.start(to(r.request(), l.Addr()))
	within(t, f.opened, "Established")
	go func() { _, _ = io.Copy(f.program, f.program) }() // ends with the connection
	if err := within(t, served, "the exchange"); err != nil {
		t.Error(err)
	}
	reset(t, f.program)
	f.outcome()
}

// serveKeys accepts one connection and changes keys on it under traffic.
func (r *rig) serveKeys(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	r.t.Cleanup(func() { conn.Close() })
	p, err := newTLSPeer(conn, &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*r.server.cert}, ClientAuth: tls.RequireAnyClientCert}, false)
	if err != nil {
		return err
	}
	c := newRaw(r.t, p)
	if err := c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}); err != nil {
		return err
	}
	if _, err := io.ReadFull(p, newBuffer(len(http2.ClientPreface))); err != nil {
		return err
	}
	id, err := c.request()
	if err != nil {
		return err
	}
	if err := errors.Join(c.fr.WriteWindowUpdate(0, 1<<30), c.answer(id, 200, false)); err != nil {
		return err
	}
	return exchange(p, c, id, 7)
}

// testKeyUpdatesOften: a peer that changes its key with each message, and asks for as
// much, is served for as long as it likes.
func testKeyUpdatesOften(t *testing.T, make New) {
	const messages, bytes = 300, 1500
	r := newRig(t, make, Options{})
	p, c := r.tlsClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	must(t, app.SetReadDeadline(time.Now().Add(wait)))
	for n := range messages {
		must(t, errors.Join(p.update(1), c.fr.WriteData(1, false, newBuffer(bytes))))
		if _, err := io.ReadFull(app, newBuffer(bytes)); err != nil {
			t.Fatalf("message %d: %v", n, err)
		}
	}
}

// testKeyUpdateFlood: changes of key without end cost work, and end the
// connection; honest ones go on.
func testKeyUpdateFlood(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	honest := r.open(r.request())
	p, c := r.tlsClient()
	go func() {
		for range 1_000_000 {
			if p.update(0) != nil {
				return
			}
		}
	}()
	c.dead()
	honest.echo("still here")
	honest.finish()
}

// testKeyUpdatesAndData: so do those that have some data between them.
func testKeyUpdatesAndData(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	honest := r.open(r.request())
	p, c := r.tlsClient()
	c.connect(1, false)
	application := within(t, r.apps, "the application's connection")
	if code := c.status(1); code != 200 { // and the SETTINGS before it
		t.Fatalf("status %d", code)
	}
	go func() {
		defer application.Close()
		_, _ = io.Copy(io.Discard, application) // until the end, which is what is waited for
	}()
	go func() {
		for range 30_000 { // within the windows
			if p.update(0) != nil || c.fr.WriteData(1, false, []byte{1}) != nil {
				return
			}
		}
	}()
	c.dead()
	honest.echo("still here")
	honest.finish()
}

// testBadRecords: what does not authenticate, and what TLS does not allow after
// the handshake, ends the connection and its streams.
func testBadRecords(t *testing.T, make New) {
	for name, send := range map[string]func(p *tlsPeer) []byte{
		"forged":   func(p *tlsPeer) []byte { b := p.out.seal(23, []byte("x")); b[len(b)-1] ^= 1; return b },
		"repeated": func(p *tlsPeer) []byte { b := p.out.seal(23, ping()); return append(b, b...) },
		"too long": func(*tlsPeer) []byte { return []byte{23, 3, 3, 0x41, 1} },
		"plain": func(*tlsPeer) []byte {
			return []byte{23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}
		},
		"unknown type":      func(p *tlsPeer) []byte { return p.out.seal(99, []byte("x")) },
		"a new ClientHello": func(p *tlsPeer) []byte { return p.out.seal(22, []byte{1, 0, 0, 0}) },
		"KeyUpdate of 2":    func(p *tlsPeer) []byte { return p.out.seal(22, []byte{24, 0, 0, 1, 2}) },
		"a fatal alert":     func(p *tlsPeer) []byte { return p.out.seal(21, []byte{2, 80}) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, make, Options{})
			p, c := r.tlsClient()
			c.connect(1, false)
			application := within(t, r.apps, "the application's connection")
			defer application.Close()
			if code := c.status(1); code != 200 {
				t.Fatalf("status %d", code)
			}
			_, err := p.Conn.Write(send(p))
			must(t, err)
			c.dead()
			expectReset(t, application, false)
			if in := r.lastInbound(1); in.Err == nil {
				t.Error("the stream ended in order")
			}
		})
	}
}

// ping is a PING frame.
func ping() []byte { return []byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8} }
