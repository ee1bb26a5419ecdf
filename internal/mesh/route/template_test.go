package route_test

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

func TestTemplate(t *testing.T) {
	for _, c := range []struct {
		kind  route.Kind
		match route.Match
		want  string
	}{
		{route.HTTP, route.Match{}, "/*"},
		{route.HTTP, route.Match{Path: route.PathMatch{Value: "/"}}, "/*"},
		{route.HTTP, route.Match{Path: route.PathMatch{Value: "/cart/"}}, "/cart/*"},
		{route.HTTP, route.Match{Path: route.PathMatch{Type: route.PathExact, Value: "/cart"}}, "/cart"},
		{route.HTTP, route.Match{Path: route.PathMatch{Type: route.PathExpression, Value: "/c.*"}}, "~/c.*"},
		{route.GRPC, route.Match{}, "/*/*"},
		{route.GRPC, route.Match{Call: route.CallMatch{Service: "shop.Cart", Method: "Add"}}, "/shop.Cart/Add"},
		{route.GRPC, route.Match{Call: route.CallMatch{Service: "shop.Cart"}}, "/shop.Cart/*"},
		{route.GRPC, route.Match{Call: route.CallMatch{Service: "shop.*", Expression: true}}, "~/shop.*/*"},
	} {
		if got := c.match.Template(c.kind); got != c.want {
			t.Errorf("%s %+v: %q, want %q", c.kind, c.match, got, c.want)
		}
	}
}
