package route_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// fields returns headers of names and values in turn.
func fields(pairs ...string) (all []route.Header) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, route.Header{Name: pairs[i], Value: pairs[i+1]})
	}
	return all
}

func TestOrigins(t *testing.T) {
	for _, test := range []struct {
		allowed, origin string
		want            bool
	}{
		{"*", "https://any.example", true},
		{"https://shop.example", "https://shop.example", true},
		{"https://shop.example", "https://SHOP.example:443", true},
		{"https://shop.example", "http://shop.example", false},
		{"https://shop.example", "https://shop.example:8443", false},
		{"https://shop.example:8443", "https://shop.example:8443", true},
		{"http://*.example", "http://a.b.example", true},
		{"http://*.example", "http://example", false},
		{"http://*.example", "http://example.evil", false},
		{"http://*", "http://anything:80", true},
		{"http://*", "https://anything", false},
		{"http://*.example", "http://evil/.example", false},
		{"http://*.example", "null", false},
	} {
		c := route.CORS{Origins: []string{test.allowed}}
		r := route.Request{Headers: []route.Header{{Name: "Origin", Value: test.origin}}}
		if got := len(c.Apply(&r, nil)) > len(c.Apply(&route.Request{}, nil)); got != test.want {
			t.Errorf("%s allows %s: %v, want %v", test.allowed, test.origin, got, test.want)
		}
	}
}

func TestPreflight(t *testing.T) {
	asks := func(more ...route.Header) *route.Request {
		return &route.Request{Method: "OPTIONS", Headers: append([]route.Header{{Name: "origin", Value: "https://a.example"}}, more...)}
	}
	put := []route.Header{{Name: "Access-Control-Request-Method", Value: "PUT"}, {Name: "access-control-request-headers", Value: "x-a, x-b"}}
	closed := route.CORS{Origins: []string{"https://a.example"}, Methods: []string{"PUT", "GET"}, Headers: []string{"x-a"}, Expose: []string{"x-c"}, MaxAge: 5}
	open := route.CORS{Origins: []string{"*"}, Methods: []string{"*"}, Headers: []string{"*"}, Expose: []string{"*"}, MaxAge: 60}
	credentials := open
	credentials.Credentials = true
	for _, test := range []struct {
		cors                route.CORS
		preflight, response []route.Header
	}{
		{closed, fields("access-control-allow-origin", "https://a.example", "vary", "Origin", "access-control-allow-methods", "PUT, GET",
			"access-control-allow-headers", "x-a", "access-control-max-age", "5"),
			fields("vary", "Accept", "vary", "Origin", "access-control-allow-origin", "https://a.example", "access-control-expose-headers", "x-c")},
		{open, fields("access-control-allow-origin", "*", "access-control-allow-methods", "*", "access-control-allow-headers", "*", "access-control-max-age", "60"),
			fields("vary", "Accept", "access-control-allow-origin", "*", "access-control-expose-headers", "*")},
		{credentials, fields("access-control-allow-origin", "https://a.example", "access-control-allow-credentials", "true", "vary", "Origin",
			"access-control-allow-methods", "PUT", "access-control-allow-headers", "x-a, x-b", "access-control-max-age", "60"),
			fields("vary", "Accept", "vary", "Origin", "access-control-allow-origin", "https://a.example", "access-control-allow-credentials", "true")},
	} {
		got, ok := test.cors.Preflight(asks(put...))
		if diff := cmp.Diff(test.preflight, got); diff != "" || !ok {
			t.Errorf("%+v answers a preflight, %v, -want +got:\n%s", test.cors, ok, diff)
		}
		// The backend allows another origin, with credentials: its word does not count.
		backend := fields("Access-Control-Allow-Origin", "https://evil.example", "vary", "Accept", "access-control-allow-credentials", "true", "Access-Control-Expose-Headers", "x-secret")
		if diff := cmp.Diff(test.response, test.cors.Apply(asks(), backend)); diff != "" {
			t.Errorf("%+v answers a request, -want +got:\n%s", test.cors, diff)
		}
	}
	if got, ok := (&route.CORS{Origins: []string{"https://b.example"}}).Preflight(asks(put...)); !ok || got != nil {
		t.Errorf("another origin's preflight is answered with %v, %v; want nothing, true", got, ok)
	}
	if _, ok := open.Preflight(asks()); ok {
		t.Error("OPTIONS without a method to ask for is taken for a preflight")
	}
}

// TestOtherOriginsGetNothing: not from the backend either; and caches keep answers apart.
func TestOtherOriginsGetNothing(t *testing.T) {
	c := route.CORS{Origins: []string{"https://a.example"}}
	for _, origin := range []string{"https://evil.example", ""} {
		r := &route.Request{Method: "GET"}
		if origin != "" {
			r.Headers = fields("origin", origin)
		}
		got := c.Apply(r, fields("access-control-allow-origin", "*", "content-type", "text/plain"))
		if diff := cmp.Diff(fields("content-type", "text/plain", "vary", "Origin"), got); diff != "" {
			t.Errorf("origin %q, -want +got:\n%s", origin, diff)
		}
	}
}
