package clustertest

import (
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// patchByOperations does what a JSON Patch (RFC 6902) says with test, replace and remove
// of fields that are two names deep: all of it, or nothing.
func (s *Server) patchByOperations(w http.ResponseWriter, t target, body []byte) {
	var operations []struct {
		Op, Path string
		Value    any
	}
	if err := json.Unmarshal(body, &operations); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.state.Lock()
	defer s.state.Unlock()
	was := s.state.objects[t.collection+"/"+t.Name]
	if was == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, t.String()+": not found")
		return
	}
	o := maps.Clone(was)
	for _, op := range operations {
		path := strings.Split(op.Path, "/")
		if len(path) != 3 {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, op.Path+": not a path that is known here")
			return
		}
		fields, _ := o[path[1]].(map[string]any)
		fields = maps.Clone(fields)
		value, has := fields[path[2]]
		switch {
		case op.Op == "test" && has && reflect.DeepEqual(value, op.Value):
		case op.Op == "replace" && has:
			fields[path[2]] = op.Value
		case op.Op == "remove" && has:
			delete(fields, path[2])
		default:
			fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, op.Op+" "+op.Path+" failed")
			return
		}
		o[path[1]] = fields
	}
	reply(w, http.StatusOK, s.storeLocked(t.collection, o))
}
