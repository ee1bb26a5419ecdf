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
// taking the room and the DATA: an acknowledgement of SETTINGS that made the window
// smaller, for one, behind which the peer allows no more than that (RFC 9113 section 6.5.3).
func (st *stream) writeRoom(p []byte) (n int, err error) {
	w := &st.conn.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if n = st.reserve(len(p)); n == 0 {
		return 0, nil
	}
	return n, st.writeData(p[:n], false)
}

// reserve takes up to n bytes of flow control.
func (st *stream) reserve(n int) int {
	c := st.conn
	c.live.Lock()
	defer c.live.Unlock()
	room := min(st.sendWindow, c.live.sendWindow)
	if room <= 0 || st.err != nil || st.fate != nil {
		return 0
	}
	n = int(min(int64(n), room, relay.FrameBytes))
	st.sendWindow -= int64(n)
	c.live.sendWindow -= int64(n)
	return n
}
