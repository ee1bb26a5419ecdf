package product

import (
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// ofWaypoint selects the pods of the waypoint.
const ofWaypoint = "gateway.networking.k8s.io/gateway-name=waypoint"

// testWaypointCanary has a waypoint of another version tried by two replicas, beside two of this one, under requests that
// are sent once: all four get some, until that ends, and none is lost.
func (w *world) testWaypointCanary(t *testing.T) {
	w.loadNextWaypoint(t)
	w.apply(t, podYAML("poster", "n1", itsShare, "post", site+"/", "4", "20"))
	w.waitReady(t, "poster")
	w.posted(t, 5)
	w.cli(t, "upgrade", "--set", fmt.Sprintf("operator.waypoints.canaryImage=%s/heddle-waypoint:%s", registry, nextVersion), "--wait", "3m")
	w.cli(t, "waypoint", "apply", "-n", "shop", "--canary", "2", "--wait")
	testenv.Eventually(t, patience, "it is tried", func() bool { return len(w.waypoints(t, "heddle.dev/track=canary")) == 2 })
	w.kubectl(t, "-n", "shop", "rollout", "status", "deployment/waypoint-canary", "--timeout="+patience.String())
	w.bothServe(t)
	w.cli(t, "waypoint", "apply", "-n", "shop", "--canary", "0", "--wait")
	testenv.Eventually(t, patience, "it is over", func() bool { return len(w.waypoints(t, "heddle.dev/track=canary")) == 0 })
	w.posted(t, 20)
	w.kubectl(t, "-n", "shop", "delete", "pod/poster", "--now")
}

// loadNextWaypoint builds a waypoint that says that it is of another version, and loads its image.
func (w *world) loadNextWaypoint(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	testenv.Go(t, w.root, "run", "./manifests/images", "-architectures", runtime.GOARCH, "-folder", folder, "-registry", registry, "-version", nextVersion, "-image", "heddle-waypoint")
	if err := w.LoadImage(t.Context(), folder+"/heddle-waypoint.tar"); err != nil {
		t.Fatal(err)
	}
}

// waypoints names the pods of the waypoint that a selector of its own selects, too.
func (w *world) waypoints(t *testing.T, selector string) []string {
	t.Helper()
	return strings.Fields(w.kubectl(t, "-n", "shop", "get", "pods", "-l", ofWaypoint+","+selector, "-o", "jsonpath={.items[*].metadata.name}"))
}

// bothServe waits until each replica has answered requests, by what it says itself, and of which version it is.
func (w *world) bothServe(t *testing.T) {
	t.Helper()
	of := map[string][]string{version: w.waypoints(t, "heddle.dev/track!=canary"), nextVersion: w.waypoints(t, "heddle.dev/track=canary")}
	before := map[string]int{}
	for _, pods := range of {
		for _, pod := range pods {
			_, before[pod] = w.answeredBy(t, pod)
		}
	}
	if len(of[version]) < 1 || len(of[nextVersion]) != 2 {
		t.Fatalf("the waypoint's replicas are %v, want two of %s beside others", of, nextVersion)
	}
	eventually(t, patience, "each replica gets requests", func() error {
		w.posted(t, 10)
		for want, pods := range of {
			for _, pod := range pods {
				is, answered := w.answeredBy(t, pod)
				if is != want {
					t.Fatalf("%s is of version %q, want %q", pod, is, want)
				}
				if answered <= before[pod] {
					return fmt.Errorf("%s, of %s, has answered %d requests, as before", pod, want, answered)
				}
				t.Logf("%s, of %s, has answered %d requests more", pod, want, answered-before[pod])
			}
		}
		return nil
	})
}

// answeredBy reads in the metrics of a replica which version it is of, and how many requests it has had answered well.
func (w *world) answeredBy(t *testing.T, pod string) (version string, answered int) {
	t.Helper()
	p := w.pod(t, pod)
	n := w.node(t, p.Spec.NodeName)
	// From within: the pod is in the mesh, and of those outside only kubelet reaches it.
	said, err := n.Exec(t.Context(), "nsenter", "--net="+podNetNSOnNode(t, n, p.Status.PodIP), "bash", "-c",
		`exec 3<>/dev/tcp/127.0.0.1/15020 && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && cat <&3`)
	if err != nil {
		t.Fatalf("the metrics of %s: %v\n%s", pod, err, said)
	}
	build := regexp.MustCompile(`(?m)^heddle_waypoint_build_info\{version="([^"]*)"\} 1$`).FindStringSubmatch(said)
	if build == nil {
		t.Fatalf("%s does not say its version:\n%s", pod, grep(said, "heddle_waypoint"))
	}
	for _, series := range regexp.MustCompile(`(?m)^heddle_waypoint_requests_total\{[^\n]*code="2xx"[^\n]*\} (\d+)$`).FindAllStringSubmatch(said, -1) {
		n, err := strconv.Atoi(series[1])
		if err != nil {
			t.Fatal(err)
		}
		answered += n
	}
	return build[1], answered
}
