// Package spoken has what a service says of what is spoken at its ports. It is pure.
package spoken

import "strings"

// Spoken is what a port is for, as far as anybody says so.
type Spoken uint8

// The kinds of ports. The zero value leaves it to the first bytes.
const (
	Unsaid Spoken = iota
	HTTP
	Opaque
)

// Version is the one of HTTP that workloads are asked in.
type Version uint8

// The versions. The zero value leaves it to how the client asks.
const (
	AsAsked Version = iota
	One
	Two
)

// Port is what a service says of a port: by its appProtocol, where that says something (Kubernetes,
// "Application protocol"; GEP-1911), else by its name.
func Port(name, appProtocol string) (Spoken, Version) {
	switch p := strings.ToLower(appProtocol); p {
	case "":
	case "kubernetes.io/h2c":
		return HTTP, Two
	case "kubernetes.io/ws": // RFC 6455 is an upgrade of HTTP/1.1
		return HTTP, One
	case "kubernetes.io/wss":
		return Opaque, AsAsked
	default:
		if said, version := word(p); said != Unsaid {
			return said, version
		}
	}
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return word("grpc-web")
	}
	first, _, _ := strings.Cut(name, "-")
	return word(first)
}

// word is what a name says: that of a port up to its first "-", as others have it too (Istio, "Explicit protocol
// selection"), or an appProtocol.
func word(w string) (Spoken, Version) {
	switch w {
	case "http", "grpc-web":
		return HTTP, AsAsked
	case "http2", "h2c", "grpc":
		return HTTP, Two
	case "tcp", "tls", "https", "mongo", "mysql", "postgres", "postgresql", "redis", "amqp", "kafka", "smtp", "ssh":
		return Opaque, AsAsked
	}
	return Unsaid, AsAsked
}
