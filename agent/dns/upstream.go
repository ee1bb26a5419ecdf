package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
)

// Why a server was of no use.
const (
	causeTimeout = "timeout"
	causeRefused = "refused" // nobody listens there
	causeCode    = "code"    // it answered with a failure
	causeOther   = "other"
)

func causeOf(err error) string {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return causeTimeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return causeRefused
	}
	return causeOther
}

// ask asks a server, until ctx is done. whole: the answer is wanted whole, however
// large, so that one that is cut off is fetched over TCP; stream: over TCP at once.
func ask(ctx context.Context, sockets Sockets, server netip.AddrPort, q *wire.Query, whole, stream bool) (*wire.Response, error) {
	if stream {
		r, err := askTCP(ctx, sockets, server, q)
		if err == nil || ctx.Err() != nil {
			return r, err
		}
		// Servers must have TCP (RFC 7766), and some have not.
	}
	r, err := askUDP(ctx, sockets, server, q)
	if err != nil || !r.Truncated || !whole || stream {
		return r, err
	}
	if all, err := askTCP(ctx, sockets, server, q); err == nil {
		return all, nil
	}
	return r, nil // the client learns that there is more
}

// askUDP sends the query again when nothing comes, as stub resolvers do: from the
// same port, so that a late answer counts.
func askUDP(ctx context.Context, sockets Sockets, server netip.AddrPort, q *wire.Query) (*wire.Response, error) {
	conn, err := sockets.DialDNS(server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // wakes the read below
	id := newID()
	query := q.Upstream(id)
	b := make([]byte, 4096)
	var last error
	for _, wait := range resend {
		if _, err := conn.Write(query); err != nil {
			last = err
			if sleep(ctx, refusedPause) != nil {
				break
			}
			continue
		}
		r, err := receive(ctx, conn, b, q, id, time.Now().Add(wait))
		switch {
		case err == nil:
			return r, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, syscall.ECONNREFUSED) && errors.Is(last, syscall.ECONNREFUSED):
			return nil, err // its process is gone: the client may have another server
		case errors.Is(err, syscall.ECONNREFUSED):
			if err := sleep(ctx, refusedPause); err != nil {
				return nil, err
			}
		}
		last = err
	}
	return nil, last
}

// receive waits for the answer, and passes over everything else.
func receive(ctx context.Context, conn net.Conn, b []byte, q *wire.Query, id uint16, until time.Time) (*wire.Response, error) {
	if err := conn.SetReadDeadline(until); err != nil {
		return nil, err
	}
	for {
		if ctx.Err() != nil { // its waker may have come before the deadline was set
			return nil, ctx.Err()
		}
		n, err := conn.Read(b)
		if err != nil {
			return nil, err
		}
		if r, err := wire.ParseResponse(append([]byte(nil), b[:n]...), q, id); err == nil {
			return r, nil
		}
	}
}

func askTCP(ctx context.Context, sockets Sockets, server netip.AddrPort, q *wire.Query) (*wire.Response, error) {
	dialling, cancel := context.WithTimeout(ctx, dialTCP)
	defer cancel()
	conn, err := sockets.DialEgress(dialling, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // wakes what waits below
	id := newID()
	if err := writeMessage(conn, q.Upstream(id)); err != nil {
		return nil, err
	}
	b, err := readMessage(conn)
	if err != nil {
		return nil, err
	}
	return wire.ParseResponse(b, q, id)
}

// readMessage and writeMessage frame messages over TCP (RFC 1035, section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeMessage(w io.Writer, b []byte) error {
	if len(b) > wire.Largest {
		return fmt.Errorf("message of %d bytes", len(b))
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...))
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newID draws a query's ID (RFC 5452, section 9.2).
func newID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return binary.BigEndian.Uint16(b[:])
}
