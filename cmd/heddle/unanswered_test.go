package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestUnanswered: who is not let in, or meets a program that does not answer as it should, is
// told which, and what to do.
func TestUnanswered(t *testing.T) {
	w := newCluster(t, &fakeAgent{node: "n1"})
	w.Put(t, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
	const right = "remedy: ask an administrator for this right"
	w.expect(1, right, "certs", "--context", "guest")
	w.expect(1, right, "certs", "rotate", "--root", "--dry-run", "--context", "guest")
	w.expect(1, "get namespace shop: ", "enroll", "shop", "--context", "guest")
	w.expect(1, right, "enroll", "shop", "--context", "guest")

	// Who may look at pods, and execute nothing in them.
	w.Put(t, `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: looks}
rules: [{apiGroups: ["", apps], resources: [pods, namespaces, nodes, services, deployments, daemonsets], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: looks}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: looks}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: guest}]
`)
	testenv.Eventually(t, 20*time.Second, "the right to look at pods is in force", func() bool {
		code, _, _ := w.heddle("certs", "--context", "guest")
		return code == exitUnreachable
	})
	for _, args := range [][]string{{"certs"}, {"check"}, {"flows"}} {
		pod := map[string]string{"certs": "heddle-operator-1", "check": "heddle-agent-1", "flows": "heddle-agent-1"}[args[0]]
		out := w.expect(3, "execute a command in pod heddle-system/"+pod+": ", append(args, "--context", "guest")...)
		if args[0] != "check" {
			w.expect(3, right, append(args, "--context", "guest")...)
		} else if out == "" {
			t.Error("check has no report")
		}
	}

	for node, answer := range map[string]error{"old": errors.New(`unknown command "admin-pipe" for "heddle-agent"`), "bare": errors.New("exec: \"/heddle-agent\": executable file not found"), "mute": nil} {
		w.Kubelet(t, node, func(_ context.Context, _ string, _ []string, _ io.Reader, _, errOut io.Writer) error {
			if node == "old" {
				fmt.Fprintln(errOut, answer)
			}
			return answer
		})
		w.pod("agent", "heddle-agent-"+node, node)
	}
	for node, says := range map[string]string{"old": "it is of a version that has no admin-pipe: ", "bare": "it is of a version that has no admin-pipe: ", "mute": "pod heddle-agent-mute: the connection ended at once"} {
		w.expect(3, says, "flows", "--node", node)
	}
	w.expect(3, "remedy: `heddle upgrade`", "flows", "--node", "old")

	w.Delete(t, "{apiVersion: v1, kind: Pod, metadata: {namespace: heddle-system, name: heddle-operator-1}}")
	w.expect(3, "no operator runs in namespace heddle-system of the cluster; remedy: `kubectl -n heddle-system get deployment heddle-operator` says", "certs")
	w.expect(3, "no operator runs in namespace elsewhere of the cluster; remedy: `kubectl -n elsewhere get", "certs", "--system-namespace", "elsewhere")
	for _, name := range []string{"1", "old", "bare", "mute"} {
		w.Delete(t, "{apiVersion: v1, kind: Pod, metadata: {namespace: heddle-system, name: heddle-agent-"+name+"}}")
	}
	w.expect(1, "no agent runs in namespace heddle-system of the cluster; remedy: `heddle install`, or name the namespace with --system-namespace", "enroll", "shop")
	w.expect(2, "there is no namespace nowhere: `kubectl get namespaces` lists", "enroll", "nowhere")
}
