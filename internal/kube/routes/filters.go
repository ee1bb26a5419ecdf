package routes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// compileFilters compiles filters but for what they refer to, in their order.
func compileFilters(field string, from []gatewayv1.HTTPRouteFilter, matches []route.Match) (all []route.Filter, f *fault) {
	if len(from) > 16 {
		return nil, unsupported(field, "are %d; write at most 16", len(from))
	}
	seen := map[gatewayv1.HTTPRouteFilterType]bool{}
	for i := range from {
		at, kind := fmt.Sprintf("%s[%d]", field, i), from[i].Type
		repeats := kind == gatewayv1.HTTPRouteFilterRequestMirror || kind == gatewayv1.HTTPRouteFilterExtensionRef
		if seen[kind] && !repeats {
			return nil, &fault{gatewayv1.RouteReasonIncompatibleFilters, fmt.Sprintf("%s: %s is there twice; make one of the two", at, kind)}
		}
		seen[kind] = true
		filter, f := compileFilter(at, &from[i], matches)
		if f != nil {
			return nil, f
		}
		all = append(all, filter)
	}
	if seen[gatewayv1.HTTPRouteFilterRequestRedirect] && seen[gatewayv1.HTTPRouteFilterURLRewrite] {
		return nil, &fault{gatewayv1.RouteReasonIncompatibleFilters, field + ": a request is either redirected or rewritten; take out RequestRedirect or URLRewrite"}
	}
	return all, nil
}

func compileFilter(field string, from *gatewayv1.HTTPRouteFilter, matches []route.Match) (out route.Filter, f *fault) {
	missing := func(name string) *fault {
		return unsupported(field+"."+name, "is missing, which a filter of type %s needs; write it", from.Type)
	}
	switch from.Type {
	case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
		if from.RequestHeaderModifier == nil {
			return out, missing("requestHeaderModifier")
		}
		out.RequestHeaders, f = headers(field+".requestHeaderModifier", from.RequestHeaderModifier)
	case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
		if from.ResponseHeaderModifier == nil {
			return out, missing("responseHeaderModifier")
		}
		out.ResponseHeaders, f = headers(field+".responseHeaderModifier", from.ResponseHeaderModifier)
	case gatewayv1.HTTPRouteFilterRequestRedirect:
		if from.RequestRedirect == nil {
			return out, missing("requestRedirect")
		}
		out.Redirect, f = redirect(field+".requestRedirect", from.RequestRedirect, matches)
	case gatewayv1.HTTPRouteFilterURLRewrite:
		if from.URLRewrite == nil {
			return out, missing("urlRewrite")
		}
		out.Rewrite, f = rewrite(field+".urlRewrite", from.URLRewrite, matches)
	case gatewayv1.HTTPRouteFilterRequestMirror:
		if from.RequestMirror == nil {
			return out, missing("requestMirror")
		}
		out.Mirror, f = mirror(field+".requestMirror", from.RequestMirror)
	case gatewayv1.HTTPRouteFilterCORS:
		if from.CORS == nil {
			return out, missing("cors")
		}
		out.CORS, f = cors(field+".cors", from.CORS)
	case gatewayv1.HTTPRouteFilterExtensionRef:
		// "If a reference to a custom filter type cannot be resolved, the filter MUST NOT be skipped.
		// Instead, requests that would have been processed by that filter MUST receive a HTTP error response."
		if from.ExtensionRef == nil {
			return out, missing("extensionRef")
		}
		out.Broken = fmt.Sprintf("%s %q is not a kind of filter that is known; take it out", from.ExtensionRef.Kind, from.ExtensionRef.Group)
	default:
		f = unsupported(field+".type", "%q is not a filter that is supported; take it out", from.Type)
	}
	return out, f
}

// reserved returns why a header, in lower case, is the proxy's own affair; "" when it is not.
// Who could set how long a message is could make one request two; who could set where a
// request is from could speak for others.
func reserved(name string) string {
	switch {
	case slices.Contains([]string{"connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}, name):
		return "is about a connection, or the length of a message"
	case name == "forwarded" || strings.HasPrefix(name, "x-forwarded-"):
		return "says where a request is from, which backends believe the proxy"
	}
	return ""
}

func headers(field string, from *gatewayv1.HTTPHeaderFilter) (*route.Headers, *fault) {
	out, seen := &route.Headers{}, map[string]bool{}
	name := func(field, text string) (string, *fault) {
		lower := strings.ToLower(text)
		switch {
		case !isToken(text):
			return "", unsupported(field, "%q is not the name of a header; write one such as x-version", text)
		case lower == "host":
			return "", unsupported(field, "%s is not a header that a filter may change; take it out, and use URLRewrite", text)
		case reserved(lower) != "":
			return "", unsupported(field, "%s is not a header that a filter may change: it %s; take it out", text, reserved(lower))
		case seen[lower]:
			return "", unsupported(field, "%s is there twice: a filter does one thing with a header; take one out", text)
		}
		seen[lower] = true
		return lower, nil
	}
	for _, list := range []struct {
		name string
		from []gatewayv1.HTTPHeader
		to   *[]route.Header
	}{{"set", from.Set, &out.Set}, {"add", from.Add, &out.Add}} {
		for i, h := range list.from {
			at := fmt.Sprintf("%s.%s[%d]", field, list.name, i)
			lower, f := name(at+".name", string(h.Name))
			if f != nil {
				return nil, f
			}
			if !isValue(h.Value) {
				return nil, unsupported(at+".value", "%q is not the value of a header; write one without line ends, and without spaces around it", h.Value)
			}
			*list.to = append(*list.to, route.Header{Name: lower, Value: h.Value})
		}
	}
	for i, text := range from.Remove {
		lower, f := name(fmt.Sprintf("%s.remove[%d]", field, i), text)
		if f != nil {
			return nil, f
		}
		out.Remove = append(out.Remove, lower)
	}
	return out, nil
}

func redirect(field string, from *gatewayv1.HTTPRequestRedirectFilter, matches []route.Match) (out *route.Redirect, f *fault) {
	out = &route.Redirect{Scheme: valueOr(from.Scheme, ""), Status: valueOr(from.StatusCode, 302)}
	if from.Scheme != nil && out.Scheme != "http" && out.Scheme != "https" {
		return nil, unsupported(field+".scheme", "%q is not known; write http or https", out.Scheme)
	}
	if !slices.Contains([]int{301, 302, 303, 307, 308}, out.Status) {
		return nil, unsupported(field+".statusCode", "%d does not redirect; write 301, 302, 303, 307 or 308", out.Status)
	}
	if p := from.Port; p != nil {
		if *p < 1 || *p > 65535 {
			return nil, unsupported(field+".port", "%d is not a port; write one from 1 to 65535", *p)
		}
		out.Port = uint16(*p)
	}
	if out.Hostname, f = hostname(field+".hostname", from.Hostname); f != nil {
		return nil, f
	}
	out.Path, f = pathChange(field+".path", from.Path, matches)
	return out, f
}

func rewrite(field string, from *gatewayv1.HTTPURLRewriteFilter, matches []route.Match) (out *route.Rewrite, f *fault) {
	out = &route.Rewrite{}
	if out.Hostname, f = hostname(field+".hostname", from.Hostname); f != nil {
		return nil, f
	}
	out.Path, f = pathChange(field+".path", from.Path, matches)
	return out, f
}

func hostname(field string, from *gatewayv1.PreciseHostname) (string, *fault) {
	text := string(valueOr(from, ""))
	if from != nil && (len(text) > 253 || !hostnamePattern.MatchString(text)) {
		return "", unsupported(field, "%q is not a host name; write one such as shop.example.com", text)
	}
	return text, nil
}

func pathChange(field string, from *gatewayv1.HTTPPathModifier, matches []route.Match) (*route.PathChange, *fault) {
	if from == nil {
		return nil, nil
	}
	out, name, given := &route.PathChange{}, "replaceFullPath", from.ReplaceFullPath
	switch from.Type {
	case gatewayv1.FullPathHTTPPathModifier:
	case gatewayv1.PrefixMatchHTTPPathModifier:
		out.Prefix, name, given = true, "replacePrefixMatch", from.ReplacePrefixMatch
		if len(matches) > 1 || len(matches) == 1 && matches[0].Path.Type != route.PathPrefix {
			return nil, unsupported(field+".type", "ReplacePrefixMatch needs the rule to have one match, of type PathPrefix; split the rule")
		}
	default:
		return nil, unsupported(field+".type", "%q is not known; write ReplaceFullPath or ReplacePrefixMatch", from.Type)
	}
	if given == nil {
		return nil, unsupported(field+"."+name, "is missing, which type %s needs; write it", from.Type)
	}
	if *given == "" {
		return out, nil // the root
	}
	normal, ok := uri.NormalPath(*given)
	if !ok || normal == "*" {
		return nil, unsupported(field+"."+name, "%q is not a path; write one such as /shop", *given)
	}
	out.Value = normal
	return out, nil
}

func mirror(field string, from *gatewayv1.HTTPRequestMirrorFilter) (*route.Mirror, *fault) {
	out := &route.Mirror{Numerator: 1, Denominator: 1}
	switch {
	case from.Percent != nil && from.Fraction != nil:
		return nil, unsupported(field+".percent", "and fraction say the same; write one of them")
	case from.Percent != nil:
		if *from.Percent < 0 || *from.Percent > 100 {
			return nil, unsupported(field+".percent", "%d is not a percentage; write one from 0 to 100", *from.Percent)
		}
		out.Numerator, out.Denominator = uint32(*from.Percent), 100
	case from.Fraction != nil:
		of := valueOr(from.Fraction.Denominator, 100)
		if of < 1 || from.Fraction.Numerator < 0 || from.Fraction.Numerator > of {
			return nil, unsupported(field+".fraction", "%d of %d is not a part; write a numerator from 0 to the denominator", from.Fraction.Numerator, of)
		}
		out.Numerator, out.Denominator = uint32(from.Fraction.Numerator), uint32(of)
	}
	return out, nil
}

// cors takes the wildcard alone, or none, in each list; the API's default age is 5 seconds.
func cors(field string, from *gatewayv1.HTTPCORSFilter) (*route.CORS, *fault) {
	out := &route.CORS{Credentials: valueOr(from.AllowCredentials, false), MaxAge: cmp.Or(int(from.MaxAge), 5)}
	if out.MaxAge < 0 {
		return nil, unsupported(field+".maxAge", "%d is not a time in seconds; write one such as 60", from.MaxAge)
	}
	for i, o := range from.AllowOrigins {
		text := strings.ToLower(string(o))
		if text != "*" && !originPattern.MatchString(text) {
			return nil, unsupported(fmt.Sprintf("%s.allowOrigins[%d]", field, i), "%q is not an origin; write one such as https://shop.example.com or https://*.example.com", o)
		}
		out.Origins = append(out.Origins, text)
	}
	for _, m := range from.AllowMethods {
		out.Methods = append(out.Methods, string(m))
	}
	for _, list := range []struct {
		name string
		from []gatewayv1.HTTPHeaderName
		to   *[]string
	}{{"allowHeaders", from.AllowHeaders, &out.Headers}, {"exposeHeaders", from.ExposeHeaders, &out.Expose}} {
		for _, h := range list.from {
			*list.to = append(*list.to, string(h))
		}
	}
	for _, list := range []struct {
		name   string
		values []string
	}{{"allowOrigins", out.Origins}, {"allowMethods", out.Methods}, {"allowHeaders", out.Headers}, {"exposeHeaders", out.Expose}} {
		if len(list.values) > 64 || len(list.values) > 1 && slices.Contains(list.values, "*") {
			return nil, unsupported(field+"."+list.name, "has * beside others, or more than 64; write * alone, or at most 64 others")
		}
		for i, v := range list.values {
			if list.name != "allowOrigins" && !isToken(v) {
				return nil, unsupported(fmt.Sprintf("%s.%s[%d]", field, list.name, i), "%q is not a name; write one such as GET or x-version", v)
			}
		}
	}
	return out, nil
}
