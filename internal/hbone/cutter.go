package hbone

import "sync"

// Cutter ends one stream from outside, whatever the engine has made of its
// sockets: an engine may take a *net.TCPConn apart, and then closing that has no
// effect. The zero value is ready; it is safe for concurrent use.
type Cutter struct {
	mu    sync.Mutex
	cause error
	cut   func(error)
}

// Cut ends the stream with a reset of both ends, and cause as its outcome. It
// may come at any time, also before the stream is there; the first cause counts.
func (c *Cutter) Cut(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	c.cause = cause
	if c.cut != nil {
		c.cut(cause)
	}
}

// Bind is for engines: cut is called at most once, at once if Cut came first.
// It must not block, nor call the Cutter. A nil Cutter is never cut.
func (c *Cutter) Bind(cut func(error)) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if c.cause != nil {
		cut(c.cause)
	}
}
