package handover

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
)

// player is the other end of a hand-over, of a version of the past: it says what
// that version was recorded to say, byte for byte.
type player struct {
	t       *testing.T
	version int
	channel
}

// says sends a recorded message, with as many descriptors as it was recorded with.
// batch, unless 0, is put in place of the recording's, which is the conversation's.
func (p *player) says(name string, batch uint32) error {
	for _, r := range goldenMessages(p.version) {
		if r.name != name {
			continue
		}
		wire, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("v%d", p.version), name+".bin"))
		if err != nil {
			return err
		}
		if batch > 0 {
			binary.BigEndian.PutUint32(wire[12:], batch)
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		var files []int
		for range r.files {
			files = append(files, int(null.Fd()))
		}
		var rights []byte
		if len(files) > 0 {
			rights = unix.UnixRights(files...)
		}
		_, _, err = p.conn.WriteMsgUnix(wire, rights, nil)
		return err
	}
	return fmt.Errorf("version %d says no %q", p.version, name)
}

// hears waits for a message of a kind, and closes what comes with it.
func (p *player) hears(k kind) (*message, error) {
	m, err := p.receive(5 * time.Second)
	if err != nil {
		return nil, fmt.Errorf("wait for message %d: %w", k, err)
	}
	p.t.Cleanup(m.closeFiles)
	if m.kind != k {
		return nil, fmt.Errorf("message %d came, want %d", m.kind, k)
	}
	return m, nil
}

// play goes through lines of a conversation: a string is said, a kind is heard.
func (p *player) play(lines ...any) error {
	for _, line := range lines {
		var err error
		switch line := line.(type) {
		case string:
			err = p.says(line, 0)
		case kind:
			_, err = p.hears(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// goldenTaker takes the connections of goldenBatch, and nothing else.
type goldenTaker struct {
	t       *testing.T
	thawed  int
	records [][]byte
}

func (g *goldenTaker) Check([]*Connection) error { return nil }

func (g *goldenTaker) Records(all [][]byte) { g.records = append(g.records, all...) }

func (g *goldenTaker) Thaw(c *Connection) error {
	defer closeAll(c.Files)
	then := *goldenBatch()[g.thawed]
	now := *c
	then.Files, now.Files = nil, nil
	if !reflect.DeepEqual(now, then) || len(c.Files) != 2 {
		g.t.Errorf("thawed %+v, want %+v", c, then)
	}
	g.thawed++
	return nil
}

// TestGoldenDonor: a donor of each version that there was hands over to this one.
func TestGoldenDonor(t *testing.T) {
	for version := Oldest; version <= Newest; version++ {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			l, err := rootsocket.Listen(socket, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			played := make(chan error, 1)
			go func() {
				conn, err := l.AcceptUnix()
				if err != nil {
					played <- err
					return
				}
				defer conn.Close()
				p := &player{t, version, channel{conn}}
				lines := []any{kindHello, "welcome", "listeners-pod", "listeners-metrics"}
				if version >= recordsSince {
					lines = append(lines, "listeners-dns", "records")
				}
				lines = append(lines, "standby", kindReady, "moving", kindAccepting, "batch", kindPrepared, "commit")
				if version >= recordsSince {
					lines = append(lines, "records")
				}
				played <- p.play(append(lines, "done", kindTaken)...)
			}()
			s, err := Dial(t.Context(), SuccessorConfig{Socket: socket, Self: goldenSelf, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.Version != version || !s.Moves || s.Donor.Program != goldenSelf.Program {
				t.Errorf("%+v", s)
			}
			k := &goldenTaker{t: t}
			estate, err := s.Estate(k.Records)
			if err != nil {
				t.Fatal(err)
			}
			defer estate.Close()
			if len(estate.Pods) == 0 || len(estate.Pods[0].Listeners) != 2 || estate.Metrics == nil || estate.MetricsAddress != ":15020" {
				t.Errorf("estate %+v", estate)
			}
			if alone, err := s.Ready(); alone || err != nil {
				t.Fatal(alone, err)
			}
			sum, err := s.Receive(k)
			if err != nil || sum.Connections != 2 || sum.Failed != 0 || sum.Left != 2 || k.thawed != 2 {
				t.Errorf("%+v, %v, thawed %d", sum, err, k.thawed)
			}
			s.Taken()
			if err := <-played; err != nil {
				t.Errorf("the donor: %v", err)
			}
			if want := 4 * (version - recordsSince + 1); len(k.records) != max(0, want) {
				t.Errorf("%d records, want %d", len(k.records), want)
			}
		})
	}
}

// TestGoldenSuccessor: this donor hands over to a successor of each version that
// there was, and says nothing that it would not understand.
func TestGoldenSuccessor(t *testing.T) {
	for version := Oldest; version <= Newest; version++ {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			w := newWorld(t, 6, func(cfg *DonorConfig) { cfg.Self = goldenSelf })
			conn, err := rootsocket.Dial(t.Context(), w.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p := &player{t, version, channel{conn}}
			lines := []any{"hello", kindWelcome, kindListeners, kindListeners}
			if version >= recordsSince {
				lines = append(lines, kindRecords)
			}
			if err := p.play(append(lines, kindStandby, "ready", kindMoving, "accepting")...); err != nil {
				t.Fatal(err)
			}
			for batch := range uint32(3) { // of two connections each
				m, err := p.hears(kindBatch)
				if err != nil {
					t.Fatal(err)
				}
				all, _, err := decodeBatch(m.body, m.files)
				if err != nil || len(all) != 2 {
					t.Fatalf("%d connections, %v", len(all), err)
				}
				if err := p.says("prepared", batch+1); err != nil {
					t.Fatal(err)
				}
				if err := p.play(kindCommit); err != nil {
					t.Fatal(err)
				}
				for _, c := range all {
					w.alive(t, string(c.State), c.Files[0])
				}
			}
			lines = nil
			if version >= recordsSince {
				lines = append(lines, kindRecords)
			}
			if err := p.play(append(lines, kindDone, "taken")...); err != nil {
				t.Fatal(err)
			}
			if given := <-w.given; !given {
				t.Error("the donor did not hear that it may end")
			}
			w.given <- true
		})
	}
}
