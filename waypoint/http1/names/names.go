// Package names knows the names of fields: which of them a proxy acts upon, which no client and no
// connection may take away or add behind a body, and what is made one name of with them. It reads no values.
package names

import (
	"slices"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
)

// Kind is which field a line is, as far as we must know.
type Kind uint8

const (
	Other Kind = iota
	WebSocketKey
	WebSocketAccept
	Trailer
	// What follows is never copied: it is about one connection, or we write it anew.
	FirstOwned
	Host Kind = iota - 1
	ContentLength
	TransferEncoding
	Connection
	KeepAlive
	ProxyConnection
	TE
	Upgrade
	HTTP2Settings
	Expect
	HeddleReason
)

// Of finds out which field a name is. Aliased says that it would be one that we
// act upon if its odd bytes were "-": CGI, and what came after it, cannot tell those apart.
func Of(name []byte) (k Kind, aliased bool) {
	var known string
	switch len(name) {
	case 2:
		k, known = TE, "te"
	case 4:
		k, known = Host, "host"
	case 6:
		k, known = Expect, "expect"
	case 7:
		if grammar.Lower(name[0]) == 'u' {
			k, known = Upgrade, "upgrade"
		} else {
			k, known = Trailer, "trailer"
		}
	case 10:
		if grammar.Lower(name[0]) == 'c' {
			k, known = Connection, "connection"
		} else {
			k, known = KeepAlive, "keep-alive"
		}
	case 14:
		if grammar.Lower(name[0]) == 'c' {
			k, known = ContentLength, "content-length"
		} else {
			k, known = HTTP2Settings, "http2-settings"
		}
	case 15:
		k, known = HeddleReason, "x-heddle-reason"
	case 16:
		k, known = ProxyConnection, "proxy-connection"
	case 17:
		if grammar.Lower(name[0]) == 't' {
			k, known = TransferEncoding, "transfer-encoding"
		} else {
			k, known = WebSocketKey, "sec-websocket-key"
		}
	case 20:
		k, known = WebSocketAccept, "sec-websocket-accept"
	default:
		return Other, false
	}
	for i, c := range name {
		if known[i] == '-' && grammar.IsOdd(c) {
			aliased = true
		} else if grammar.Lower(c) != known[i] {
			return Other, false
		}
	}
	return k, aliased
}

// IsProtected says whether a field is for all recipients, or says who the client is,
// so that no connection may take it away by naming it in its Connection field.
func IsProtected(name []byte) bool {
	if k, _ := Of(name); k == Host || k == ContentLength || k == TransferEncoding || k == Expect {
		return true
	}
	if grammar.HasFoldPrefix(name, "content-") || grammar.HasFoldPrefix(name, "x-forwarded-") || grammar.HasFoldPrefix(name, "sec-") {
		return true
	}
	for _, known := range [...]string{"authorization", "cookie", "set-cookie", "forwarded", "x-real-ip", "cache-control", "origin", "traceparent", "baggage", "via", "date"} {
		if grammar.FoldEqual(name, known) {
			return true
		}
	}
	return false
}

// IsAlias says whether a name that is not known would be protected if its odd bytes were "-":
// whoever strips what says who the client is, strips it under its own name only.
func IsAlias(name []byte) bool {
	if !slices.ContainsFunc(name, grammar.IsOdd) {
		return false
	}
	var few [64]byte // most names
	return IsProtected(grammar.Dashed(few[:0], name))
}

// MayTrail says whether a field may come after a body: not what is about framing, routing,
// authentication or the content, modifies a request or controls a response (RFC 9110 section
// 6.5.1), and no alias of it.
func MayTrail(name []byte) bool {
	var few [64]byte
	dashed := grammar.Dashed(few[:0], name)
	if k, _ := Of(dashed); k != Other || IsProtected(dashed) {
		return false
	}
	for _, prefix := range [...]string{"proxy-", "if-", "accept-", "x-original-", "x-rewrite-", "x-http-method", "x-method-"} {
		if grammar.HasFoldPrefix(dashed, prefix) {
			return false
		}
	}
	for _, known := range [...]string{"www-authenticate", "max-forwards", "range", "accept", "pragma", "x-host", "age", "expires", "location", "retry-after", "vary"} {
		if grammar.FoldEqual(dashed, known) {
			return false
		}
	}
	return true
}
