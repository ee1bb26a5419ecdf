package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// server plays the part of an API server that World speaks to: it keeps objects by
// their paths, and lists those below one.
type server struct {
	mu      sync.Mutex
	objects map[string]map[string]any
	did     []string // method and path of what changed something
	// looked is called before each read, with the lock held.
	looked func(path string)
	refuse string // what every apply is told; "" for none

	open atomic.Int64 // connections
}

func (s *server) connection(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.open.Add(1)
	case http.StateClosed:
		s.open.Add(-1)
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := io.ReadAll(r.Body) // what is cut short does not parse
	var sent map[string]any
	if len(body) > 0 && json.Unmarshal(body, &sent) != nil {
		answer(w, http.StatusBadRequest, failure("BadRequest", "no JSON"))
		return
	}
	path := r.URL.Path
	if r.Method != http.MethodGet {
		s.did = append(s.did, r.Method+" "+path)
	} else if s.looked != nil {
		s.looked(path)
	}
	switch object, there := s.objects[path]; {
	case r.Method == http.MethodPost:
		metadata, _ := sent["metadata"].(map[string]any)
		path += "/" + fmt.Sprint(metadata["name"])
		if s.objects[path] != nil {
			answer(w, http.StatusConflict, failure("AlreadyExists", "it is there"))
			return
		}
		s.objects[path] = sent
		answer(w, http.StatusCreated, sent)
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/apply-patch+yaml":
		if s.refuse != "" {
			answer(w, http.StatusUnprocessableEntity, failure("Invalid", s.refuse))
			return
		}
		s.objects[path] = sent
		answer(w, http.StatusOK, sent)
	case r.Method == http.MethodGet && !there && strings.HasSuffix(path, "s"):
		answer(w, http.StatusOK, map[string]any{"kind": "List", "apiVersion": "v1", "metadata": map[string]any{}, "items": s.below(path)})
	case !there:
		answer(w, http.StatusNotFound, failure("NotFound", "there is no "+path))
	case r.Method == http.MethodPatch:
		merge(object, sent)
		answer(w, http.StatusOK, object)
	case r.Method == http.MethodDelete:
		delete(s.objects, path)
		answer(w, http.StatusOK, object)
	default:
		answer(w, http.StatusOK, object)
	}
}

func (s *server) below(path string) []any {
	all := []any{}
	for at, object := range s.objects {
		if rest, below := strings.CutPrefix(at, path+"/"); below && !strings.Contains(rest, "/") {
			all = append(all, object)
		}
	}
	return all
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // a client that is gone needs no answer
}

func failure(reason, message string) map[string]any {
	code := map[string]int{"AlreadyExists": 409, "NotFound": 404, "Invalid": 422, "BadRequest": 400}[reason]
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}
}

// merge is a JSON merge patch (RFC 7386).
func merge(into, from map[string]any) {
	for key, value := range from {
		nested, isObject := value.(map[string]any)
		existing, hasObject := into[key].(map[string]any)
		switch {
		case value == nil:
			delete(into, key)
		case isObject && hasObject:
			merge(existing, nested)
		default:
			into[key] = value
		}
	}
}

// newWorld is a World before a server that is closed at the test's end.
func newWorld(t *testing.T) (*World, *server) {
	t.Helper()
	s := &server{objects: map[string]map[string]any{}}
	for _, node := range script.Nodes() {
		s.objects["/api/v1/nodes/"+node] = object("Node", node)
	}
	listening := httptest.NewUnstartedServer(s)
	listening.EnableHTTP2 = true
	listening.Config.ConnState = s.connection
	listening.StartTLS() // as an API server is: HTTP/2, whose connections are kept
	t.Cleanup(listening.Close)
	w, err := connect(Options{Image: "localhost/workload:test", OnNode: "/opt/heddle"},
		&rest.Config{Host: listening.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.exec = func(context.Context, string, ...string) (string, error) {
		return "", errors.New("no node was expected to be asked")
	}
	return w, s
}

func object(kind, name string) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name}}
}

func (s *server) set(path, kind string, more map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[path] == nil {
		s.objects[path] = object(kind, path[strings.LastIndex(path, "/")+1:])
	}
	merge(s.objects[path], more)
}

// field is what an object says at a path of keys.
func (s *server) field(path string, keys ...string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at any = s.objects[path]
	for _, key := range keys {
		inner, _ := at.(map[string]any)
		at = inner[key]
	}
	return at
}

// cutShort is a context that is over when the server has been asked a few times; each
// time it does as it is told.
func (s *server) cutShort(t *testing.T, looked func(path string)) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	looks := 0
	s.looked = func(path string) {
		if looks++; looks == 4 {
			cancel()
		}
		looked(path)
	}
	return ctx
}

const pod = "/api/v1/namespaces/x/pods/"

// TestDeploy: each workload has its service account before its pod, which is asked for
// where the text says, and is waited for.
func TestDeploy(t *testing.T) {
	w, s := newWorld(t)
	looks := 0
	s.looked = func(string) {
		if looks++; looks == 3 {
			for i, name := range []string{"a", "b"} {
				s.objects[pod+name]["status"] = map[string]any{"phase": "Running", "podIP": fmt.Sprintf("10.244.1.%d", i+2),
					"containerStatuses": []any{map[string]any{"name": "main", "state": map[string]any{"running": map[string]any{}}}}}
			}
		}
	}
	err := w.Deploy(t.Context(), "x", []script.Workload{{Name: "a", Node: "n1"}, {Name: "b", Node: "n2", Label: "disabled"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"POST /api/v1/namespaces", "PATCH /api/v1/namespaces/x/serviceaccounts/a", "PATCH " + pod + "a",
		"PATCH /api/v1/namespaces/x/serviceaccounts/b", "PATCH " + pod + "b"}
	if !slices.Equal(s.did, want) {
		t.Errorf("did %q, want %q", s.did, want)
	}
	for _, test := range []struct {
		want any
		pod  string
		keys []string
	}{
		{"n1", "a", []string{"spec", "nodeSelector", "kubernetes.io/hostname"}}, {"n2", "b", []string{"spec", "nodeSelector", "kubernetes.io/hostname"}},
		{"b", "b", []string{"spec", "serviceAccountName"}}, {"b", "b", []string{"metadata", "labels", "app"}},
		{nil, "a", []string{"metadata", "labels", meshLabel}}, {"disabled", "b", []string{"metadata", "labels", meshLabel}},
	} {
		if got := s.field(pod+test.pod, test.keys...); got != test.want {
			t.Errorf("%v of pod %s is %v, want %v", test.keys, test.pod, got, test.want)
		}
	}
	if addr, err := w.Address(t.Context(), "x", "b"); err != nil || addr.String() != "10.244.1.3" {
		t.Errorf("the address of b is %v, %v", addr, err)
	}
}

// TestDeployInVain: who waits in vain reads which pod, why, and what its events say.
func TestDeployInVain(t *testing.T) {
	waiting := func(state string) map[string]any {
		return map[string]any{"containerStatuses": []any{map[string]any{"state": map[string]any{state: map[string]any{"reason": "Why", "message": "words"}}}}}
	}
	for want, status := range map[string]map[string]any{
		"pod a waits: Why: words":              waiting("waiting"),
		"pod a has ended: Why: words":          waiting("terminated"),
		"pod a has no node: none has the name": {"phase": "Pending", "conditions": []any{map[string]any{"type": "PodScheduled", "status": "False", "message": "none has the name"}}},
		"pod a is Pending":                     {"phase": "Pending"},
		"pod a is Running":                     {"phase": "Running"}, // without an address
	} {
		w, s := newWorld(t)
		s.set("/api/v1/namespaces/x/events/e", "Event", map[string]any{"type": "Warning", "reason": "FailedCreatePodSandBox", "message": "the agent is away",
			"involvedObject": map[string]any{"name": "a"}})
		s.set("/api/v1/namespaces/x/events/f", "Event", map[string]any{"type": "Normal", "reason": "Scheduled"})
		ctx := s.cutShort(t, func(string) { s.objects[pod+"a"]["status"] = status })
		err := w.Deploy(ctx, "x", []script.Workload{{Name: "a", Node: "n1"}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "event of a: FailedCreatePodSandBox: the agent is away") ||
			strings.Contains(err.Error(), "Scheduled") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestLabel: what is there stays.
func TestLabel(t *testing.T) {
	w, s := newWorld(t)
	s.set(pod+"a", "Pod", map[string]any{"metadata": map[string]any{"labels": map[string]any{"app": "a"}}})
	if err := errors.Join(w.Label(t.Context(), "x", "", "enabled"), w.Label(t.Context(), "x", "a", "disabled")); err != nil {
		t.Fatal(err)
	}
	if got := s.field("/api/v1/namespaces/x", "metadata", "labels", meshLabel); got != "enabled" {
		t.Errorf("the namespace's label is %v", got)
	}
	if mesh, app := s.field(pod+"a", "metadata", "labels", meshLabel), s.field(pod+"a", "metadata", "labels", "app"); mesh != "disabled" || app != "a" {
		t.Errorf("the pod's labels are %v and %v", mesh, app)
	}
}

// TestObjects: every kind of the language has its place, where it comes to, is
// replaced, and is taken away; what the API server refuses is said in its words.
func TestObjects(t *testing.T) {
	w, s := newWorld(t)
	for _, kind := range script.Kinds() {
		object := script.Object{Kind: kind[1], Name: "o", Fields: map[string]any{
			"apiVersion": kind[0], "kind": kind[1], "metadata": map[string]any{"name": "o", "namespace": "x"}, "spec": map[string]any{"port": 80},
		}}
		file := script.File{Name: "o.yaml", Objects: []script.Object{object}}
		if err := errors.Join(w.Apply(t.Context(), "x", file), w.Apply(t.Context(), "x", file)); err != nil {
			t.Errorf("%s: %v", kind[1], err)
			continue
		}
		at, err := resource(kind[1])
		path := "/apis/" + kind[0] + "/namespaces/x/" + at.Resource + "/o"
		if kind[0] == "v1" {
			path = "/api/v1/namespaces/x/" + at.Resource + "/o"
		}
		if err != nil || s.field(path, "spec", "port") != 80.0 {
			t.Errorf("%s is not at %s: %v", kind[1], path, err)
		}
		if err := w.Delete(t.Context(), "x", file); err != nil || s.field(path, "kind") != nil {
			t.Errorf("%s is still at %s: %v", kind[1], path, err)
		}
		if err := w.Delete(t.Context(), "x", file); err == nil {
			t.Errorf("%s was taken away twice", kind[1])
		}
		s.refuse = "spec.mode: Unsupported value"
		if err := w.Apply(t.Context(), "x", file); err == nil || !strings.Contains(err.Error(), s.refuse) {
			t.Errorf("what the API server refuses: %v", err)
		}
		s.refuse = ""
	}
	none := script.File{Objects: []script.Object{{Kind: "Secret", Fields: map[string]any{"apiVersion": "v1", "kind": "Secret"}}}}
	if err := w.Apply(t.Context(), "x", none); err == nil || !strings.Contains(err.Error(), `kind "Secret" has no place`) {
		t.Errorf("a kind that has no place: %v", err)
	}
}

// TestAddress: a Service has one, too; what is not there has none.
func TestAddress(t *testing.T) {
	w, s := newWorld(t)
	s.set("/api/v1/namespaces/x/services/web", "Service", map[string]any{"spec": map[string]any{"clusterIP": "10.96.0.7"}})
	s.set(pod+"early", "Pod", nil)
	if addr, err := w.Address(t.Context(), "x", "web"); err != nil || addr.String() != "10.96.0.7" {
		t.Errorf("the address of a Service is %v, %v", addr, err)
	}
	for _, name := range []string{"early", "nobody"} {
		if addr, err := w.Address(t.Context(), "x", name); err == nil {
			t.Errorf("the address of %s is %v", name, addr)
		}
	}
}

const space = "/api/v1/namespaces/x"

// TestClear: it returns when the pods are gone, Gone when the namespace is, and both say
// what is not.
func TestClear(t *testing.T) {
	w, s := newWorld(t)
	if err := errors.Join(w.Clear(t.Context(), "x"), w.Gone(t.Context(), "x")); err != nil {
		t.Errorf("a namespace that was not there: %v", err)
	}
	s.set(space, "Namespace", nil)
	s.set(pod+"a", "Pod", nil)
	s.did = nil
	looks := 0
	s.looked = func(string) {
		if looks++; looks == 3 {
			delete(s.objects, pod+"a")
		}
	}
	if err := w.Clear(t.Context(), "x"); err != nil || looks != 3 || !slices.Equal(s.did, []string{"DELETE " + space, "DELETE " + space + "/pods"}) {
		t.Errorf("it returned after %d looks: %v; did %q", looks, err, s.did)
	}
	s.set(space, "Namespace", nil)
	if err := w.Gone(s.cutShort(t, func(string) {}), "x"); err == nil || !strings.Contains(err.Error(), "namespace x is still there") {
		t.Errorf("a namespace that stays: %v", err)
	}
	s.set(pod+"a", "Pod", nil)
	if err := w.Clear(s.cutShort(t, func(string) {}), "x"); err == nil || !strings.Contains(err.Error(), "pod a of namespace x is still there") {
		t.Errorf("a pod that stays: %v", err)
	}
}

// TestNamespaceMadeAgain: one that goes is waited for.
func TestNamespaceMadeAgain(t *testing.T) {
	w, s := newWorld(t)
	s.set(space, "Namespace", map[string]any{"metadata": map[string]any{"deletionTimestamp": "2026-01-02T03:04:05Z"}})
	looks := 0
	s.looked = func(path string) {
		if looks++; looks == 4 {
			delete(s.objects, space)
		}
	}
	if err := w.Label(t.Context(), "x", "", "enabled"); err != nil || looks < 4 || s.field(space, "metadata", "deletionTimestamp") != nil {
		t.Errorf("after %d looks it is there: %v", looks, err)
	}
	if got := s.field(space, "metadata", "labels", meshLabel); got != "enabled" {
		t.Errorf("its label is %v", got)
	}
	s.set(space, "Namespace", map[string]any{"metadata": map[string]any{"deletionTimestamp": "2026-01-02T03:04:05Z"}})
	if err := w.Label(s.cutShort(t, func(string) {}), "x", "", "enabled"); err == nil || !strings.Contains(err.Error(), "namespace x is still there") {
		t.Errorf("one that stays: %v", err)
	}
}

const agentPod = "/api/v1/namespaces/heddle-system/pods"

// TestAgents: an agent is stopped, its pod taken away, and then it is killed; while it
// is away it is not asked, and it is back when it answers.
func TestAgents(t *testing.T) {
	w, s := newWorld(t)
	s.set("/api/v1/nodes/n1", "Node", map[string]any{"metadata": map[string]any{"labels": map[string]any{NodeLabel: NodeLabelValue}}})
	var asked []string
	answers := 0
	w.exec = func(_ context.Context, node string, args ...string) (string, error) {
		line := node + " " + strings.Join(args, " ")
		label := s.field("/api/v1/nodes/n1", "metadata", "labels", NodeLabel)
		switch {
		case args[0] == "/opt/heddle" && args[len(args)-1] == "json":
			asked = append(asked, "enrolled "+node)
			return `{"findings":[{"name":"pod x/on-` + node + `","ok":true},{"name":"pod y/other","ok":true}]}`, nil
		case args[0] == "/opt/heddle":
			if answers++; answers < 3 {
				return "", errors.New("connection refused")
			}
			asked = append(asked, "answers")
		case strings.Contains(line, "kill -STOP"):
			asked = append(asked, fmt.Sprint("stop with label ", label))
			return "4711    \n", nil
		case strings.Contains(line, "pid=4711\n"):
			asked = append(asked, fmt.Sprint("kill with label ", label))
		}
		return "", nil
	}
	gone := 0
	s.looked = func(path string) {
		if path == agentPod {
			gone++
			delete(s.objects, agentPod+"/agent-"+fmt.Sprint(gone))
		}
	}
	s.set(agentPod+"/agent-2", "Pod", nil)
	if err := w.KillAgent(t.Context(), "n1"); err != nil || gone != 2 {
		t.Fatalf("killed after %d looks: %v", gone, err)
	}
	if names, err := w.Enrolled(t.Context(), "x"); err != nil || !slices.Equal(names, []string{"on-n2"}) {
		t.Errorf("with n1's agent away, in the mesh are %v, %v", names, err)
	}
	if err := w.StartAgent(t.Context(), "n1"); err != nil || s.field("/api/v1/nodes/n1", "metadata", "labels", NodeLabel) != NodeLabelValue {
		t.Errorf("started: %v", err)
	}
	if names, err := w.Enrolled(t.Context(), "x"); err != nil || !slices.Equal(names, []string{"on-n1", "on-n2"}) {
		t.Errorf("in the mesh are %v, %v", names, err)
	}
	want := []string{"stop with label agent", "kill with label <nil>", "enrolled n2", "answers", "enrolled n1", "enrolled n2"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

// TestKill: in the kernel, a stopped process that was told to end is killed before it
// sees that; one that nobody has told is left alone.
func TestKill(t *testing.T) {
	victim := exec.Command("sh", "-c", "trap 'echo warned' TERM; echo ready; while :; do sleep 0.1; done")
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, said); err != nil {
		t.Fatal(err)
	}
	if err := victim.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	killer := exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf(killScript, fmt.Sprint(victim.Process.Pid)))
	if err := killer.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", victim.Process.Pid))
	if err != nil || !strings.Contains(string(status), "T (stopped)") {
		t.Errorf("before it was told to end: %v\n%s", err, status)
	}
	if err := victim.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := killer.Wait(); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(out)
	if err != nil || len(rest) > 0 {
		t.Errorf("it had a warning: %q, %v", rest, err)
	}
	var ended *exec.ExitError
	if err := victim.Wait(); !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended by %v", err)
	}
}

// TestAgentThatStays: one that cannot be killed goes on, and it is said why.
func TestAgentThatStays(t *testing.T) {
	w, _ := newWorld(t)
	var asked []string
	w.exec = func(_ context.Context, _ string, args ...string) (string, error) {
		asked = append(asked, args[len(args)-1])
		if strings.Contains(args[len(args)-1], "kill -KILL") {
			return "", errors.New("kubelet does not end the agent")
		}
		return "4711\n", nil
	}
	err := w.KillAgent(t.Context(), "n2")
	if err == nil || !strings.Contains(err.Error(), "kill the agent of n2: kubelet does not end the agent") || len(asked) != 3 || asked[2] != "4711" {
		t.Errorf("%v; asked %q", err, asked)
	}
}

// TestClose: no connection to the API server is left.
func TestClose(t *testing.T) {
	w, s := newWorld(t)
	if err := w.Label(t.Context(), "x", "", "enabled"); err != nil || s.open.Load() == 0 {
		t.Fatalf("%d connections: %v", s.open.Load(), err)
	}
	w.Close()
	testenv.Eventually(t, 10*time.Second, "the connections are closed", func() bool { return s.open.Load() == 0 })
}

// TestFailuresAreSaid: a node that cannot be asked is named.
func TestFailuresAreSaid(t *testing.T) {
	w, _ := newWorld(t)
	for what, err := range map[string]error{
		"stop the agent of n1": w.KillAgent(t.Context(), "n1"),
		"ask the agent of n1":  func() error { _, err := w.Enrolled(t.Context(), "x"); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want %q, got %v", what, err)
		}
	}
}
