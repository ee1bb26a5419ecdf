package relay

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

const (
	// recordHeader is the length of a TLS record's header (RFC 8446 section 5.1).
	recordHeader = 5
	// uselessBurst is how many records may have come that gave no data: more than
	// crypto/tls reads ahead, of the smallest. uselessRate is how many a second come
	// to that.
	uselessBurst, uselessRate = 4096, 0.5
)

// Records is a connection below crypto/tls that counts the records which come, for
// the sake of those that carry no data: changes of keys are the dearest. crypto/tls
// ends a connection for 16 of them in a row, and for no number with a byte of data
// between them. It belongs to the goroutine that reads.
type Records struct {
	net.Conn
	head  [recordHeader]byte
	have  int // bytes of head
	left  int // bytes of the record to come
	came  int64
	gave  int64 // reads with data, of which each record of data has one or more
	since time.Time
}

// NewRecords counts what is read from c, from Data on.
func NewRecords(c net.Conn) *Records { return &Records{Conn: c} }

// Read implements net.Conn.
func (r *Records) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.count(p[:max(n, 0)])
	return n, err
}

func (r *Records) count(p []byte) {
	for len(p) > 0 {
		if r.left > 0 {
			n := min(len(p), r.left)
			p, r.left = p[n:], r.left-n
			continue
		}
		n := copy(r.head[r.have:], p)
		p, r.have = p[n:], r.have+n
		if r.have == recordHeader {
			r.have, r.left = 0, int(binary.BigEndian.Uint16(r.head[3:]))
			r.came++
		}
	}
}

// Data is what a connection above Records gives once its handshake is done. Reading
// fails with ErrLimit when too many records have given none. Other connections are
// read as they are.
func Data(secured *tls.Conn) io.Reader {
	r, ok := secured.NetConn().(*Records)
	if !ok {
		return secured
	}
	r.came, r.gave, r.since = 0, 0, time.Now()
	return &recordData{secured, r}
}

type recordData struct {
	*tls.Conn
	records *Records
}

func (d *recordData) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	r := d.records
	if n > 0 {
		r.gave++
	}
	if useless := r.came - r.gave; useless > uselessBurst && float64(useless-uselessBurst) > uselessRate*time.Since(r.since).Seconds() {
		return 0, fmt.Errorf("%w: %d TLS records without data", hbone.ErrLimit, useless)
	}
	return n, err
}
