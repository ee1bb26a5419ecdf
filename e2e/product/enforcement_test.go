package product

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// changes is how many times a policy is made and taken away again, and enforced how long that may take: the median, on a
// machine that has the whole cluster on two cores.
const (
	changes  = 5
	enforced = time.Second
)

// testPolicyChange measures, from before the API server is asked, how long it takes until connections fail that a policy refuses, and until
// they work again without it, of a pod on another node and of one on the same.
func (w *world) testPolicyChange(t *testing.T, server string) {
	w.apply(t, podYAML("far-off", "n1", itsShare, "turns", server+":7000")+podYAML("next-door", "n2", itsShare, "turns", server+":7000"))
	pods := []string{"far-off", "next-door"}
	defer w.kubectl(t, append([]string{"-n", "shop", "delete", "pod", "--now"}, pods...)...)
	w.waitReady(t, pods...)
	client := w.clientset(t)
	const path = "/apis/heddle.dev/v1alpha1/namespaces/shop/authorizationpolicies"
	deny := []byte(`{"apiVersion":"heddle.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"turns","namespace":"shop"},
		"spec":{"selector":{"matchLabels":{"app":"server"}},"action":"DENY",
		"rules":[{"from":[{"identities":["spiffe://cluster.local/ns/shop/sa/default"]}]}]}}`)
	// What is left by a failure would refuse the connections of the tests after this one.
	defer w.kubectl(t, "-n", "shop", "delete", "authorizationpolicy", "turns", "--ignore-not-found")
	var took []time.Duration
	since := time.Time{}
	for n := range 2 * changes {
		w.turned(t, pods, since, []string{"works", "fails"}[n%2])
		since = time.Now()
		request := client.RESTClient().Post().AbsPath(path).Body(deny)
		if n%2 == 1 {
			request = client.RESTClient().Delete().AbsPath(path + "/turns")
		}
		if err := request.Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
		took = append(took, w.turned(t, pods, since, []string{"fails", "works"}[n%2]).Sub(since))
	}
	slices.Sort(took)
	t.Logf("%d changes of a policy were enforced on both nodes within %v at the median, %v at most", len(took), took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > enforced {
		t.Errorf("the median is %v, wanted within %v: %v", took[len(took)/2], enforced, took)
	}
}

// turned waits until each pod has said this last, later than then, and returns when the last of them did; with no then, whenever it was.
func (w *world) turned(t *testing.T, pods []string, then time.Time, want string) (at time.Time) {
	t.Helper()
	for _, pod := range pods {
		eventually(t, patience, fmt.Sprintf("%s says that a connection %s", pod, want), func() error {
			lines := strings.Split(strings.TrimSpace(w.logs(t, pod)), "\n")
			last, said, _ := strings.Cut(lines[len(lines)-1], " ")
			when, err := time.Parse(time.RFC3339Nano, last)
			if err != nil || said != want || when.Before(then) {
				return fmt.Errorf("its last line is %q, wanted later than %v", lines[len(lines)-1], then)
			}
			if when.After(at) {
				at = when
			}
			return nil
		})
	}
	return at
}
