package hbone

import (
	"sync"
	"sync/atomic"
)

// Memory is a pod's budget of bytes that engines hold for it: what its streams'
// local sockets, or its peers, have not taken. One pod's cannot be used up by
// another.
//
// Half of the budget is for what is held. When that much is, the budget is full:
// peers may send what they were promised before, and no more. The other half is
// for these promises: the flow-control windows of the pod's connections, beyond
// the 65,535 bytes that each has by RFC 9113 section 6.9.2. So no more than the
// limit is held, and of each connection these 65,535 bytes, the beginning of one
// record, and output that its peer does not read, for as long as WriteTimeout of an
// engine. The beginnings of other things count and are nobody's promise: a
// connection that has some of a frame or header while the budget IsOver ends.
//
// A full budget makes all of its pod's streams wait for some reader to read.
// What the windows of streams may grow by is a quarter, so that a few large
// streams whose readers stop do not fill it.
//
// What programs write is read on by a full budget: a program may write before it
// reads what fills it. It waits for its own peer only. A nil Memory is
// unlimited. It is safe for concurrent use.
type Memory struct {
	limit    int64
	places   Places // nil does not bound connections
	used     atomic.Int64
	promised [2]atomic.Int64
	waits    atomic.Bool // somebody does

	mu      sync.Mutex
	waiting map[any]func()
}

// Share is the part of a budget that a promise comes from.
type Share int

// The shares.
const (
	Connections Share = iota // half, for windows of connections
	Streams                  // a quarter, for what windows of streams grow by
)

// NewMemory returns a budget of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// Limit is the budget; 0 when there is none.
func (m *Memory) Limit() int64 {
	if m == nil {
		return 0
	}
	return m.limit
}

// Take accounts for n bytes more. They are always granted: bytes that have
// arrived must be kept somewhere.
func (m *Memory) Take(n int64) {
	if m != nil {
		m.used.Add(n)
	}
}

// Give gives n bytes back, and calls who waits for them.
func (m *Memory) Give(n int64) {
	if m == nil {
		return
	}
	if m.used.Add(-n) < m.limit/2 && m.waits.Load() {
		m.wake()
	}
}

// Full says that no more should be asked for.
func (m *Memory) Full() bool { return m != nil && m.used.Load() >= m.limit/2 }

// IsOver says that the whole budget is used up, and more: promises do not come to
// that, so something holds what nobody was promised.
func (m *Memory) IsOver() bool { return m != nil && m.used.Load() > m.limit }

// Used is the number of bytes taken.
func (m *Memory) Used() int64 {
	if m == nil {
		return 0
	}
	return m.used.Load()
}

// Promise accounts for a window that grows by n bytes, and says whether it may.
func (m *Memory) Promise(s Share, n int64) bool {
	if m == nil {
		return true
	}
	if m.promised[s].Add(n) <= m.limit>>(1+s) {
		return true
	}
	m.promised[s].Add(-n)
	return false
}

// Keep accounts for a window that has grown already, and takes a promise back
// when n is negative.
func (m *Memory) Keep(s Share, n int64) {
	if m != nil {
		m.promised[s].Add(n)
	}
}

// Wait makes the budget call again when it is not full anymore, once, from
// whoever gives back. It returns false, and does not, when it is not full now.
// A key waits once; Leave ends that.
func (m *Memory) Wait(key any, again func()) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waits.Store(true) // before looking: Give gives before it looks
	if !m.Full() {
		m.waits.Store(len(m.waiting) > 0)
		return false
	}
	if m.waiting == nil {
		m.waiting = map[any]func(){}
	}
	m.waiting[key] = again
	return true
}

// Leave ends a Wait. Its function may be running.
func (m *Memory) Leave(key any) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, key)
}

func (m *Memory) wake() {
	m.mu.Lock()
	waiting := m.waiting
	m.waiting = nil
	m.waits.Store(false)
	m.mu.Unlock()
	for _, again := range waiting {
		again()
	}
}
