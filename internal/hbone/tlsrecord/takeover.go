package tlsrecord

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
)

// Client shakes hands as a client over conn and takes the connection's record
// layer over. Nothing was read from conn beyond the handshake, and nothing
// written. An error of the handshake is crypto/tls's own; conn stays open. gcm is
// New's.
func Client(ctx context.Context, conn net.Conn, cfg *tls.Config, gcm GCM) (*Session, tls.ConnectionState, error) {
	return shake(ctx, conn, cfg, gcm, true)
}

// Server is Client for the other end. Session tickets are off whatever cfg
// says: they would be sent under the key that is taken over.
func Server(ctx context.Context, conn net.Conn, cfg *tls.Config, gcm GCM) (*Session, tls.ConnectionState, error) {
	return shake(ctx, conn, cfg, gcm, false)
}

func shake(ctx context.Context, conn net.Conn, cfg *tls.Config, gcm GCM, client bool) (*Session, tls.ConnectionState, error) {
	if fips140.Enabled() {
		return nil, tls.ConnectionState{}, ErrFIPS140 // before any secret leaves crypto/tls
	}
	var secrets trafficSecrets
	defer secrets.erase()
	cfg = cfg.Clone()
	cfg.KeyLogWriter = &secrets
	cfg.SessionTicketsDisabled = true
	bounded := &recordConn{Conn: conn}
	var secured *tls.Conn
	if client {
		secured = tls.Client(bounded, cfg)
	} else {
		secured = tls.Server(bounded, cfg)
	}
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, tls.ConnectionState{}, err
	}
	state := secured.ConnectionState()
	if state.Version != tls.VersionTLS13 || state.DidResume {
		return nil, state, errors.New("not a full handshake of TLS 1.3")
	}
	if bounded.remaining != 0 || len(bounded.header) != 0 {
		return nil, state, errors.New("handshake ended inside a record")
	}
	in, out := secrets.server, secrets.client
	if in == nil || out == nil {
		return nil, state, errors.New("crypto/tls told no traffic secrets")
	}
	if !client {
		in, out = out, in
	}
	s, err := New(State{
		In:     Keys{Suite: state.CipherSuite, Secret: bytes.Clone(in)},
		Out:    Keys{Suite: state.CipherSuite, Secret: bytes.Clone(out)},
		Server: !client,
	}, gcm)
	if err != nil {
		return nil, state, fmt.Errorf("take record layer over: %w", err)
	}
	return s, state, nil
}

// trafficSecrets is a KeyLogWriter that keeps the two first application traffic
// secrets (RFC 8446 section 7.1) and forgets the others.
type trafficSecrets struct{ client, server []byte }

// Write takes one line: label, client random, secret.
func (s *trafficSecrets) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	if len(fields) != 3 {
		return len(line), nil
	}
	var into *[]byte
	switch string(fields[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		into = &s.client
	case "SERVER_TRAFFIC_SECRET_0":
		into = &s.server
	default:
		return len(line), nil
	}
	secret := make([]byte, hex.DecodedLen(len(fields[2])))
	if _, err := hex.Decode(secret, fields[2]); err != nil {
		return 0, fmt.Errorf("decode traffic secret: %w", err)
	}
	*into = secret
	return len(line), nil
}

func (s *trafficSecrets) erase() {
	clear(s.client)
	clear(s.server)
}

// recordConn gives crypto/tls no byte beyond the record that it is reading. At
// the end of the handshake the next record is then still in the socket, and
// both sequence numbers are 0.
type recordConn struct {
	net.Conn
	buf       [HeaderBytes]byte
	header    []byte // what is left of the current header
	remaining int    // bytes of the current record that are still to come
}

// Read implements net.Conn.
func (c *recordConn) Read(p []byte) (int, error) {
	if len(c.header) == 0 && c.remaining == 0 {
		if _, err := io.ReadFull(c.Conn, c.buf[:]); err != nil {
			return 0, err
		}
		c.header = c.buf[:]
		c.remaining = int(binary.BigEndian.Uint16(c.buf[3:]))
	}
	if len(c.header) > 0 {
		n := copy(p, c.header)
		c.header = c.header[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.remaining)])
	c.remaining -= n
	return n, err
}
