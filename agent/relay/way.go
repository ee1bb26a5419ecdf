package relay

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// readsPerTurn bounds how long one direction may keep its neighbours waiting, and
// those who post: two pipes of bytes, at most. A message takes one read to get,
// and one to find nothing.
const readsPerTurn = 2

// way is one direction of a pair: what comes from fd and goes to to.fd. It holds
// bytes only while to.fd takes none, as held or in a pipe, never both.
type way struct {
	pair *Carrying
	to   *way // the other direction
	n    *atomic.Uint64
	fd   int

	held   []byte  // not written yet
	buf    *[]byte // the pooled buffer that held is in; nil when it is in none
	pipe   *pipe   // nil when empty
	inPipe int

	bulk   bool
	ended  bool // FIN was read, and passed on
	broken bool // fd takes no more: its last words are all that is left
	queued bool // in the worker's list
}

// Ready implements eventloop.Source.
func (d *way) Ready(e eventloop.Events) {
	c := d.pair
	if c.over || c.frozen || c.isParting() {
		return
	}
	// An end that has sent FIN can still reset, and so can one whose bytes
	// cannot be read for now: then nobody reads to see it. Else, what came
	// before the RST is read first.
	if e.Broken() && (d.ended || d.stuck()) {
		if errno := eventloop.SocketError(d.fd); errno != 0 {
			d.lastWords(errno)
		}
	}
	if c.over {
		return
	}
	if e.Writable() && d.to.stuck() {
		c.worker.queue(d.to)
	}
	if e.Readable() {
		c.worker.queue(d)
	}
}

// stuck says that there are bytes which to.fd has not taken.
func (d *way) stuck() bool { return len(d.held) > 0 || d.pipe != nil }

// pump moves what is there, and says whether there may be more at once. Only a
// read that finds nothing is the last one: a short one may have stopped at
// urgent data (net/ipv4/tcp.c, tcp_recvmsg_locked).
func (d *way) pump() (more bool) {
	for range readsPerTurn {
		if d.pair.over || d.pair.frozen || d.pair.isParting() || d.to.broken || d.stuck() && !d.flush() || d.ended {
			return false
		}
		var errno syscall.Errno
		if p := d.takePipe(); p != nil {
			errno = d.fill(p)
		} else {
			errno = d.copy()
		}
		switch errno {
		case 0:
		case syscall.EAGAIN:
			return false
		default:
			d.part(errno)
			return false
		}
	}
	return true
}

func (d *way) takePipe() *pipe {
	if !d.bulk {
		return nil
	}
	return d.pair.worker.relay.takePipe()
}

// copy reads once and writes at once; what is not taken goes into a buffer.
func (d *way) copy() syscall.Errno {
	scratch := d.pair.worker.scratch
	n, errno := eventloop.Read(d.fd, scratch)
	if errno != 0 {
		return errno
	}
	if n == 0 {
		return d.passEnd()
	}
	d.bulk = n == len(scratch)
	written, errno := d.write(scratch[:n])
	switch errno {
	case 0:
		return 0
	case syscall.EAGAIN:
		d.buf = d.pair.worker.relay.buffers.Get().(*[]byte)
		d.held = (*d.buf)[:copy(*d.buf, scratch[written:n])]
	default:
		d.to.lastWords(errno)
	}
	return syscall.EAGAIN
}

// write writes until all is written or the socket takes no more.
func (d *way) write(p []byte) (written int, errno syscall.Errno) {
	for written < len(p) && errno == 0 {
		var n int
		n, errno = eventloop.Write(d.to.fd, p[written:])
		written += n
	}
	d.n.Add(uint64(written))
	return written, errno
}

// fill splices what fd has into the empty pipe, and on. Urgent data stops
// splice, not read: what it does not give is tried once more by reading.
func (d *way) fill(p *pipe) syscall.Errno {
	n, err := retry(func() (int, error) { return spliceOnce(d.fd, p.w, spliceBytes) })
	if err != nil || n == 0 {
		d.pair.worker.relay.givePipe(p)
		if err == unix.EAGAIN {
			return d.copy()
		}
		if err != nil {
			return err.(syscall.Errno) // unix.Splice returns no other
		}
		return d.passEnd()
	}
	d.bulk = n >= bulkBytes
	d.pipe, d.inPipe = p, n
	if !d.flush() {
		return syscall.EAGAIN
	}
	return 0
}

// flush writes what the direction holds, and says whether all of it is gone. It
// ends the pair when it cannot be.
func (d *way) flush() bool {
	for d.inPipe > 0 {
		n, err := retry(func() (int, error) { return spliceOnce(d.pipe.r, d.to.fd, d.inPipe) })
		if err == unix.EAGAIN {
			return false
		}
		if err == nil && n == 0 {
			d.pair.fail(errLost)
			return false
		}
		if err != nil {
			d.to.lastWords(err)
			return false
		}
		d.inPipe -= n
		d.n.Add(uint64(n))
	}
	if len(d.held) > 0 {
		n, errno := d.write(d.held)
		d.held = d.held[n:]
		if errno == syscall.EAGAIN {
			return false
		}
		if errno != 0 {
			d.to.lastWords(errno)
			return false
		}
	}
	d.drop()
	return true
}

// drop gives the buffer or the pipe back.
func (d *way) drop() {
	r := d.pair.worker.relay
	if d.pipe != nil && d.inPipe > 0 {
		r.dropPipe(d.pipe)
	} else if d.pipe != nil {
		r.givePipe(d.pipe)
	}
	if d.buf != nil {
		r.buffers.Put(d.buf)
	}
	d.pipe, d.inPipe, d.held, d.buf = nil, 0, nil, nil
}

// passEnd passes the FIN on, which is this direction's only. Reading also ends so
// after a RST whose error was told before (net/ipv4/tcp_input.c, tcp_reset).
func (d *way) passEnd() syscall.Errno {
	if d.broken {
		return syscall.ECONNRESET
	}
	d.ended = true
	if err := eventloop.CloseWrite(d.to.fd); err != nil {
		d.to.lastWords(err)
		return syscall.EAGAIN
	}
	d.pair.finish()
	return 0
}
