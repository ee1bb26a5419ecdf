package frozen

import (
	"errors"
	"fmt"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// maxSpan bounds times of a connection's life.
const maxSpan = 24 * time.Hour

// check says whether the value is one that a connection can have.
func (c *Conn) check(files int) error {
	switch {
	case len(c.Streams) > maxStreams || files != 1+len(c.Streams):
		return fmt.Errorf("%d files for %d streams", files, len(c.Streams))
	case c.Server && c.Serving == nil, !c.Server && c.Pool == nil:
		return errors.New("nothing of its role")
	case len(c.Leaf) != 32:
		return errors.New("no fingerprint")
	case len(c.Chain) == 0 || len(c.Chain) > maxChain:
		return fmt.Errorf("%d certificates", len(c.Chain))
	case len(c.Guard) > int(flood.Kinds):
		return errors.New("guard of unknown frames")
	case c.Parser.Server != c.Server || !c.Parser.Started:
		return errors.New("parser of another role, or before its beginning")
	case c.Partial.N > MaxPartial || c.Out.N > MaxOut:
		return errors.New("too many bytes on their way")
	case c.LastID > h2.MaxWindow || c.DataLen < 0 || c.DataLen > h2.MaxFrame:
		return errors.New("ids or lengths out of range")
	case c.Life.GoAway < 0 || c.Life.GoAway > GoAwayFinal || !span(c.Life.IdleLeft) || !span(c.Life.FrameAge) || !span(c.Life.RecordAge):
		return errors.New("no state of life")
	}
	if err := errors.Join(c.Session.Check(), c.Flow.check()); err != nil {
		return err
	}
	if err := c.checkStreams(); err != nil {
		return err
	}
	return c.checkSpans()
}

func span(d time.Duration) bool { return d >= 0 && d <= maxSpan }

func (f *Flow) check() error {
	switch {
	case !sendWindow(f.Send) || f.Initial < 0 || f.Initial > h2.MaxWindow:
		return errors.New("window to send out of range")
	case !recvWindow(f.Recv) || f.StreamWindow < 0 || f.StreamWindow > h2.MaxWindow:
		return errors.New("window to receive out of range")
	case f.Streams < 0 || f.Streams > 1<<32-1 || f.Sent < 0 || f.Late < 0 || f.Late > h2.MaxWindow:
		return errors.New("counts out of range")
	}
	return nil
}

// sendWindow may be negative (RFC 9113 section 6.9.2).
func sendWindow(n int64) bool { return n >= -h2.MaxWindow-1 && n <= h2.MaxWindow }

// recvWindow may have more in it than its size, when that has shrunk.
func recvWindow(w h2.Window) bool {
	return w.Size >= 0 && w.Size <= h2.MaxWindow && w.Available >= 0 && w.Owed >= 0 && w.Available+w.Owed <= h2.MaxWindow
}

func (c *Conn) checkStreams() error {
	seen := make(map[uint32]bool, len(c.Streams))
	for i := range c.Streams {
		s := &c.Streams[i]
		switch {
		case s.ID%2 == 0 || s.ID > c.LastID || seen[s.ID]:
			return fmt.Errorf("stream %d is none", s.ID)
		case !sendWindow(s.SendWindow) || !recvWindow(s.Recv):
			return fmt.Errorf("stream %d: windows out of range", s.ID)
		case s.FinSent && (!s.RecvEnd || s.Pending.N > 0), s.Finishing && !(s.FinSent && s.SentEnd):
			return fmt.Errorf("stream %d: ended before its end", s.ID)
		case len(s.Owner) > maxOwner:
			return fmt.Errorf("stream %d: owner's state too large", s.ID)
		}
		seen[s.ID] = true
	}
	if c.DataID != 0 && !seen[c.DataID] {
		return errors.New("DATA of no stream")
	}
	return nil
}

// checkSpans wants every span inside of the data, and no byte twice: what is
// made of a connection is then no larger than it. Nor may a byte be of no span: it would
// be of a field that this version does not know, and be lost.
func (c *Conn) checkSpans() error {
	left := len(c.data)
	spans := []Span{c.Partial, c.Out}
	for i := range c.Streams {
		spans = append(spans, c.Streams[i].Pending)
	}
	for _, s := range spans {
		if s.At < 0 || s.N < 0 || s.At > len(c.data) || s.N > len(c.data)-s.At {
			return errors.New("bytes outside of the data")
		}
		if left -= s.N; left < 0 {
			return errors.New("more bytes than there are")
		}
	}
	if left > 0 {
		return fmt.Errorf("%d bytes of which nothing is said", left)
	}
	return nil
}
