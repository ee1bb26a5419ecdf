// Package clustertest is an API server for tests, in the test's own process, on
// loopback: enough of the real one's HTTP for what an operator does. It lists,
// watches from a version on, with bookmarks and streamed lists; it creates
// once, refuses updates of old versions, applies statuses, reviews tokens, and
// refuses what a rule of the test's forbids. It knows no schemas, no admission
// and no garbage collection.
//
// It is imported by tests only. A Server is safe for concurrent use.
package clustertest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
)

// Object is one in JSON form.
type Object = map[string]any

// Request is what somebody asks for, in the words of RBAC.
type Request struct{ Verb, Group, Resource, Subresource, Namespace, Name string }

// String returns "list pods" or "patch heddle.dev/meshes/status default".
func (r Request) String() string {
	resource := r.Resource
	if r.Group != "" {
		resource = r.Group + "/" + resource
	}
	if r.Subresource != "" {
		resource += "/" + r.Subresource
	}
	return strings.TrimSpace(r.Verb + " " + resource + " " + r.Name)
}

// Server is a running API server.
type Server struct {
	// Review answers token reviews; nil refuses every token.
	Review func(token string, audiences []string) Object

	address string
	state   struct {
		sync.Mutex
		version  uint64
		objects  map[string]Object // by path
		log      []event           // every change, oldest first
		changed  chan struct{}
		requests map[string]int      // by Request.String
		served   map[string][]string // optional resources, by group and version
		forbid   func(Request) bool
	}
}

// event is one change of an object.
type event struct {
	kind    string // ADDED, MODIFIED or DELETED
	path    string // of the collection
	object  Object
	version uint64
}

// Start returns a server that ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{address: "http://" + listener.Addr().String()}
	s.state.objects, s.state.requests, s.state.changed = map[string]Object{}, map[string]int{}, make(chan struct{})
	s.state.version, s.state.served = 100, map[string][]string{}
	server := &http.Server{Handler: s}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends when it is closed
	}()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return s
}

// Config returns how to reach the server, which speaks JSON.
func (s *Server) Config() *rest.Config {
	return &rest.Config{Host: s.address, QPS: 1000, Burst: 1000, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}}
}

// Forbid sets what is refused from now on; nil refuses nothing.
func (s *Server) Forbid(rule func(Request) bool) {
	s.state.Lock()
	defer s.state.Unlock()
	s.state.forbid = rule
}

// Serve has the server serve these resources of a group and version, such as
// example.org/v1, and no others of it: until then it has none of a group that is not
// Kubernetes' own, or Heddle's.
func (s *Server) Serve(group string, resources ...string) {
	s.state.Lock()
	defer s.state.Unlock()
	s.state.served[group] = resources
}

// Requests returns how often each request was made.
func (s *Server) Requests() map[string]int {
	s.state.Lock()
	defer s.state.Unlock()
	return maps.Clone(s.state.requests)
}

// Put creates or replaces an object. path is that of its collection, such as
// /api/v1/namespaces/shop/pods. Given a typed object, it takes its JSON form.
func (s *Server) Put(t testing.TB, path string, object any) Object {
	t.Helper()
	o := s.toObject(t, object)
	s.state.Lock()
	defer s.state.Unlock()
	return s.storeLocked(path, o)
}

func (s *Server) toObject(t testing.TB, object any) Object {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var o Object
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// Delete removes an object.
func (s *Server) Delete(path, name string) {
	s.state.Lock()
	defer s.state.Unlock()
	o, ok := s.state.objects[path+"/"+name]
	if !ok {
		return
	}
	delete(s.state.objects, path+"/"+name)
	s.state.version++
	gone := withVersion(o, s.state.version)
	s.notifyLocked(event{"DELETED", path, gone, s.state.version})
}

// Get returns an object, nil when there is none.
func (s *Server) Get(path, name string) Object {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.objects[path+"/"+name]
}

// List returns the objects of a collection in all namespaces, such as events.
func (s *Server) List(collection string) []Object {
	s.state.Lock()
	defer s.state.Unlock()
	var all []Object
	for _, path := range slices.Sorted(maps.Keys(s.state.objects)) {
		if parts := strings.Split(path, "/"); parts[len(parts)-2] == collection {
			all = append(all, s.state.objects[path])
		}
	}
	return all
}

func withVersion(o Object, version uint64) Object {
	o = maps.Clone(o)
	m, _ := o["metadata"].(map[string]any)
	m = maps.Clone(m)
	if m == nil {
		m = map[string]any{}
	}
	m["resourceVersion"] = strconv.FormatUint(version, 10)
	o["metadata"] = m
	return o
}

// storeLocked keeps an object under a new version, with a UID and a generation
// that grows with its spec, as a real server gives.
func (s *Server) storeLocked(path string, o Object) Object {
	s.state.version++
	o = withVersion(o, s.state.version)
	m := o["metadata"].(map[string]any)
	key := path + "/" + m["name"].(string)
	was, had := s.state.objects[key]
	generation, kind := 1.0, "ADDED"
	if had {
		kind = "MODIFIED"
		before := was["metadata"].(map[string]any)
		generation = before["generation"].(float64)
		if fmt.Sprint(was["spec"]) != fmt.Sprint(o["spec"]) {
			generation++
		}
		if m["uid"] == nil {
			m["uid"] = before["uid"]
		}
	}
	m["generation"] = generation
	if m["uid"] == nil {
		m["uid"] = fmt.Sprintf("uid-%d", s.state.version)
	}
	if parts := strings.Split(path, "/namespaces/"); len(parts) == 2 && m["namespace"] == nil {
		m["namespace"] = strings.Split(parts[1], "/")[0]
	}
	s.state.objects[key] = o
	s.notifyLocked(event{kind, path, o, s.state.version})
	return o
}

func (s *Server) notifyLocked(e event) {
	s.state.log = append(s.state.log, e)
	close(s.state.changed)
	s.state.changed = make(chan struct{})
}

// selects reads the labelSelector of a request.
func selects(r *http.Request) (func(Object) bool, error) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		return nil, err
	}
	return func(o Object) bool {
		set := labels.Set{}
		m, _ := o["metadata"].(map[string]any)
		given, _ := m["labels"].(map[string]any)
		for key, value := range given {
			set[key] = fmt.Sprint(value)
		}
		return selector.Matches(set)
	}, nil
}

// fail answers with a Status, as API machinery reads it.
func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	reply(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: message})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// Whoever asked may be gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(body)
}
