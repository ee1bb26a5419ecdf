package product

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// outage is how long the operator is gone: `make outage` sets an hour.
func outage(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("HEDDLE_OUTAGE")
	if text == "" {
		return 5 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("HEDDLE_OUTAGE=%q: want a duration, as 90s or 1h", text)
	}
	return d
}

// killEvery is more than what makes kubelet wait longer and longer with a start.
const killEvery = 12 * time.Minute

// testOutage: while no operator runs, traffic goes on, agents start again and carry
// on, and new pods wait and say for what; afterwards all is as it would have been.
func (w *world) testOutage(t *testing.T, server string) {
	// Beside the node whose agent is killed.
	w.apply(t, podYAML("steady", "n2", itsShare, "load", server+":7000", "10", "20"))
	w.waitReady(t, "steady")
	scale := func(n int) {
		t.Helper()
		w.kubectl(t, "-n", "heddle-system", "scale", "deployment/heddle-operator", fmt.Sprintf("--replicas=%d", n))
	}
	defer scale(2)
	scale(0)
	eventually(t, patience, "no operator runs", func() error {
		names, err := w.Kubectl(t.Context(), "", "-n", "heddle-system", "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "name")
		if err == nil && names != "" {
			err = errors.New(names)
		}
		return err
	})
	back, kills := time.Now().Add(outage(t)), 0
	w.apply(t, podYAML("unknown", "n1", "", "dial", server+":7000"))
	for again := true; again; again = time.Now().Before(back) {
		w.killAgent(t, "n1")
		kills++
		w.works(t, "client", server+":7000")
		time.Sleep(min(killEvery, time.Until(back)))
	}
	testenv.Eventually(t, patience, "an event says that the pod waits for the operator", func() bool {
		return strings.Contains(w.events(t, "unknown"), "operator")
	})
	if phase := w.pod(t, "unknown").Status.Phase; phase != "Pending" {
		t.Errorf("without an operator a new pod is %s", phase)
	}
	w.unharmed(t, "n2", "steady", true)
	scale(2)
	w.waitReady(t, "unknown")
	w.enrolled(t, "n1", "shop/unknown")
	t.Logf("without an operator for %v, with the agent killed %d times: %v", outage(t), kills, w.counted(t, "steady"))
	w.kubectl(t, "-n", "shop", "delete", "pod", "steady", "--now")
}

// unharmed looks, on its node and without an API server, at what a pod under load
// counts: it goes on, and nothing of it was lost; only when strict is it to have lost
// nothing before either.
func (w *world) unharmed(t *testing.T, node, pod string, strict bool) {
	t.Helper()
	switch err := w.goesOn(t, node, pod, strict); {
	case errors.Is(err, errLoss):
		testenv.ForGood(t, "%v", err)
	case err != nil:
		t.Error(err)
	}
}

// goesOn is unharmed for what may not be so yet. How long it looks depends on how long
// there is nothing new to see: 2 s at least, and patience at most.
func (w *world) goesOn(t *testing.T, node, pod string, strict bool) error {
	t.Helper()
	before, err := w.countedOn(t, node, pod)
	if err != nil {
		return err
	}
	after := before
	for began := time.Now(); time.Since(began) < 2*time.Second || after[0] <= before[0] || after[1] <= before[1]; {
		if time.Since(began) > patience {
			return fmt.Errorf("%s on %s stands still: exchanges, opened, lost, broken %v, then %v", pod, node, before, after)
		}
		time.Sleep(500 * time.Millisecond)
		if after, err = w.countedOn(t, node, pod); err != nil {
			return err
		}
	}
	if !slices.Equal(after[2:], before[2:]) || strict && after[2]+after[3] > 0 {
		failed, err := w.loggedOn(t, node, pod, "LOST|BROKEN", 20)
		return fmt.Errorf("%s on %s: exchanges, opened, lost, broken %v, then %v\n%s%w", pod, node, before, after, failed, cmp.Or(err, errLoss))
	}
	return nil
}

var errLoss = errors.New("exchanges or connections were lost")

// countedOn reads, on its node, what a pod under load counts: exchanges, opened,
// lost, broken.
func (w *world) countedOn(t *testing.T, node, pod string) (all []int, err error) {
	t.Helper()
	line, err := w.loggedOn(t, node, pod, "exchanges [0-9]+ opened [0-9]+ lost [0-9]+ broken [0-9]+$", 1)
	if err != nil {
		return nil, err
	}
	found := countLine.FindStringSubmatch(line)
	if found == nil {
		return nil, fmt.Errorf("%s on %s counts nothing yet", pod, node)
	}
	for _, digits := range found[1:] {
		n, _ := strconv.Atoi(digits)
		all = append(all, n)
	}
	return all, nil
}

var countLine = regexp.MustCompile(`exchanges (\d+) opened (\d+) lost (\d+) broken (\d+)`)

// loggedOn reads, on its node, the last lines of a pod's logs that match, however much
// else the pod says: also of those that kubelet has put aside.
func (w *world) loggedOn(t *testing.T, node, pod, pattern string, most int) (string, error) {
	t.Helper()
	script := fmt.Sprintf("ls -tr /var/log/pods/shop_%s_*/main/* | grep -v '[.]gz$' | xargs -r grep -hE '%s' | tail -n %d", pod, pattern, most)
	text, err := w.node(t, node).Exec(t.Context(), "sh", "-c", script)
	if err != nil {
		return "", fmt.Errorf("read the logs of %s on %s: %w\n%s", pod, node, err, text)
	}
	return text, nil
}
