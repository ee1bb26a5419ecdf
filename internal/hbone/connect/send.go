package connect

import "github.com/heddle-mesh/heddle/internal/hbone/relay"

// write sends p as DATA, as windows allow, and flushes. It returns how many
// bytes went out.
func (st *stream) write(p []byte) (sent int, err error) {
	for len(p) > 0 && err == nil {
		if err = st.awaitRoom(); err != nil {
			return sent, err
		}
		var n int
		if n, err = st.writeRoom(p); err == nil {
			sent += n
		}
		p = p[n:]
	}
	return sent, err
}

// awaitRoom waits for flow control.
func (st *stream) awaitRoom() error {
	c := st.conn
	c.live.Lock()
	defer c.live.Unlock()
	for {
		if st.err != nil {
			return st.err
		}
		if st.fate != nil {
			return errFated
		}
		if min(st.sendWindow, c.live.sendWindow) > 0 {
			return nil
		}
		st.changed.Wait()
	}
}

// writeRoom sends as much of p as there is room for by now. Nothing is written between
// taking the room and the DATA, and what is queued goes before both: the windows of a
// peer's SETTINGS are what it holds us to from our acknowledgement on, be they larger or
// smaller (RFC 9113 section 6.5.3), and that waits in the queue.
func (st *stream) writeRoom(p []byte) (n int, err error) {
	w := &st.conn.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	n, before := st.reserve(len(p))
	if err := w.writeAll(before); err != nil {
		return 0, st.broken(err)
	}
	if n == 0 {
		return 0, st.broken(w.out.Flush())
	}
	return n, st.writeData(p[:n], false)
}

// reserve takes up to n bytes of flow control, and the frames that go before them. The
// caller holds the wire's lock.
func (st *stream) reserve(n int) (int, []controlFrame) {
	c := st.conn
	c.live.Lock()
	defer c.live.Unlock()
	before := c.takeControl()
	room := min(st.sendWindow, c.live.sendWindow)
	if room <= 0 || st.err != nil || st.fate != nil {
		return 0, before
	}
	n = int(min(int64(n), room, relay.FrameBytes))
	st.sendWindow -= int64(n)
	c.live.sendWindow -= int64(n)
	return n, before
}

// takeControl empties the queue, for who writes it before anything else: the caller holds
// both locks, the wire's first.
func (c *Conn) takeControl() []controlFrame {
	frames := c.live.control
	c.live.control = nil
	return frames
}

// writeAll does not flush.
func (w *wire) writeAll(frames []controlFrame) error {
	for _, f := range frames {
		if err := w.writeControl(f); err != nil {
			return err
		}
	}
	return nil
}
