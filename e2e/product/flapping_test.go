package product

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// How often the label is switched at once, and how long is waited between the others:
// as much as agents need to begin with what they are told.
const (
	flapsAtOnce = 30
	flapPause   = 400 * time.Millisecond
	// lasting is what an agent begins when it is first needed, and keeps: the loops of
	// the relay, and connections of its own. What leaks is left behind at each switch.
	lasting = flapsAtOnce / 3
)

// testFlapping switches a namespace's label on and off under traffic: the last word
// counts, no request hangs, and nothing is left of its pods when they are gone. A pod
// that leaves again and again is kept in the mesh for longer and longer; with STRICT,
// what takes it for one outside does not reach it meanwhile.
func (w *world) testFlapping(t *testing.T) {
	nodes := []string{"n1", "n2"}
	before := map[string]held{}
	for _, node := range nodes {
		before[node] = w.steady(t, node)
	}
	flap := func(yaml string) string { return strings.ReplaceAll(yaml, "namespace: shop", "namespace: flap") }
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: flap}\n---\n"+
		"apiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: flap}\nspec: {mode: PERMISSIVE}\n"+flap(podYAML("server", "n2", "", "serve")))
	w.readyIn(t, "flap", "server")
	server := w.kubectl(t, "-n", "flap", "get", "pod", "server", "-o", "jsonpath={.status.podIP}")
	w.apply(t, flap(podYAML("client", "n1", itsShare, "load", server+":7000", "3", "20")))
	w.readyIn(t, "flap", "client")
	label := w.labels(t, "flap")
	for _, phase := range []struct {
		last   string // value of the label
		slowly int    // switches with a pause before each
	}{{"enabled", 4}, {"", 0}} {
		last, slowly := phase.last, phase.slowly
		published := w.mustPublished(t)
		began := time.Now()
		for n := range flapsAtOnce {
			label(n%2 == 1, last)
		}
		took := time.Since(began)
		eventually(t, patience, "what has changed is published", func() error {
			n, err := w.published(t)
			if err == nil && n <= published {
				err = fmt.Errorf("%d times, as before", n)
			}
			return err
		})
		for n := range slowly {
			time.Sleep(flapPause)
			label(n%2 == 1, last)
		}
		w.settled(t, last == "enabled", server)
		// Two replicas publish, at most every 50 ms each.
		most := 2 * (int(took/(50*time.Millisecond)) + 1 + slowly + 6)
		if n := w.mustPublished(t) - published; n > most {
			t.Errorf("%d switches in %v, and %d slowly: published %d times, at most %d", flapsAtOnce, took, slowly, n, most)
		} else {
			t.Logf("%d switches in %v, and %d slowly: published %d times by two replicas", flapsAtOnce, took.Round(time.Millisecond), slowly, n)
		}
	}
	said := w.kubectl(t, "-n", "flap", "logs", "client")
	if hung := grep(said, "(LOST|BROKEN).*timeout"); hung != "" {
		for node := range before {
			flows, err := w.node(t, node).Exec(t.Context(), onNode, "flows", "--namespace", "flap", "--verdict", "deny", "--last", "40", "--socket", agent)
			t.Logf("refused on %s: %v\n%s", node, err, flows)
		}
		t.Errorf("requests hung while the label changed:\n%s", hung)
	}
	counts := strings.Split(strings.TrimSpace(said), "\n")
	t.Logf("the client: %s\n%s", counts[len(counts)-1], grep(said, "LOST|BROKEN"))
	w.kubectl(t, "delete", "namespace", "flap", "--wait=false")
	w.kubectl(t, "-n", "flap", "delete", "pods", "--all", "--now")
	for _, node := range nodes {
		eventually(t, patience, "nothing is left on "+node, func() error {
			now, err := w.held(t, node)
			if err != nil {
				return err
			}
			return now.above(before[node])
		})
	}
}

// settled waits until the label's last value is how it is on both nodes, and what
// crosses between them.
func (w *world) settled(t *testing.T, enabled bool, server string) {
	t.Helper()
	began := time.Now()
	for node, pod := range map[string]string{"n1": "flap/client", "n2": "flap/server"} {
		if enabled {
			w.enrolled(t, node, pod)
			continue
		}
		eventually(t, patience, pod+" is out of the mesh", func() error {
			out, err := w.node(t, node).Exec(t.Context(), onNode, "check", "--socket", agent)
			if strings.Contains(out, pod) {
				return errors.New(out)
			}
			return err
		})
	}
	t.Logf("enabled %v: settled after %v", enabled, time.Since(began).Round(10*time.Millisecond))
	eventually(t, patience, fmt.Sprintf("enabled %v is what the wire shows", enabled), func() error {
		c := w.capture(t)
		out, err := w.Kubectl(t.Context(), "", "-n", "flap", "exec", "client", "--", "/program", "once", server+":7000", marker)
		found := c.Stop(t, marker, only(server))
		if err != nil || enabled == (found.Markers > 0) || enabled && found.TLSBytes == 0 {
			return fmt.Errorf("%s: %s, %w", found, out, err)
		}
		return nil
	})
}

// labels returns what sets or removes the namespace's label: the last call of an
// even number of them leaves it as last says.
func (w *world) labels(t *testing.T, namespace string) func(toLast bool, last string) {
	t.Helper()
	client := w.clientset(t)
	return func(toLast bool, last string) {
		t.Helper()
		value := "null"
		if toLast == (last == "enabled") {
			value = `"enabled"`
		}
		_, err := client.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, []byte(`{"metadata":{"labels":{"heddle.dev/mesh":`+value+`}}}`), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// clientset is the cluster's admin, who is not held back.
func (w *world) clientset(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", w.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// published counts how often operators have published something new.
func (w *world) published(t *testing.T) (int, error) {
	t.Helper()
	out, err := w.Kubectl(t.Context(), "", "-n", "heddle-system", "logs", "-l", "app.kubernetes.io/component=operator", "--tail=-1")
	return strings.Count(out, "configuration published"), err
}

func (w *world) mustPublished(t *testing.T) (n int) {
	t.Helper()
	eventually(t, patience, "the operators' logs are read", func() (err error) {
		n, err = w.published(t)
		return err
	})
	return n
}

func (w *world) readyIn(t *testing.T, namespace, pod string) {
	t.Helper()
	w.kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout="+patience.String())
}

// held is what a node's agent holds: descriptors, of these network namespaces, BPF
// maps and what is in those maps, goroutines, and what is pinned.
type held struct {
	files, namespaces, maps, entries, goroutines int
	pins                                         string
}

// above says what there is more of than in another.
func (h held) above(other held) error {
	other.files, other.goroutines = other.files+lasting, other.goroutines+lasting
	var errs []error
	for name, n := range map[string][2]int{"descriptors": {h.files, other.files}, "network namespaces": {h.namespaces, other.namespaces},
		"BPF maps": {h.maps, other.maps}, "entries of BPF maps": {h.entries, other.entries}, "goroutines": {h.goroutines, other.goroutines}} {
		if n[0] > n[1] {
			errs = append(errs, fmt.Errorf("%d %s, before there were %d", n[0], name, n[1]))
		}
	}
	if h.pins != other.pins {
		errs = append(errs, errors.New(difference(other.pins, h.pins)))
	}
	return errors.Join(errs...)
}

// steady waits until what an agent holds does not change for a moment.
func (w *world) steady(t *testing.T, node string) held {
	t.Helper()
	last, since := held{}, time.Now()
	eventually(t, patience, "what the agent of "+node+" holds is steady", func() error {
		now, err := w.held(t, node)
		if err != nil {
			return err
		}
		if now != last {
			change := fmt.Errorf("%+v, then %+v", last, now)
			last, since = now, time.Now()
			return change
		}
		if time.Since(since) < 1500*time.Millisecond {
			return errors.New("for too short a time")
		}
		return nil
	})
	return last
}

// heldScript prints the descriptors of a node's agent and its pins.
const heldScript = agentPID + `; for f in /proc/$pid/fd/*; do echo "fd $(readlink $f) $(grep -h '^map_id' /proc/$pid/fdinfo/${f##*/} | tr '\t' ' ')"; done 2>/dev/null; find /sys/fs/bpf | sort`

func (w *world) held(t *testing.T, node string) (h held, err error) {
	t.Helper()
	out, err := w.node(t, node).Exec(t.Context(), "bash", "-c", heldScript)
	if err != nil {
		return h, fmt.Errorf("%s: %w", out, err)
	}
	maps := map[ebpf.MapID]bool{}
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, "fd ")
		if !ok {
			h.pins += line
			continue
		}
		h.files++
		if strings.HasPrefix(rest, "net:[") || strings.Contains(rest, "/netns/") {
			h.namespaces++
		}
		if _, id, ok := strings.Cut(strings.TrimSpace(rest), "map_id: "); ok {
			number, err := strconv.ParseUint(strings.TrimSpace(id), 10, 32)
			if err != nil {
				return h, err
			}
			maps[ebpf.MapID(number)] = true
		}
	}
	h.maps = len(maps)
	for id := range maps {
		h.entries += entries(id)
	}
	h.goroutines, err = w.metricOn(t, node, "go_goroutines")
	return h, err
}

// entries counts what is in a hash; of a map that is gone, nothing.
func entries(id ebpf.MapID) (n int) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return 0
	}
	defer m.Close()
	if m.Type() != ebpf.Hash && m.Type() != ebpf.LRUHash {
		return 0
	}
	var key, value []byte
	for all := m.Iterate(); all.Next(&key, &value); {
		n++
	}
	return n
}

// metricOn reads a whole number of the metrics of a node's agent.
func (w *world) metricOn(t *testing.T, node, name string) (int, error) {
	t.Helper()
	var conn net.Conn
	err := w.node(t, node).InNetns(func() (err error) {
		conn, err = net.DialTimeout("tcp", "127.0.0.1:15020", 5*time.Second)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (\d+)$`).FindSubmatch(body)
	if found == nil {
		return 0, fmt.Errorf("no %s on %s:\n%s", name, node, body)
	}
	return strconv.Atoi(string(found[1]))
}
