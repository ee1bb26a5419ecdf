package local

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/netnsdir"
)

// metricsPort is where each program serves metrics, on its own namespace's
// addresses.
const metricsPort = 15020

// How long the operator has to answer after its start.
const operatorPatience = 15 * time.Second

// startAll starts the operator and the agents that do not run.
func (m *Mesh) startAll(ctx context.Context, progress func(string)) error {
	if !m.Operator.Running() {
		progress("starting the operator")
		if err := m.startOperator(); err != nil {
			return err
		}
	}
	client, closeClient, err := m.operatorClient()
	if err != nil {
		return err
	}
	defer closeClient()
	if err := m.waitOperator(ctx, client); err != nil {
		return err
	}
	for _, n := range m.Plan.Nodes {
		if m.Agents[n.Name].Running() {
			continue
		}
		progress("starting the agent of node " + n.Name)
		if err := m.startAgent(ctx, client, n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mesh) startOperator() error {
	var more []string
	if m.UDPByIdentity { // one of the version before knows no such flag
		more = append(more, "--udp-by-identity")
	}
	p, err := start(launch{
		binary: m.OperatorBinary, netns: m.FabricPath(), log: filepath.Join(m.dir, "operator.log"),
		args: append([]string{
			"--folder", m.Plan.Folder,
			"--state-dir", filepath.Join(m.dir, "operator"),
			"--listen", m.Plan.OperatorAddress(),
			"--advertise", m.Plan.OperatorAddress(),
			"--admin-socket", m.OperatorSocket(),
			"--metrics", fmt.Sprintf(":%d", metricsPort),
		}, more...),
	})
	if err != nil {
		return err
	}
	m.Operator = p
	return m.save()
}

// operatorClient speaks to the operator's admin socket, which only root reaches.
func (m *Mesh) operatorClient() (meshpb.OperatorAdminClient, func(), error) {
	conn, err := grpc.NewClient("unix:"+m.OperatorSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("connect to operator: %w", err)
	}
	return meshpb.NewOperatorAdminClient(conn), func() { conn.Close() }, nil
}

// waitOperator waits until the operator answers, and says why it does not.
func (m *Mesh) waitOperator(ctx context.Context, client meshpb.OperatorAdminClient) error {
	ctx, cancel := context.WithTimeout(ctx, operatorPatience)
	defer cancel()
	for {
		c, err := net.Dial("unix", m.OperatorSocket())
		if err == nil {
			c.Close()
			if _, err = client.Status(ctx, &meshpb.OperatorStateRequest{}); err == nil {
				return nil
			}
		}
		if !m.Operator.Running() {
			return fmt.Errorf("the operator ended at once; its log %s ends with:\n%s", m.Operator.Log, lastLines(m.Operator.Log, 10))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the operator does not answer within %v: %w; its log %s ends with:\n%s", operatorPatience, err, m.Operator.Log, lastLines(m.Operator.Log, 10))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// startAgent starts a node's agent, with a token if it has not joined yet.
func (m *Mesh) startAgent(ctx context.Context, client meshpb.OperatorAdminClient, node string) error {
	if err := os.MkdirAll(filepath.Dir(m.AgentSocket(node)), 0o700); err != nil {
		return fmt.Errorf("make node's folder: %w", err)
	}
	token := m.tokenFile(node)
	if _, err := os.Stat(token); err != nil {
		made, err := client.CreateJoinToken(ctx, &meshpb.CreateJoinTokenRequest{Node: node, LifetimeSeconds: 3600})
		if err != nil {
			return fmt.Errorf("make join token for node %s: %w", node, err)
		}
		if err := os.WriteFile(token, []byte(made.GetToken()+"\n"), 0o600); err != nil {
			return fmt.Errorf("write join token: %w", err)
		}
	}
	return m.StartAgent(node)
}

func (m *Mesh) tokenFile(node string) string {
	return filepath.Join(filepath.Dir(m.AgentSocket(node)), "join-token")
}

// StartAgent starts the agent of a node that has its join token, as Up does,
// but asks the operator nothing.
func (m *Mesh) StartAgent(node string) error {
	p, err := m.launchAgent(node, m.AgentBinary)
	if err != nil {
		return err
	}
	m.Agents[node] = p
	return m.save()
}

// launchAgent starts a program as a node's agent, in the node's namespace and
// cgroup.
func (m *Mesh) launchAgent(node, binary string, more ...string) (Process, error) {
	n, err := m.Plan.node(node)
	if err != nil {
		return Process{}, err
	}
	root, err := cgroupRoot()
	if err != nil {
		return Process{}, err
	}
	dir := filepath.Dir(m.AgentSocket(node))
	return start(launch{
		binary: binary, netns: filepath.Join(netnsdir.Path, n.NetNS), log: m.agentLog(node),
		cgroup: filepath.Join(root, m.cgroup(), node),
		args: append([]string{
			"--node", node,
			"--operator", m.Plan.OperatorAddress(),
			"--join-token-file", m.tokenFile(node),
			"--state-dir", filepath.Join(dir, "state"),
			"--keys-dir", filepath.Join(dir, "keys"),
			"--pin-dir", m.pinDir(node),
			"--admin-socket", m.AgentSocket(node),
			"--metrics", fmt.Sprintf(":%d", metricsPort),
		}, more...),
	})
}
