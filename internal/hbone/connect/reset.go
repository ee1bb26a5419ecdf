package connect

import (
	"errors"
	"time"
)

// lastWordsWithin bounds how long an application that does not read keeps a stream
// that the peer has reset.
const lastWordsWithin = 3 * time.Second

// errFated ends the writing to a stream that the peer has reset, and the reading from
// it behind what came before.
var errFated = errors.New("the peer has reset the stream")

// peerReset is the peer's RST_STREAM: what came before it goes to the application
// first. The caller holds the lock.
func (st *stream) peerReset(err error) {
	st.resetKnown = true
	if !st.delivering && st.recvEnd && st.sentEnd {
		return // the stream has ended, and is delivered
	}
	if !st.delivering || st.fate != nil {
		st.drop(err)
		return
	}
	st.fate = err
	st.changed.Broadcast()
	st.patience = time.AfterFunc(lastWordsWithin, func() {
		st.conn.live.Lock()
		st.drop(err)
		st.conn.live.Unlock()
		st.relay.Fail(err) // which st.ctx has not done, if the connection ended before
	})
}

// fated says that the peer has reset the stream, which deliver ends when it is through.
func (st *stream) fated() bool {
	st.conn.live.Lock()
	defer st.conn.live.Unlock()
	return st.fate != nil
}

// resetBehindEnd waits, behind END_STREAM, for a RST_STREAM or for the other end of
// the stream, and says whether it was the former.
func (st *stream) resetBehindEnd() bool {
	st.conn.live.Lock()
	defer st.conn.live.Unlock()
	for st.fate == nil && st.err == nil && !st.sentEnd {
		st.changed.Wait()
	}
	st.delivering = false
	return st.fate != nil && st.err == nil
}
