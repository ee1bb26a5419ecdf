package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/e2e/scenario"
	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// NodeLabel is the label that nodes must have, with NodeLabelValue, to have an agent:
// `heddle install --set agent.nodeSelector.LABEL=VALUE` says so. KillAgent takes it
// off a node.
const (
	NodeLabel      = "heddle-scenarios"
	NodeLabelValue = "agent"
)

const (
	socket = "/run/heddle/agent.sock"
	// agentPatience is what an agent has to come and to go, on a loaded machine.
	agentPatience = time.Minute
	system        = "heddle-system"
)

// mark sets NodeLabel to what JSON says; null takes it off.
func (w *World) mark(ctx context.Context, node, value string) error {
	return w.patch(ctx, nodes, "", node, fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, NodeLabel, value))
}

// Enrolled is what the agents of both nodes say; one that was killed says nothing.
func (w *World) Enrolled(ctx context.Context, namespace string) ([]string, error) {
	var all []string
	for _, node := range w.alive() {
		out, err := w.exec(ctx, node, w.OnNode, "check", "--socket", socket, "-o", "json")
		names, err := scenario.EnrolledIn(out, namespace, err)
		if err != nil {
			return nil, fmt.Errorf("ask the agent of %s: %w", node, err)
		}
		all = append(all, names...)
	}
	return all, nil
}

// alive are the nodes whose agent was not killed.
func (w *World) alive() []string {
	w.away.Lock()
	defer w.away.Unlock()
	var all []string
	for _, node := range script.Nodes() {
		if !w.away.nodes[node] {
			all = append(all, node)
		}
	}
	return all
}

func (w *World) setAway(node string, away bool) {
	w.away.Lock()
	defer w.away.Unlock()
	w.away.nodes[node] = away
}

// stopScript stops the process of a node's agent, and says which it is. killScript kills
// it when kubelet has asked it to end, and so will not start it again: that shows in the
// signals that wait for the process (SIGTERM is the bit 0x4000 of proc(5)'s ShdPnd),
// which is stopped and gets to see none of them.
const (
	stopScript = `pid=$(cat /run/heddle/agent.lock) && kill -STOP $pid && echo $pid`
	killScript = `set -e
pid=%s
for i in $(seq 600); do
  [ -d /proc/$pid ] || exit 0
  pending=$(sed -n 's/^ShdPnd:[[:space:]]*//p' /proc/$pid/status)
  if [ $((0x$pending & 0x4000)) -ne 0 ]; then kill -KILL $pid; exit 0; fi
  sleep 0.05
done
echo "kubelet does not end the agent" >&2
exit 1`
)

// KillAgent kills the agent of a node, without warning: it is stopped while its
// DaemonSet takes its pod from the node, where it makes no other.
func (w *World) KillAgent(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	pid, err := w.exec(ctx, node, "sh", "-c", stopScript)
	if err != nil {
		return fmt.Errorf("stop the agent of %s: %w", node, err)
	}
	pid = strings.TrimSpace(pid)
	w.setAway(node, true)
	err = w.mark(ctx, node, "null")
	if err == nil {
		_, err = w.exec(ctx, node, "sh", "-c", fmt.Sprintf(killScript, pid))
	}
	if err != nil {
		_, goOn := w.exec(context.WithoutCancel(ctx), node, "kill", "-CONT", pid)
		return errors.Join(fmt.Errorf("kill the agent of %s: %w", node, err), goOn)
	}
	return await(ctx, func() error {
		found, err := w.api.Resource(pods).Namespace(system).List(ctx, metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/component=agent", FieldSelector: "spec.nodeName=" + node,
		})
		if err == nil && len(found.Items) > 0 {
			err = fmt.Errorf("the agent's pod is still on %s", node)
		}
		return err
	})
}

// StartAgent lets the DaemonSet have a pod on the node again, and waits until its
// agent says that all is well.
func (w *World) StartAgent(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	if err := w.mark(ctx, node, fmt.Sprintf("%q", NodeLabelValue)); err != nil {
		return err
	}
	err := await(ctx, func() error {
		_, err := w.exec(ctx, node, w.OnNode, "check", "--socket", socket)
		return err
	})
	if err == nil {
		w.setAway(node, false)
	}
	return err
}
