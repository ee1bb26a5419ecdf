package product

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// named are services of each kind, and pods that have names of their own.
const named = `---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: shop}
spec: {clusterIP: None, selector: {app: stateful}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: echo.shop.svc.cluster.local}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: stateful, namespace: shop}
spec:
  serviceName: peers
  replicas: 1
  selector: {matchLabels: {app: stateful}}
  template:
    metadata: {labels: {app: stateful}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: ` + workloadImage + `, imagePullPolicy: Never, args: [serve]}]
`

// testDNS resolves as pods do, by resolv.conf and its search list, while the agent
// answers, with the cluster's DNS and without. The pod asker goes on for others.
func (w *world) testDNS(t *testing.T) {
	w.apply(t, named)
	w.waitReady(t, "stateful-0")
	// The DNS server may say for some seconds more that nobody is there.
	eventually(t, 20*time.Second, "the DNS server knows the pod of the headless service", func() error {
		_, err := w.inPod(t, "client", "resolve", "peers")
		_, second := w.inPod(t, "client", "resolve", "stateful-0.peers")
		return errors.Join(err, second)
	})
	w.apply(t, podYAML("asker", "n1", "", "names", "echo", "peers", "kubernetes.default"))
	w.waitReady(t, "asker")
	of := func(kind, name, path string) string {
		return w.kubectl(t, "-n", "shop", "get", kind, name, "-o", "jsonpath="+path)
	}
	echo, stateful := of("service", "echo", "{.spec.clusterIP}"), of("pod", "stateful-0", "{.status.podIP}")
	api := w.kubectl(t, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
	for name, want := range map[string]string{
		"echo": echo, "echo.shop": echo, "echo.shop.svc": echo, "echo.shop.svc.cluster.local": echo, "echo.shop.svc.cluster.local.": echo,
		"peers": stateful, "stateful-0.peers": stateful, "alias": echo, "kubernetes.default": api,
	} {
		w.resolves(t, name, want)
	}
	if got, err := w.inPod(t, "client", "resolve", "nobody.shop.svc.cluster.local."); err == nil || !strings.Contains(err.Error(), "no such host") {
		t.Errorf("a name that is not there: %q, %v", got, err)
	}
	w.agentSays(t, "DNS:", "answered by the agent in")
	t.Run("the cluster's DNS is gone", func(t *testing.T) { w.testWithoutDNS(t, echo, stateful) })
	t.Run("direct", func(t *testing.T) {
		w.setDNS(t, "DIRECT")
		w.agentSays(t, "DNS:", "queries leave the pods unread")
		// The DNS servers have just come back: whoever asks them himself meets that.
		eventually(t, 30*time.Second, "the DNS server answers the pod", func() error {
			got, err := w.inPod(t, "client", "resolve", "echo")
			if err == nil && got != echo {
				err = fmt.Errorf("echo leads to %q, want %s", got, echo)
			}
			return err
		})
		w.setDNS(t, "CAPTURE")
		w.agentSays(t, "DNS:", "answered by the agent in")
		w.resolves(t, "echo", echo)
	})
}

// testWithoutDNS: services of the mesh are answered, and what was asked before; what
// was not fails, and it is said why.
func (w *world) testWithoutDNS(t *testing.T, echo, stateful string) {
	scale := func(n int) {
		t.Helper()
		w.kubectl(t, "-n", "kube-system", "scale", "deployment/coredns", fmt.Sprintf("--replicas=%d", n))
	}
	defer func() {
		scale(2)
		w.kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s")
	}()
	scale(0)
	testenv.Eventually(t, patience, "no DNS server runs", func() bool {
		return w.kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name") == ""
	})
	time.Sleep(6 * time.Second) // its answers hold for 5 s
	w.resolves(t, "echo", echo)
	w.resolves(t, "peers", stateful)
	w.resolves(t, "stateful-0.peers", stateful)
	if got, err := w.inPod(t, "client", "resolve", "never-asked.example.test."); err == nil {
		t.Errorf("without a DNS server: %q", got)
	}
	var flows string
	eventually(t, 10*time.Second, "flows say which names the DNS server did not answer", func() error {
		out, err := w.node(t, "n1").Exec(t.Context(), onNode, "flows", "--socket", agent, "--direction", "dns", "--workload", "shop/client", "--last", "50")
		flows = out
		for _, want := range []string{"DNSStale", "peers.shop.svc.cluster.local A: ", "DNSFailed", "never-asked.example.test A: "} {
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("%q is missing in\n%s", want, out)
			}
		}
		return err
	})
	t.Log(flows)
	w.agentSays(t, "DNS server", "asked in vain")
}

// testDNSByDefault: whoever sets nothing has names resolved by the cluster's DNS server,
// which the agent leaves alone, and reaches the mesh's services by them.
func (w *world) testDNSByDefault(t *testing.T) {
	if mode := w.kubectl(t, "get", "meshes.heddle.dev", "default", "-o", "jsonpath={.spec.dns.mode}"); mode != "DIRECT" {
		t.Fatalf("an installation that is not told has the mode %q, and is not what this test is of", mode)
	}
	w.apply(t, serviceOf("server"))
	defer w.kubectl(t, "-n", "shop", "delete", "service", "server")
	address := w.kubectl(t, "-n", "shop", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	w.agentSays(t, "DNS:", "queries leave the pods unread")
	eventually(t, 30*time.Second, "the DNS server knows the service", func() error {
		_, err := w.inPod(t, "client", "resolve", "server")
		return err
	})
	for _, name := range []string{"server", "server.shop.svc.cluster.local."} {
		w.resolves(t, name, address)
	}
	w.works(t, "client", "server:7000")
	if got, err := w.inPod(t, "client", "resolve", "never-asked.example.test."); err == nil {
		t.Errorf("a name that nobody knows leads to %q", got)
	}
}

// resolves expects a name to lead a pod of the mesh to an address.
func (w *world) resolves(t *testing.T, name, want string) {
	t.Helper()
	begun := time.Now()
	if got, err := w.inPod(t, "client", "resolve", name); err != nil || got != want {
		t.Errorf("%s leads to %q after %v, want %s: %v", name, got, time.Since(begun).Round(time.Millisecond), want, err)
	}
}

// setDNS changes who answers, in the whole mesh.
func (w *world) setDNS(t *testing.T, mode string) {
	t.Helper()
	w.kubectl(t, "patch", "meshes.heddle.dev", "default", "--type=merge", "-p", `{"spec":{"dns":{"mode":"`+mode+`"}}}`)
}

// agentSays waits for a line of n1's `heddle check` that has all words.
func (w *world) agentSays(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("check has a line of %q", words), func() error {
		out, _ := w.node(t, "n1").Exec(t.Context(), onNode, "check", "--socket", agent) // what it finds wrong is an error
		for line := range strings.Lines(out) {
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	})
}

// namesGoOn returns what fails when the pod that asks has lost anything since.
func (w *world) namesGoOn(t *testing.T) func() {
	t.Helper()
	asked, lost, slow := w.looked(t)
	return func() {
		t.Helper()
		askedNow, lostNow, slowNow := w.looked(t)
		t.Logf("names: asked %d, lost %d, slow %d", askedNow-asked, lostNow-lost, slowNow-slow)
		if askedNow == asked {
			t.Error("no name was asked for")
		}
		if lostNow > lost {
			testenv.ForGood(t, "names: asked %d, lost %d\n%s", askedNow-asked, lostNow-lost, w.kubectl(t, "-n", "shop", "logs", "asker", "--since=2m"))
		}
		w.kubectl(t, "-n", "shop", "delete", "pod", "asker", "--now")
	}
}

// looked reads the last line of the pod that asks all the time.
func (w *world) looked(t *testing.T) (asked, lost, slow int) {
	t.Helper()
	eventually(t, 20*time.Second, "the pod that asks counts", func() error {
		all := regexp.MustCompile(`(?m)^asked (\d+) lost (\d+) slow (\d+)$`).FindAllStringSubmatch(w.kubectl(t, "-n", "shop", "logs", "asker", "--tail=5"), -1)
		if len(all) == 0 {
			return fmt.Errorf("%s", w.logs(t, "asker"))
		}
		for i, n := range []*int{&asked, &lost, &slow} {
			*n, _ = strconv.Atoi(all[len(all)-1][i+1]) // digits
		}
		return nil
	})
	return asked, lost, slow
}
