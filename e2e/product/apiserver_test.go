package product

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is done to the API server, on its machine. Nothing starts it again while its
// program cannot be executed; while it is slow it answers for half a second
// every few.
const (
	apiServerPIDs = `apiservers() { for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/run/cluster/programs/kube kube-apiserver ' && echo ${p#/proc/}; done; true; }; `
	apiServerGone = apiServerPIDs + `mount --bind /dev/null /run/cluster/programs/kube; kill -9 $(apiservers)`
	apiServerBack = `umount /run/cluster/programs/kube`
	apiServerSlow = apiServerPIDs + `while [ -e /run/slow ]; do kill -STOP $(apiservers); sleep 4; kill -CONT $(apiservers); sleep 0.5; done`
	denyAll       = `{"apiVersion":"heddle.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"nobody","namespace":"shop"},` +
		`"spec":{"action":"DENY","selector":{"matchLabels":{"app":"beside"}},"rules":[{"from":[{"namespaces":["shop"]}]}]}}`
	policiesOfShop = "/apis/heddle.dev/v1alpha1/namespaces/shop/authorizationpolicies"
)

// testAPIServer: without an API server, and with one that is slow, traffic and the
// agents' restarts go on, operators say what is wrong and stay what they are, and
// what changes takes effect as soon as they are told.
func (w *world) testAPIServer(t *testing.T) {
	w.apply(t, podYAML("beside", "n1", "", "serve"))
	w.waitReady(t, "beside")
	server := w.pod(t, "beside").Status.PodIP + ":7000"
	w.apply(t, podYAML("near", "n1", itsShare, "load", server, "5", "10")+podYAML("far", "n2", itsShare, "load", server, "5", "10"))
	w.waitReady(t, "near", "far")
	w.enrolled(t, "n1", "shop/beside", "shop/near")
	w.enrolled(t, "n2", "shop/far")
	t.Run("is gone", w.testWithoutAPIServer)
	t.Run("is slow", w.testSlowAPIServer)
	w.kubectl(t, "-n", "shop", "delete", "pod", "beside", "near", "far", "--now")
}

func (w *world) testWithoutAPIServer(t *testing.T) {
	operators := w.operators(t)
	cp := w.node(t, "cp")
	back := func() {
		t.Helper()
		if out, err := cp.Exec(context.WithoutCancel(t.Context()), "bash", "-c", apiServerBack); err != nil {
			t.Fatal(out, err)
		}
	}
	if out, err := cp.Exec(t.Context(), "bash", "-c", apiServerGone); err != nil {
		t.Fatal(out, err)
	}
	gone := time.Now()
	defer func() {
		if back != nil {
			back()
		}
	}()
	w.killAgent(t, "n2")
	for node := range operators {
		w.operatorSays(t, operators, node, "API server", "has not answered for", "connection refused")
	}
	eventually(t, patience, "the agent that died carries its pods again", func() error { return w.goesOn(t, "n2", "far", false) })
	w.unharmed(t, "n1", "near", true)
	time.Sleep(time.Until(gone.Add(12 * time.Second))) // who leads has given up by then
	back()
	back = nil
	returned := time.Now()
	eventually(t, patience, "the API server is back", func() error {
		_, err := w.Kubectl(t.Context(), "", "get", "--raw", "/readyz")
		return err
	})
	answers := time.Now()
	eventually(t, patience, "somebody leads", func() error {
		l, err := w.lease(t)
		if err == nil && !l.Spec.RenewTime.After(returned) {
			err = fmt.Errorf("%+v", l.Spec)
		}
		return err
	})
	t.Logf("the API server was gone for %v; %v later somebody led", answers.Sub(gone).Round(time.Second), time.Since(answers).Round(time.Second))
	w.aPolicyTakesEffect(t)
	for node := range operators {
		w.operatorSays(t, operators, node, "API server", "answers in")
	}
	if now := w.operators(t); !maps.Equal(now, operators) {
		t.Errorf("operators did not outlive the API server: processes %v, then %v", operators, now)
	}
}

func (w *world) testSlowAPIServer(t *testing.T) {
	operators := w.operators(t)
	lease, err := w.lease(t)
	if err != nil {
		t.Fatal(err)
	}
	cp := w.node(t, "cp")
	if out, err := cp.Exec(t.Context(), "touch", "/run/slow"); err != nil {
		t.Fatal(out, err)
	}
	slow, err := cp.Command(context.WithoutCancel(t.Context()), "bash", "-c", apiServerSlow)
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	fast := func() {
		t.Helper()
		if out, err := cp.Exec(context.WithoutCancel(t.Context()), "rm", "-f", "/run/slow"); err != nil {
			t.Error(out, err)
		}
		if err := slow.Wait(); err != nil {
			t.Error(err)
		}
	}
	defer func() {
		if fast != nil {
			fast()
		}
	}()
	began := time.Now()
	for node := range operators {
		w.operatorSays(t, operators, node, "API server", "takes", "to answer")
	}
	w.unharmed(t, "n1", "near", false)
	pod, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "slowly", "namespace": "shop"},
		"spec": map[string]any{"nodeName": "n1", "terminationGracePeriodSeconds": 1, "containers": []any{
			map[string]any{"name": "main", "image": workloadImage, "imagePullPolicy": "Never", "args": []string{"wait"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := w.Kubectl(t.Context(), string(pod), "create", "--raw", "/api/v1/namespaces/shop/pods", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	w.enrolled(t, "n1", "shop/slowly") // what is watched arrives, and a certificate is issued
	took := time.Since(began)
	fast()
	fast = nil
	var now leaseObject
	eventually(t, patience, "the Lease is read", func() (err error) {
		now, err = w.lease(t)
		return err
	})
	if now.Spec.HolderIdentity != lease.Spec.HolderIdentity || now.Spec.LeaseTransitions != lease.Spec.LeaseTransitions {
		t.Errorf("with a slow API server leadership went from %+v to %+v", lease.Spec, now.Spec)
	}
	if now := w.operators(t); !maps.Equal(now, operators) {
		t.Errorf("operators did not outlive a slow API server: processes %v, then %v", operators, now)
	}
	for node := range operators {
		w.operatorSays(t, operators, node, "API server", "answers in")
	}
	w.waitReady(t, "slowly")
	w.kubectl(t, "-n", "shop", "delete", "pod", "slowly", "--now")
	t.Logf("the API server was slow for %v", took.Round(time.Second))
}

// aPolicyTakesEffect makes one that refuses what a pod under load does, and takes it
// away again. It asks the API server for nothing else.
func (w *world) aPolicyTakesEffect(t *testing.T) {
	t.Helper()
	var before, now []int
	eventually(t, patience, "a pod under load counts", func() (err error) {
		before, err = w.countedOn(t, "n2", "far")
		return err
	})
	began := time.Now()
	if out, err := w.Kubectl(t.Context(), denyAll, "create", "--raw", policiesOfShop, "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	eventually(t, patience, "a policy refuses what it is to refuse", func() (err error) {
		if now, err = w.countedOn(t, "n2", "far"); err == nil && now[2] <= before[2] {
			err = fmt.Errorf("exchanges, opened, lost, broken %v, then %v", before, now)
		}
		return err
	})
	in := time.Since(began)
	began = time.Now()
	if out, err := w.Kubectl(t.Context(), "", "delete", "--raw", policiesOfShop+"/nobody"); err != nil {
		t.Fatal(out, err)
	}
	eventually(t, patience, "what a policy has refused goes on without it", func() error { return w.goesOn(t, "n2", "far", false) })
	t.Logf("a policy was in effect %v after it was asked for, and gone after %v", in.Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond))
}

// operators are the process IDs of operators, by node.
func (w *world) operators(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, n := range w.Nodes() {
		if out, err := n.Exec(t.Context(), "pidof", "heddle-operator"); err == nil {
			all[n.Name()] = strings.TrimSpace(out)
		}
	}
	if len(all) == 0 {
		t.Fatal("no operator runs")
	}
	return all
}

// operatorSays waits for a line of `heddle check`, asked on the operator's own node,
// that has all words.
func (w *world) operatorSays(t *testing.T, operators map[string]string, node string, words ...string) {
	t.Helper()
	socket := "/proc/" + operators[node] + "/root/run/heddle/operator.sock"
	eventually(t, patience, fmt.Sprintf("the operator on %s says %q", node, words), func() error {
		out, err := w.node(t, node).Exec(t.Context(), onNode, "check", "--socket", agent, "--operator-socket", socket)
		for line := range strings.Lines(out) {
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				return nil
			}
		}
		return fmt.Errorf("%s %w", out, err)
	})
}

// leaseObject is what is read of the operators' Lease.
type leaseObject struct {
	Spec struct {
		HolderIdentity   string
		LeaseTransitions int
		RenewTime        time.Time
	}
}

func (w *world) lease(t *testing.T) (l leaseObject, err error) {
	t.Helper()
	out, err := w.Kubectl(t.Context(), "", "get", "--raw", "/apis/coordination.k8s.io/v1/namespaces/heddle-system/leases/heddle-operator")
	if err != nil {
		return l, fmt.Errorf("%s: %w", out, err)
	}
	return l, json.Unmarshal([]byte(out), &l)
}
