// Package sniff says whether a connection is HTTP: by what is said of the port that it is to, or
// by its first bytes; and by which version of HTTP workloads are spoken to. It is pure.
package sniff

import (
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/spoken"
)

// Spoken and Version are described in package spoken.
type (
	Spoken  = spoken.Spoken
	Version = spoken.Version
)

// The kinds of ports, and the versions.
const (
	Unsaid  = spoken.Unsaid
	HTTP    = spoken.HTTP
	Opaque  = spoken.Opaque
	AsAsked = spoken.AsAsked
	One     = spoken.One
	Two     = spoken.Two
)

// Of is what a service says of one of its ports; nothing of those that it does not have.
func Of(s *mesh.Service, port uint16) (Spoken, Version) {
	if s == nil {
		return Unsaid, AsAsked
	}
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Port == port {
			return spoken.Port(p.Name, p.AppProtocol)
		}
	}
	return Unsaid, AsAsked
}

// preface is how HTTP/2 begins with prior knowledge (RFC 9113 section 3.4); what begins so is no
// request of HTTP/1.1.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// longestMethod is what is looked at: http1 refuses methods longer than that.
const longestMethod = 32

// Preface says whether b is the beginning of HTTP/2, or of what may become it.
func Preface(b []byte) bool {
	n := min(len(b), len(preface))
	return string(b[:n]) == preface[:n]
}

// Request says whether what begins with b is a request of HTTP/1.1, and whether that is
// sure already: a method in capitals, a space, and the beginning of a target. What is
// HTTP in other ways is for a Line to find.
func Request(b []byte) (is, sure bool) {
	if len(b) > 0 && Preface(b) {
		return false, len(b) >= len(preface)
	}
	for i, c := range b {
		switch {
		case 'A' <= c && c <= 'Z' || c == '-' && i > 0:
			if i >= longestMethod {
				return false, true
			}
		case c == ' ' && i > 2:
			if i+1 == len(b) {
				return false, false
			}
			t := b[i+1]
			return t == '/' || t == '*' || t == '[' || 'a' <= t && t <= 'z' || '0' <= t && t <= '9', true
		default:
			return false, true
		}
	}
	return false, false
}
