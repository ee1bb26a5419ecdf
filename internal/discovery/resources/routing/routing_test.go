package routing

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fill draws a value of whatever type: a field that is added to a route is drawn too, and
// gets lost on its way until there is one for it in the message.
func fill(t *rapid.T, v reflect.Value, name string) {
	switch v.Interface().(type) {
	case time.Time:
		at := time.Unix(rapid.Int64Range(-62135596800, 253402300799).Draw(t, name), rapid.Int64Range(0, 999999999).Draw(t, name)).UTC()
		v.Set(reflect.ValueOf(at))
		return
	case time.Duration:
		v.SetInt(rapid.Int64Min(0).Draw(t, name))
		return
	case route.Kind:
		v.SetUint(rapid.Uint64Max(uint64(route.TCP)).Draw(t, name))
		return
	case route.PathType:
		v.SetUint(rapid.Uint64Max(uint64(route.PathExpression)).Draw(t, name))
		return
	case route.Filter: // exactly one is set
		one := v.Field(rapid.IntRange(0, v.NumField()-1).Draw(t, name))
		if one.Kind() == reflect.Pointer {
			one.Set(reflect.New(one.Type().Elem()))
			fill(t, one.Elem(), name)
			return
		}
		one.SetString(rapid.StringN(1, 9, -1).Draw(t, name))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
		switch at := v.Addr().Interface().(type) {
		case *route.Parent:
			at.Port = max(at.Port, 1)
		case *route.Redirect:
			at.Status = rapid.SampledFrom([]int{301, 302, 303, 307, 308}).Draw(t, "status")
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 2).Draw(t, name), 2))
		for i := range v.Len() {
			fill(t, v.Index(i), name)
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, name) {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem(), name)
		}
	case reflect.String:
		v.SetString(rapid.String().Draw(t, name))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, name))
	case reflect.Int:
		v.SetInt(int64(rapid.Int32().Draw(t, name)))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(rapid.Uint64Max(math.MaxUint64>>(64-v.Type().Bits())).Draw(t, name))
	default:
		t.Fatalf("%s: nothing is drawn for a %s", name, v.Type())
	}
}

func encodeBody(t interface{ Fatal(...any) }, r *route.Route) []byte {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(Encode(r))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want route.Route
		fill(t, reflect.ValueOf(&want).Elem(), "route")
		body := encodeBody(t, &want)
		got, err := Decode(body)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		if again := encodeBody(t, got); string(again) != string(body) {
			t.Fatal("encoded again, it is another body")
		}
	})
}

// full is a route with something in every field.
func full() *route.Route {
	filters := []route.Filter{
		{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "a", Value: "b"}}, Add: []route.Header{{Name: "c", Value: "d"}}, Remove: []string{"e"}}},
		{ResponseHeaders: &route.Headers{}}, {Redirect: &route.Redirect{Scheme: "https", Hostname: "h", Port: 1, Path: &route.PathChange{Prefix: true, Value: "/"}, Status: 307}},
		{Rewrite: &route.Rewrite{Hostname: "h", Path: &route.PathChange{}}}, {Mirror: &route.Mirror{Port: 80, Broken: "b", Numerator: 1, Denominator: 2}},
		{CORS: &route.CORS{Origins: []string{"*"}, Credentials: true, Methods: []string{"GET"}, Headers: []string{"a"}, Expose: []string{"b"}, MaxAge: 5}}, {Broken: "why"},
	}
	r := &route.Route{Created: time.Unix(1, 2).UTC(), Hostnames: []string{"h"}, Parents: []route.Parent{{Port: 80}}, Rules: []route.Rule{{Name: "n", Filters: filters,
		Matches: []route.Match{{Path: route.PathMatch{Type: route.PathExpression, Value: ".*"}, Method: "GET", Call: route.CallMatch{Service: "s", Method: "m", Expression: true},
			Headers: []route.ValueMatch{{Name: "n", Value: "v", Expression: true}}, Params: []route.ValueMatch{{Name: "p"}}}},
		Backends:       []route.Backend{{Port: 80, Weight: 1, Broken: "b", Filters: filters[:1]}},
		RequestTimeout: 1, BackendTimeout: 2, Retry: &route.Retry{Codes: []uint16{503}, Attempts: -1, Backoff: 3}, Session: &route.Session{Name: "s", Header: true, Permanent: true, AbsoluteTimeout: 4}}}}
	r.Namespace, r.Name = "shop", "web"
	return r
}

// TestUnknownIsRefused: a field of a newer operator, in whatever message of a route, is
// refused, not passed over.
func TestUnknownIsRefused(t *testing.T) {
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("new"))
	for name, change := range map[string]func(*meshpb.Route){
		"route":   func(m *meshpb.Route) { m.ProtoReflect().SetUnknown(unknown) },
		"rule":    func(m *meshpb.Route) { m.Rules[0].ProtoReflect().SetUnknown(unknown) },
		"match":   func(m *meshpb.Route) { m.Rules[0].Matches[0].ProtoReflect().SetUnknown(unknown) },
		"header":  func(m *meshpb.Route) { m.Rules[0].Matches[0].Headers[0].ProtoReflect().SetUnknown(unknown) },
		"filter":  func(m *meshpb.Route) { m.Rules[0].Filters[0].ProtoReflect().SetUnknown(unknown) },
		"step":    func(m *meshpb.Route) { m.Rules[0].Filters[2].GetRedirect().ProtoReflect().SetUnknown(unknown) },
		"backend": func(m *meshpb.Route) { m.Rules[0].Backends[0].ProtoReflect().SetUnknown(unknown) },
		"retry":   func(m *meshpb.Route) { m.Rules[0].Retry.ProtoReflect().SetUnknown(unknown) },
		"session": func(m *meshpb.Route) { m.Rules[0].Session.ProtoReflect().SetUnknown(unknown) },
	} {
		m := Encode(full())
		change(m)
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(body); err == nil || !strings.Contains(err.Error(), "not known here") {
			t.Errorf("a new field of a %s: %v", name, err)
		}
	}
}

// TestBounds: values that no route can have.
func TestBounds(t *testing.T) {
	for name, change := range map[string]func(*meshpb.Route){
		"ROUTE_KIND_UNSPECIFIED is unknown": func(m *meshpb.Route) { m.Kind = 0 },
		"kind 9 is unknown":                 func(m *meshpb.Route) { m.Kind = 9 },
		"more than a second":                func(m *meshpb.Route) { m.CreatedNanos = 1e9 },
		"port 0 is not between":             func(m *meshpb.Route) { m.Parents[0].Port = 0 },
		"timeout is negative":               func(m *meshpb.Route) { m.Rules[0].BackendTimeoutNs = -1 },
		"timeout of a session is negative":  func(m *meshpb.Route) { m.Rules[0].Session.AbsoluteTimeoutNs = -1 },
		"pause is negative":                 func(m *meshpb.Route) { m.Rules[0].Retry.BackoffNs = -1 },
		"65536 is more than":                func(m *meshpb.Route) { m.Rules[0].Backends[0].Port = 65536 },
		"70000 is more than":                func(m *meshpb.Route) { m.Rules[0].Retry.Codes = []uint32{70000} },
		"70001 is more than":                func(m *meshpb.Route) { m.Rules[0].Filters[4].GetMirror().Port = 70001 },
		"type 3 of a path is unknown":       func(m *meshpb.Route) { m.Rules[0].Matches[0].PathType = 3 },
		"304 is no status of a redirect":    func(m *meshpb.Route) { m.Rules[0].Filters[2].GetRedirect().Status = 304 },
		"the step is unknown":               func(m *meshpb.Route) { m.Rules[0].Backends[0].Filters[0].Step = nil },
		"broken without a reason":           func(m *meshpb.Route) { m.Rules[0].Filters[6].Step = &meshpb.RouteFilter_Broken{} },
		"no time that an answer is kept":    func(m *meshpb.Route) { m.Rules[0].Filters[5].GetCors().MaxAge = 1 << 40 },
	} {
		m := Encode(full())
		change(m)
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(body); err == nil || !strings.Contains(fmt.Sprint(err), strings.TrimPrefix(name, "kind ")) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := Decode(encodeBody(t, full())); err != nil {
		t.Error(err)
	}
}

// TestKinds: every kind has a number of its own, which stays: programs of other versions have it too. One that a program
// does not know is refused, as kind 9 is: a waypoint of a version before TLSRoute does so with 3 and 4.
func TestKinds(t *testing.T) {
	for kind, number := range map[route.Kind]meshpb.RouteKind{route.HTTP: 1, route.GRPC: 2, route.TLS: 3, route.TCP: 4} {
		if got := Encode(&route.Route{ID: route.ID{Kind: kind}}).GetKind(); got != number {
			t.Errorf("%s is number %d, want %d", kind, got, number)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encodeBody(f, full()))
	f.Add(encodeBody(f, &route.Route{}))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := Decode(body)
		if err != nil {
			return
		}
		again, err := Decode(encodeBody(t, r))
		if err != nil {
			t.Fatalf("encoded, but not to be decoded: %v", err)
		}
		if diff := cmp.Diff(r, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}
