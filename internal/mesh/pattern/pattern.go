// Package pattern takes SPIFFE IDs apart, and matches them by patterns. All of it is
// pure.
package pattern

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Pattern is a SPIFFE ID in which "*" stands for one whole path
// segment, and "*" as the last segment for one or more.
type Pattern string

// Exact reports whether the pattern has no wildcard, and so names one identity.
func (p Pattern) Exact() bool { return !strings.Contains(string(p), "*") }

// Validate says what is wrong with the pattern, or nil: it must be a SPIFFE ID
// with a path, in which "*" may stand for whole path segments only.
func (p Pattern) Validate() error {
	scheme := "spiffe://"
	rest, ok := strings.CutPrefix(string(p), scheme)
	if !ok {
		return fmt.Errorf("identity pattern %q: does not begin with %s", string(p), scheme)
	}
	domain, path, ok := strings.Cut(rest, "/")
	if strings.Contains(domain, "*") {
		return fmt.Errorf("identity pattern %q: the trust domain cannot be a wildcard", string(p))
	}
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return fmt.Errorf("identity pattern %q: %w", string(p), err)
	}
	if td.Name() != domain {
		return fmt.Errorf("identity pattern %q: trust domain is not in its plain form %q", string(p), td.Name())
	}
	if !ok {
		return fmt.Errorf("identity pattern %q: has no path, want a path such as /ns/NAMESPACE/sa/NAME", string(p))
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "*" {
			continue
		}
		if strings.Contains(segment, "*") {
			return fmt.Errorf("identity pattern %q: %q is a part of a segment, \"*\" stands for a whole one", string(p), segment)
		}
		if err := spiffeid.ValidatePathSegment(segment); err != nil {
			return fmt.Errorf("identity pattern %q: segment %q: %w", string(p), segment, err)
		}
	}
	return nil
}

// Match reports whether the pattern matches id. The zero ID matches nothing, and
// a pattern that has "*" inside a segment matches nothing. It does not allocate.
func (p Pattern) Match(id spiffeid.ID) bool {
	pattern, name := string(p), id.String()
	if name == "" {
		return false
	}
	for {
		star := strings.IndexByte(pattern, '*')
		if star < 0 {
			return pattern == name
		}
		// What is before the "*" ends in a slash, and so does its match.
		if star == 0 || pattern[star-1] != '/' || !strings.HasPrefix(name, pattern[:star]) {
			return false
		}
		pattern, name = pattern[star+1:], name[star:]
		if pattern == "" {
			return name != "" // the last one: this segment and all that follow
		}
		end := strings.IndexByte(name, '/')
		if end <= 0 || pattern[0] != '/' {
			return false
		}
		name = name[end:]
	}
}

// NameParts takes the path /ns/NAMESPACE/sa/ACCOUNT apart; it returns "" for
// both when the path does not begin like that. ACCOUNT is all that follows.
func NameParts(path string) (namespace, account string) {
	rest, ok := strings.CutPrefix(path, "/ns/")
	if !ok {
		return "", ""
	}
	namespace, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", ""
	}
	account, ok = strings.CutPrefix(rest, "sa/")
	if !ok {
		return "", ""
	}
	return namespace, account
}
