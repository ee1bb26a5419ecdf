package agent_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestHistory: what a node saw is known after a successor has taken over, and after
// that one has ended and another started; connections that are open are part of it;
// and nothing of what was said is in a file.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	w.pods["db"].serve(7001, echo)
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	served := func(what string, want uint64) {
		t.Helper()
		testenv.Eventually(t, 15*time.Second, what, func() bool { return w.n2.past(t, "inbound", "shop/web", "shop/db") == want })
	}
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	served("the first connection", 1)

	old := w.n2.cmd
	w.n2.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
	if err := ended(t, old); err != nil {
		t.Fatal(err)
	}
	w.n2.await("enrolled")
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	served("one before a hand-over and one after it", 2)

	if err := w.n2.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.n2.start()
	w.n2.await("enrolled")
	w.reaches(t, "web", "10.96.0.1:70")
	testenv.Eventually(t, 15*time.Second, "those of three agents", func() bool { return w.n2.past(t, "inbound", "shop/web", "shop/db") >= 3 })
	before := w.n2.past(t, "inbound", "shop/web", "shop/db")
	c, err := w.pods["web"].dial("10.96.0.1:70")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served("one that is open", before+1)

	files, err := filepath.Glob(filepath.Join(w.dir, "n2", "state", "flows", "*.flows"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%v: %v", err, files)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		info, gone := os.Stat(path)
		if err := errors.Join(err, gone); err != nil || info.Mode() != 0o600 || strings.Contains(string(text), "question") {
			t.Errorf("%s: %v, %v", path, err, info)
		}
	}
}

// past counts the connections that the agent's history knows of.
func (n *node) past(t *testing.T, direction, from, to string) (count uint64) {
	t.Helper()
	err := n.ask(func(ctx context.Context, c *admin.Client) error {
		stream, err := c.Flows.History(ctx, &meshpb.HistoryRequest{})
		for err == nil {
			var m *meshpb.HistoryResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			s := m.GetSummary()
			if s.GetDirection() == direction && s.GetSource().GetWorkload() == from && s.GetDestination().GetWorkload() == to && s.GetVerdict() == "allow" {
				count += s.GetCount()
			}
			if m.GetCoverage() != nil && (m.GetCoverage().GetNode() != n.name || len(m.GetCoverage().GetDamaged()) > 0) {
				t.Errorf("coverage: %v", m.GetCoverage())
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}
