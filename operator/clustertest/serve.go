package clustertest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// target is what a URL is about.
type target struct {
	Request
	// collection is the path of the collection; all is set when it is in every
	// namespace.
	collection string
	all        bool
}

// parse takes /api/v1/... or /apis/GROUP/VERSION/... apart.
func parse(r *http.Request) target {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var t target
	if len(parts) == 3 && parts[0] == "apis" {
		t.Verb, t.Group, t.Resource = "discover", parts[1], parts[2]
		return t
	}
	prefix := "/api/v1"
	rest := parts[2:]
	if parts[0] == "apis" {
		t.Group, prefix, rest = parts[1], "/apis/"+parts[1]+"/"+parts[2], parts[3:]
	}
	if len(rest) >= 3 && rest[0] == "namespaces" {
		t.Namespace, prefix, rest = rest[1], prefix+"/namespaces/"+rest[1], rest[2:]
	}
	t.Resource, t.collection, t.all = rest[0], prefix+"/"+rest[0], t.Namespace == ""
	if len(rest) > 1 {
		t.Name = rest[1]
	}
	if len(rest) > 2 {
		t.Subresource = rest[2]
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
		t.Verb = "watch"
	case r.Method == http.MethodGet && t.Name == "":
		t.Verb = "list"
	default:
		t.Verb = map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	}
	return t
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := parse(r)
	s.state.Lock()
	s.state.requests[t.String()]++
	forbidden := s.state.forbid != nil && s.state.forbid(t.Request)
	resources, known := s.state.served[strings.Join(strings.Split(strings.Trim(r.URL.Path, "/"), "/")[1:min(3, strings.Count(r.URL.Path, "/"))], "/")]
	s.state.Unlock()
	if forbidden {
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, "forbidden: this account cannot "+t.String())
		return
	}
	if t.Verb == "discover" || strings.HasSuffix(t.Group, ".networking.k8s.io") && !slices.Contains(resources, t.Resource) {
		s.discover(w, t, resources, known)
		return
	}
	body, err := io.ReadAll(r.Body)
	var object Object
	if err == nil && r.Header.Get("Content-Type") == "application/json-patch+json" {
		s.patchByOperations(w, t, body)
		return
	}
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &object)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	switch t.Verb {
	case "list":
		s.list(w, r, t)
	case "watch":
		s.watch(w, r, t)
	case "get":
		s.get(w, t)
	case "create":
		s.create(w, t, object)
	case "update":
		s.update(w, t, object)
	case "patch":
		s.patch(w, t, object, r.Header.Get("Content-Type") == "application/apply-patch+yaml")
	case "delete":
		if s.Get(t.collection, t.Name) == nil {
			fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, t.String()+": not found")
			return
		}
		s.Delete(t.collection, t.Name)
		reply(w, http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess})
	default:
		fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, t.Verb)
	}
}

// discover says which resources a group has; of one that there is not, or of a resource
// that it has not, it says that it is not found.
func (s *Server) discover(w http.ResponseWriter, t target, resources []string, known bool) {
	if t.Verb != "discover" || !known {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
		return
	}
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, GroupVersion: t.Group + "/" + t.Resource}
	for _, name := range resources {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: name})
	}
	reply(w, http.StatusOK, list)
}

func (t target) holds(collection string) bool {
	if !t.all {
		return collection == t.collection
	}
	prefix, resource := t.collection[:strings.LastIndex(t.collection, "/")], "/"+t.Resource
	return collection == t.collection || strings.HasPrefix(collection, prefix+"/namespaces/") && strings.HasSuffix(collection, resource)
}

// matchingLocked returns the objects of a target, in order of their paths.
func (s *Server) matchingLocked(t target, match func(Object) bool) []Object {
	items := []Object{}
	for _, path := range slices.Sorted(maps.Keys(s.state.objects)) {
		if o := s.state.objects[path]; t.holds(path[:strings.LastIndex(path, "/")]) && match(o) {
			items = append(items, o)
		}
	}
	return items
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, t target) {
	match, err := selects(r)
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.state.Lock()
	items, version := s.matchingLocked(t, match), s.state.version
	s.state.Unlock()
	kind, apiVersion := "List", "v1"
	if len(items) > 0 {
		kind, apiVersion = fmt.Sprint(items[0]["kind"])+"List", fmt.Sprint(items[0]["apiVersion"])
	} else if t.Group != "" {
		apiVersion = strings.Join(strings.Split(t.collection, "/")[2:4], "/")
		kind = emptyKind(t.Resource)
	} else {
		kind = emptyKind(t.Resource)
	}
	reply(w, http.StatusOK, Object{"apiVersion": apiVersion, "kind": kind, "metadata": Object{"resourceVersion": strconv.FormatUint(version, 10)}, "items": items})
}

// emptyKind is the kind of an empty list.
func emptyKind(resource string) string {
	return map[string]string{"namespaces": "NamespaceList", "nodes": "NodeList", "pods": "PodList", "services": "ServiceList",
		"endpointslices": "EndpointSliceList", "networkpolicies": "NetworkPolicyList", "meshes": "MeshList", "workloads": "WorkloadList",
		"peerauthentications": "PeerAuthenticationList", "authorizationpolicies": "AuthorizationPolicyList",
		"gatewayclasses": "GatewayClassList", "gateways": "GatewayList", "httproutes": "HTTPRouteList", "grpcroutes": "GRPCRouteList",
		"tlsroutes": "TLSRouteList", "tcproutes": "TCPRouteList",
		"referencegrants": "ReferenceGrantList"}[resource]
}

// watch streams changes after a version, or, when asked for initial events, all
// there is, a bookmark that says so, and then changes.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, t target) {
	match, err := selects(r)
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.state.Lock()
	after := s.state.version
	var initial []Object
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		initial = s.matchingLocked(t, match)
	} else if v, err := strconv.ParseUint(r.URL.Query().Get("resourceVersion"), 10, 64); err == nil && v > 0 {
		after = v
	}
	s.state.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	send := func(kind string, o Object) error {
		return json.NewEncoder(w).Encode(Object{"type": kind, "object": o})
	}
	for _, o := range initial {
		if send("ADDED", o) != nil {
			return
		}
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		bookmark := Object{"kind": strings.TrimSuffix(emptyKind(t.Resource), "List"), "apiVersion": apiVersionOf(t), "metadata": Object{
			"resourceVersion": strconv.FormatUint(after, 10), "annotations": Object{metav1.InitialEventsAnnotationKey: "true"}}}
		if send("BOOKMARK", bookmark) != nil {
			return
		}
	}
	s.follow(w, r, t, after, match, send)
}

func apiVersionOf(t target) string {
	if t.Group == "" {
		return "v1"
	}
	return strings.Join(strings.Split(t.collection, "/")[2:4], "/")
}

func (s *Server) follow(w http.ResponseWriter, r *http.Request, t target, after uint64, match func(Object) bool, send func(string, Object) error) {
	flusher, _ := w.(http.Flusher)
	flusher.Flush()
	for {
		s.state.Lock()
		var events []event
		first, _ := slices.BinarySearchFunc(s.state.log, after+1, func(e event, v uint64) int { return int(int64(e.version) - int64(v)) })
		for _, e := range s.state.log[first:] {
			after = e.version
			if t.holds(e.path) && match(e.object) {
				events = append(events, e)
			}
		}
		changed := s.state.changed
		s.state.Unlock()
		for _, e := range events {
			if send(e.kind, e.object) != nil {
				return
			}
		}
		flusher.Flush()
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

func (s *Server) get(w http.ResponseWriter, t target) {
	if o := s.Get(t.collection, t.Name); o != nil {
		reply(w, http.StatusOK, o)
		return
	}
	fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, t.String()+": not found")
}

func (s *Server) create(w http.ResponseWriter, t target, o Object) {
	if t.Resource == "tokenreviews" {
		s.review(w, o)
		return
	}
	s.state.Lock()
	defer s.state.Unlock()
	name, _ := o["metadata"].(map[string]any)["name"].(string)
	if s.state.objects[t.collection+"/"+name] != nil {
		fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, name+" already exists")
		return
	}
	reply(w, http.StatusCreated, s.storeLocked(t.collection, o))
}

func (s *Server) review(w http.ResponseWriter, o Object) {
	spec, _ := o["spec"].(map[string]any)
	var audiences []string
	for _, a := range spec["audiences"].([]any) {
		audiences = append(audiences, fmt.Sprint(a))
	}
	o["status"] = Object{"authenticated": false, "error": "invalid bearer token"}
	if s.Review != nil {
		o["status"] = s.Review(fmt.Sprint(spec["token"]), audiences)
	}
	reply(w, http.StatusCreated, o)
}

func (s *Server) update(w http.ResponseWriter, t target, o Object) {
	s.state.Lock()
	defer s.state.Unlock()
	was := s.state.objects[t.collection+"/"+t.Name]
	if was == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, t.String()+": not found")
		return
	}
	given, _ := o["metadata"].(map[string]any)["resourceVersion"].(string)
	if have := was["metadata"].(map[string]any)["resourceVersion"]; given != "" && given != have {
		fail(w, http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified")
		return
	}
	reply(w, http.StatusOK, s.storeLocked(t.collection, o))
}

// patch merges one level deep: what is given replaces data's entries, or the
// status as a whole. What is applied replaces the fields of the spec, and is created when it
// is not there. A version that is given has to be the present one.
func (s *Server) patch(w http.ResponseWriter, t target, patch Object, apply bool) {
	s.state.Lock()
	defer s.state.Unlock()
	was := s.state.objects[t.collection+"/"+t.Name]
	if was == nil && apply && t.Subresource == "" {
		reply(w, http.StatusCreated, s.storeLocked(t.collection, patch))
		return
	}
	if was == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, t.String()+": not found")
		return
	}
	given, _ := patch["metadata"].(map[string]any)
	have := was["metadata"].(map[string]any)
	if version := given["resourceVersion"]; version != nil && version != have["resourceVersion"] {
		fail(w, http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified")
		return
	}
	o := maps.Clone(was)
	switch {
	case t.Subresource == "status":
		o["status"] = patch["status"]
	case apply:
		maps.Copy(o, patch)
		if spec, ok := was["spec"].(map[string]any); ok { // what others have set stays
			spec = maps.Clone(spec)
			wanted, _ := patch["spec"].(map[string]any)
			maps.Copy(spec, wanted)
			o["spec"] = spec
		}
		o["metadata"] = maps.Clone(have)
		maps.Copy(o["metadata"].(map[string]any), given)
	default:
		data, _ := o["data"].(map[string]any)
		data = maps.Clone(data)
		if data == nil {
			data = Object{}
		}
		given, _ := patch["data"].(map[string]any)
		maps.Copy(data, given)
		o["data"] = data
	}
	reply(w, http.StatusOK, s.storeLocked(t.collection, o))
}
