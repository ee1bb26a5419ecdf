package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kind says what a message is.
type kind uint8

const (
	kindHello kind = iota + 1
	kindWelcome
	kindRefused
	kindListeners
	kindStandby
	kindReady
	kindFailed
	kindMoving
	kindBatch
	kindPrepared
	kindRejected
	kindCommit
	kindAbort
	kindRecords // from version 2 on
	kindDone
	kindTaken
	kindAccepting
	kindFiles // descriptors for the next message
)

// Bounds of what a peer may send. Both ends are root's; the bounds keep a
// mistake from taking the memory and the descriptors of an agent that serves.
const (
	maxControl = 64 << 10
	maxBody    = 64 << 20
	maxFiles   = 8192
	// filesAtOnce is the kernel's SCM_MAX_FD (include/net/scm.h).
	filesAtOnce = 253
)

// header is the fixed beginning of a message: kind, three zero bytes, the length
// of the body, the number of descriptors that come with the header, and the
// batch that it is about.
const headerBytes = 16

// message is one message as it was received; its files are the receiver's.
type message struct {
	kind  kind
	batch uint32
	body  []byte
	files []int
}

// closeFiles closes what nobody has taken.
func (m *message) closeFiles() {
	closeAll(m.files)
	m.files = nil
}

func closeAll(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd) // a duplicate: there is nothing to lose
	}
}

// channel sends and receives messages. One goroutine may send while another
// receives.
type channel struct{ conn *net.UnixConn }

// errUnsent is matched by the error of a send of which nothing was sent, errIdle
// by that of a receive before which nothing came in time.
var (
	errUnsent = errors.New("nothing was sent")
	errIdle   = errors.New("nothing came")
)

// send writes one message within a bound. The descriptors stay the caller's.
func (c channel) send(k kind, batch uint32, body []byte, files []int, within time.Duration) error {
	o := &outgoing{channel: c, kind: k, batch: batch, body: body, files: files}
	err := o.push(within)
	if err != nil && !o.begun {
		return fmt.Errorf("%w: %w", errUnsent, err)
	}
	return err
}

// outgoing is a message on its way: what is left of it after a push that ended
// early is for the next one.
type outgoing struct {
	channel
	kind   kind
	batch  uint32
	body   []byte
	files  []int
	begun  bool // some of it is sent
	headed bool // its header is, with the descriptors
}

// push writes what is left, within a bound.
func (o *outgoing) push(within time.Duration) error {
	if len(o.body) > limitOf(o.kind) || len(o.files) > maxFiles {
		return fmt.Errorf("message %d of %d bytes with %d files is too large", o.kind, len(o.body), len(o.files))
	}
	if err := o.conn.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	for len(o.files) > filesAtOnce {
		if err := o.head(kindFiles, 0, o.files[:filesAtOnce]); err != nil {
			return err
		}
		o.files = o.files[filesAtOnce:]
	}
	if !o.headed {
		if err := o.head(o.kind, len(o.body), o.files); err != nil {
			return err
		}
		o.headed, o.files = true, nil
	}
	if len(o.body) == 0 {
		return nil
	}
	n, err := o.conn.Write(o.body)
	o.body = o.body[n:]
	return err
}

// head writes a header, which the kernel takes whole or not at all
// (net/unix/af_unix.c, unix_stream_sendmsg).
func (o *outgoing) head(k kind, bytes int, files []int) error {
	header := make([]byte, headerBytes)
	header[0] = byte(k)
	binary.BigEndian.PutUint32(header[4:], uint32(bytes))
	binary.BigEndian.PutUint32(header[8:], uint32(len(files)))
	binary.BigEndian.PutUint32(header[12:], o.batch)
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	n, _, err := o.conn.WriteMsgUnix(header, rights, nil)
	o.begun = o.begun || n > 0
	return err
}

// keep makes what is left independent of the caller's descriptors. They are to be
// closed.
func (o *outgoing) keep() error {
	var kept []int
	for _, fd := range o.files {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(kept)
			return err
		}
		kept = append(kept, dup)
	}
	o.files = kept
	return nil
}

// limitOf bounds the body of a message.
func limitOf(k kind) int {
	if k == kindBatch || k == kindRecords {
		return maxBody
	}
	return maxControl
}

// receive reads one message; descriptors that came for it are in it. The bound
// of time covers all of it; 0 means none.
func (c channel) receive(within time.Duration) (*message, error) {
	var deadline time.Time
	if within > 0 {
		deadline = time.Now().Add(within)
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	var files []int
	for {
		m, err := c.read()
		if err != nil {
			if len(files) > 0 {
				err = fmt.Errorf("in the middle of a message: %v", err)
			}
			closeAll(files)
			return nil, err
		}
		m.files = append(files, m.files...)
		switch {
		case len(m.files) > maxFiles:
			m.closeFiles()
			return nil, fmt.Errorf("message with more than %d descriptors", maxFiles)
		case m.kind != kindFiles:
			return m, nil
		}
		files = m.files
	}
}

func (c channel) read() (_ *message, err error) {
	m := &message{}
	defer func() {
		if err != nil {
			m.closeFiles()
		}
	}()
	header := make([]byte, headerBytes)
	for got := 0; got < headerBytes; {
		rights := make([]byte, unix.CmsgSpace(4*filesAtOnce))
		n, ctl, flags, _, err := c.conn.ReadMsgUnix(header[got:], rights)
		if ctl > 0 {
			files, parsing := rightsOf(rights[:ctl])
			m.files = append(m.files, files...)
			err = errors.Join(err, parsing)
		}
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errors.New("descriptors were lost on the way: the limit of open files is reached")
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && got == 0 && len(m.files) == 0 {
			err = fmt.Errorf("%w: %w", errIdle, err)
		}
		if err != nil {
			return nil, err
		}
		got += n
	}
	length, files, err := parseHeader(header, m)
	if err != nil {
		return nil, err
	}
	if len(m.files) != files {
		return nil, fmt.Errorf("message has %d descriptors, and said %d", len(m.files), files)
	}
	m.body, err = readBody(c.conn, length)
	return m, err
}

// parseHeader reads kind and batch into m, and returns the body's length and the
// number of descriptors.
func parseHeader(header []byte, m *message) (length, files int, err error) {
	m.kind = kind(header[0])
	m.batch = binary.BigEndian.Uint32(header[12:])
	l, f := binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint32(header[8:])
	switch {
	case m.kind == 0 || m.kind > kindFiles || header[1]|header[2]|header[3] != 0:
		return 0, 0, fmt.Errorf("message of an unknown kind %d", header[0])
	case l > uint32(limitOf(m.kind)):
		return 0, 0, fmt.Errorf("message %d of %d bytes is too large", m.kind, l)
	case f > filesAtOnce:
		return 0, 0, fmt.Errorf("message %d with %d descriptors at once", m.kind, f)
	}
	return int(l), int(f), nil
}

// readBody allocates as bytes arrive, not as a header promises.
func readBody(r io.Reader, length int) ([]byte, error) {
	const step = 1 << 20
	body := make([]byte, 0, min(length, step))
	for len(body) < length {
		at := len(body)
		body = append(body, make([]byte, min(length-at, step))...)
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func rightsOf(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	var files []int
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("read descriptors: %w", err)
		}
		files = append(files, some...)
	}
	return files, nil
}
