package uri

import (
	"strconv"
	"strings"
)

// OriginMatches reports whether an origin in lower case is one that a pattern is for: scheme and port, given or the
// scheme's own, are the same, and so are the hosts, where a "*" in the pattern's stands for any characters.
func OriginMatches(pattern, origin string) bool {
	scheme, host, port := splitOrigin(pattern)
	haveScheme, haveHost, havePort := splitOrigin(origin)
	if scheme != haveScheme || port != havePort || strings.ContainsAny(haveHost, "*/@?#") || haveHost == "" {
		return false
	}
	before, after, wild := strings.Cut(host, "*")
	if !wild {
		return host == haveHost
	}
	return len(haveHost) >= len(before)+len(after) && strings.HasPrefix(haveHost, before) && strings.HasSuffix(haveHost, after)
}

func splitOrigin(origin string) (scheme, host, port string) {
	scheme, rest, ok := strings.Cut(origin, "://")
	if !ok {
		return "", "", ""
	}
	if host = Host(rest); len(host) < len(rest) {
		port = strings.TrimPrefix(strings.TrimPrefix(rest[len(host):], "."), ":")
	}
	if port == "" {
		port = strconv.Itoa(int(SchemePort(scheme)))
	}
	return scheme, host, port
}

// SchemePort returns the port that a scheme has when none is given: 80 of "http", 443 of "https", else 0.
func SchemePort(scheme string) uint16 {
	switch scheme {
	case "http":
		return 80
	case "https":
		return 443
	}
	return 0
}
