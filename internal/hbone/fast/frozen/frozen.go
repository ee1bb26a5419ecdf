// Package frozen is a tunnel connection at rest: everything that another process
// needs to go on with it but its sockets, as a value and as bytes. It says which
// values are possible; what they mean is package tunnel's.
//
// The bytes are JSON, so that one version reads what another wrote: a field that
// the reader does not know is ignored, one that is missing is its zero value,
// which is always a safe one. What would not be safe to ignore raises Least; bulk bytes
// of which no known field speaks are refused without it.
package frozen

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Version is what this program writes. It reads everything whose Least is no
// higher.
const Version = 1

// Bounds of what Decode takes, beyond anything that Encode gives.
const (
	maxStateBytes = 32 << 20
	maxDataBytes  = 512 << 20
	maxStreams    = 1 << 16
	maxChain      = 16
	maxOwner      = 1 << 16 // bytes of one owner's state
	// MaxOut bounds the sealed bytes that the socket has not taken.
	MaxOut = 4 << 20
	// MaxPartial bounds the beginning of a record.
	MaxPartial = tlsrecord.HeaderBytes + tlsrecord.MaxCiphertext
)

// Conn is a connection at rest. It is a secret: it holds keys.
type Conn struct {
	// Version wrote it, Least is the lowest that may read it.
	Version, Least int
	// Server says that the peer opened the connection.
	Server bool
	Identity
	// Pool is of a connection that we opened, Serving of one that a peer did.
	Pool    *Pool    `json:",omitempty"`
	Serving *Serving `json:",omitempty"`

	Session tlsrecord.State
	Parser  h2.ParserState
	Guard   []flood.Bucket
	Flow    Flow
	Life    Life
	// LastID is the highest stream that was opened.
	LastID uint32
	// DataID is the stream of the DATA frame under way, 0 to discard it, DataLen
	// the frame's length.
	DataID  uint32 `json:",omitzero"`
	DataLen int    `json:",omitzero"`
	// Partial is the beginning of a record that was read, Out the records that
	// are sealed and not written.
	Partial, Out Span     `json:",omitzero"`
	Streams      []Stream `json:",omitempty"`

	data []byte
}

// Identity is who the two ends are, as tunnel has it.
type Identity struct {
	Source   string
	Leaf     []byte
	Peer     string
	NotAfter time.Time
	// Chain is the peer's certificates, leaf first, Roots a digest of the bundle
	// that vouched for them last.
	Chain [][]byte
	Roots []byte `json:",omitempty"`
	// Group is the key exchange of the handshake, 0 when it is not known.
	Group tls.CurveID `json:",omitzero"`
}

// Pool is what a connection's place in the pool needs beside its identity.
type Pool struct{ Endpoint netip.AddrPort }

// Serving is what a server says of its connection in each request.
type Serving struct {
	Remote, Local netip.AddrPort
	Handshake     time.Duration
}

// Flow is a connection's flow control, as tunnel has it.
type Flow struct {
	Send, Initial int64
	Recv          h2.Window
	StreamWindow  int64
	// Acked says that the peer knows it: all streams from then on begin with it.
	Acked   bool `json:",omitzero"`
	Streams int
	Sent    int `json:",omitzero"`
	// Late is how many bytes may be on their way on streams that were ended here.
	Late int64 `json:",omitzero"`
}

// Life is what ends a connection, as tunnel has it.
type Life struct {
	Heard, Asked, Announced, Left bool   `json:",omitzero"`
	GoAway                        GoAway `json:",omitzero"`
	// IdleLeft is the time left to an idle connection.
	IdleLeft time.Duration `json:",omitzero"`
	// FrameAge and RecordAge are for how long a frame, or header, and a record have
	// been without their end.
	FrameAge, RecordAge time.Duration `json:",omitzero"`
}

// GoAway is how far a drain has come.
type GoAway int

// The steps of a drain.
const (
	GoAwayNone      GoAway = iota
	GoAwayAnnounced        // GOAWAY with the highest id was sent, and a PING after it
	GoAwayFinal            // no new stream is served, or opened
)

// Stream is one stream, answered and not over.
type Stream struct {
	ID             uint32
	SendWindow     int64
	Recv           h2.Window
	Sent, Received uint64 `json:",omitzero"`
	RecvEnd        bool   `json:",omitzero"`
	SentEnd        bool   `json:",omitzero"`
	FinSent        bool   `json:",omitzero"`
	Finishing      bool   `json:",omitzero"`
	Placed         bool   `json:",omitzero"`
	// Parting is of a client's stream whose peer has answered and wants no more.
	Parting bool `json:",omitzero"`
	// Pending is what the local socket has not taken.
	Pending Span         `json:",omitzero"`
	Timing  hbone.Timing `json:",omitzero"`
	Owner   []byte
}

// Span is a part of the bulk bytes.
type Span struct{ At, N int }

// Put appends to the bulk, and returns what was appended.
func (c *Conn) Put(appendTo func([]byte) []byte) Span {
	at := len(c.data)
	c.data = appendTo(c.data)
	return Span{at, len(c.data) - at}
}

// Bytes returns a part of the bulk. It shares the memory.
func (c *Conn) Bytes(s Span) []byte { return c.data[s.At : s.At+s.N : s.At+s.N] }

// Encode gives what Decode reads, and forgets the keys but there.
func (c *Conn) Encode() (state, data []byte, err error) {
	c.Version, c.Least = Version, 1
	state, err = json.Marshal(c)
	clear(c.Session.In.Secret)
	clear(c.Session.Out.Secret)
	if err != nil {
		return nil, nil, fmt.Errorf("encode connection: %w", err)
	}
	return state, c.data, nil
}

// Decode reads what Encode gave in any version, for a connection with so many
// files. What it returns is possible, whoever wrote it; it keeps data.
func Decode(state, data []byte, files int) (*Conn, error) {
	if len(state) > maxStateBytes || len(data) > maxDataBytes {
		return nil, errors.New("frozen connection: too large")
	}
	c := &Conn{}
	if err := json.Unmarshal(state, c); err != nil {
		return nil, fmt.Errorf("frozen connection: %w", err)
	}
	if c.Version < 1 || c.Least > Version {
		return nil, fmt.Errorf("frozen connection: of version %d, which version %d on can read; this is %d", c.Version, c.Least, Version)
	}
	c.data = data
	if err := c.check(files); err != nil {
		return nil, fmt.Errorf("frozen connection: %w", err)
	}
	return c, nil
}
