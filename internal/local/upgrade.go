package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// Upgrade says how a node's agent is replaced.
type Upgrade struct {
	// AgentBinary is the new program; "" is the one on record.
	AgentBinary string
	// Drain accepts that connections end, after a while to finish, which cannot
	// move to the new agent.
	Drain bool
	// Patience bounds the new agent's start and self-test; when zero it is longer
	// than the old agent waits for them. Once connections move, it ends nothing.
	Patience time.Duration
}

// Upgraded is how the upgrade of one node went.
type Upgraded struct {
	Node string `json:"node"`
	// From and To are the versions, FromPID and PID the processes.
	From    string `json:"from"`
	To      string `json:"to"`
	FromPID int    `json:"fromPid"`
	PID     int    `json:"pid"`
	// Connections of applications went on, among them those in Tunnels; Failed
	// were lost, Left were drained.
	Connections uint32 `json:"connections"`
	Tunnels     uint32 `json:"tunnels"`
	Failed      uint32 `json:"failed"`
	Left        uint32 `json:"left"`
	// Protocol is the version of the hand-over that both agents spoke.
	Protocol uint32 `json:"protocol"`
	// Took is how long the hand-over took, Pause the longest that a connection
	// stood still.
	Took  time.Duration `json:"tookNs"`
	Pause time.Duration `json:"longestPauseNs"`
}

// Nodes names the mesh's nodes, or only one of them.
func (m *Mesh) Nodes(only string) ([]string, error) {
	var all []string
	for _, n := range m.Plan.Nodes {
		if only == n.Name {
			return []string{only}, nil
		}
		all = append(all, n.Name)
	}
	if only != "" {
		return nil, fmt.Errorf("no node %q: there are %s", only, strings.Join(all, ", "))
	}
	return all, nil
}

// Upgrade replaces the agent of one node by a new process, which takes its
// connections over. After an error the old agent goes on, if it does: the error
// says so.
func (m *Mesh) Upgrade(ctx context.Context, node string, how Upgrade) (Upgraded, error) {
	unlock, err := lock(m.dir)
	if err != nil {
		return Upgraded{}, err
	}
	defer unlock()
	now, err := openRecord(m.dir)
	if err != nil {
		return Upgraded{}, err
	}
	m.record = now.record
	if _, err := m.Plan.node(node); err != nil {
		return Upgraded{}, err
	}
	old := m.Agents[node]
	if !old.Running() {
		return Upgraded{}, fmt.Errorf("the agent of node %s does not run: start it with `heddle local up`", node)
	}
	if how.AgentBinary == "" {
		how.AgentBinary = m.AgentBinary
	}
	before, err := m.agentStatus(ctx, node)
	if err != nil {
		return Upgraded{}, fmt.Errorf("ask the agent of node %s: %w", node, err)
	}
	if how.Patience <= 0 {
		how.Patience = 90*time.Second + time.Duration(len(before.GetPods()))*2*time.Second
	}
	result, fresh, err := m.replace(ctx, node, how)
	if err != nil {
		goesOn := fmt.Sprintf("the old agent (%s, process %d) goes on", before.GetVersion(), old.PID)
		if !old.Running() {
			goesOn = "the old agent has ended, too: start one with `heddle local up`"
		}
		return Upgraded{}, fmt.Errorf("upgrade node %s: %w; %s", node, err, goesOn)
	}
	result.From = before.GetVersion()
	m.Agents[node], m.AgentBinary = fresh, how.AgentBinary
	if err := m.save(); err != nil {
		return result, err
	}
	if !old.gone(ctx, 30*time.Second) {
		return result, fmt.Errorf("upgrade node %s: the old agent (process %d) has handed over, and does not end", node, old.PID)
	}
	return result, nil
}

// replace starts the new agent and waits until it answers for the node, or has
// ended.
func (m *Mesh) replace(ctx context.Context, node string, how Upgrade) (Upgraded, Process, error) {
	takeOver := "require"
	if how.Drain {
		takeOver = "drain"
	}
	said, err := logSize(m.agentLog(node))
	if err != nil {
		return Upgraded{}, Process{}, err
	}
	fresh, err := m.launchAgent(node, how.AgentBinary, "--take-over", takeOver)
	if err != nil {
		return Upgraded{}, Process{}, err
	}
	var moved bool
	limit := time.Now().Add(how.Patience)
	for {
		s, err := m.agentStatus(ctx, node)
		if err == nil && s.GetPid() == int64(fresh.PID) {
			return upgradedOf(node, s), fresh, nil
		}
		if !fresh.Running() {
			return Upgraded{}, Process{}, errors.New(complaint(m.agentLog(node), said))
		}
		late := time.Now().After(limit)
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			late = true
		}
		if !late {
			continue
		}
		begun := holds(m.agentLog(node), said, fresh.PID)
		switch {
		case begun && (moved || ctx.Err() != nil):
			return Upgraded{}, Process{}, fmt.Errorf("the new agent (process %d) has connections and does not answer: it is left alone, see %s", fresh.PID, m.agentLog(node))
		case begun:
			moved, limit = true, time.Now().Add(moving)
			continue
		}
		// The new agent is not ready: its end changes nothing.
		err = errors.Join(fmt.Errorf("the new agent is not ready after %v", how.Patience), ctx.Err())
		return Upgraded{}, Process{}, errors.Join(err, fresh.stop(context.WithoutCancel(ctx), 5*time.Second))
	}
}

// moving bounds what comes after the self-test: more than both agents need to
// move all connections, or to give up.
const moving = 2 * time.Minute

// holds reports whether an agent has said that connections come to it: from then
// on its end would be theirs. When that cannot be known, it has.
func holds(path string, from int64, pid int) bool {
	added, err := added(path, from)
	if err != nil {
		return true
	}
	for line := range strings.Lines(added) {
		if strings.Contains(line, "the running agent hands over") && strings.Contains(line, fmt.Sprintf("successor=%d ", pid)) {
			return true
		}
	}
	return false
}

// added returns what was added to a log.
func added(path string, from int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, from, 1<<20))
	return string(text), err
}

func upgradedOf(node string, s *meshpb.AgentStatus) Upgraded {
	h := s.GetHandOver()
	return Upgraded{
		Node: node, To: s.GetVersion(), PID: int(s.GetPid()), FromPID: int(h.GetFromPid()),
		Connections: h.GetConnections(), Tunnels: h.GetTunnels(), Failed: h.GetFailed(), Left: h.GetLeft(), Protocol: h.GetProtocol(),
		Took: time.Duration(h.GetDurationNs()), Pause: time.Duration(h.GetLongestPauseNs()),
	}
}

// Lost returns an error when connections did not survive an upgrade.
func Lost(all []Upgraded) error {
	var errs []error
	for _, u := range all {
		if u.Failed > 0 {
			errs = append(errs, fmt.Errorf("node %s was upgraded, and %d connections were lost: see the log of its agent", u.Node, u.Failed))
		}
	}
	return errors.Join(errs...)
}

func (m *Mesh) agentStatus(ctx context.Context, node string) (*meshpb.AgentStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := admin.Dial(ctx, m.AgentSocket(node))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
	return s, admin.Explain(err)
}

func logSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at the agent's log: %w", err)
	}
	return info.Size(), nil
}

// complaint returns the last words of a program that has ended, from what was
// added to its log.
func complaint(path string, from int64) string {
	added, err := added(path, from)
	if err != nil {
		return err.Error()
	}
	var last string
	for line := range strings.Lines(added) {
		// What it says when it ends, not what the old agent logs beside it.
		if words, ok := strings.CutPrefix(line, "heddle-agent: "); ok {
			last = strings.TrimSpace(words)
		}
	}
	if last == "" {
		return "the new agent ended without a word: see " + path
	}
	return last
}
