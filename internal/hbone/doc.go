// Package hbone carries TCP connections over HBONE: HTTP/2 CONNECT streams on
// TLS 1.3 with mutual authentication, port 15008, ALPN "h2". It knows
// addresses, TLS and SPIFFE IDs; it knows nothing of workloads, policies or the
// kernel, and imports nothing of this repository but internal/eventloop.
//
// Engine is the narrow interface that every implementation of the protocol
// meets, and this package is what they share: how peers are verified, headers
// read, and errors told apart. Package reference is the first implementation:
// crypto/tls and x/net/http2, plain and slow, the oracle that faster engines are
// tested against, by package enginetest.
//
// Engines are safe for concurrent use. They own every socket they were given
// until they report it closed, and every goroutine they start: Close waits.
package hbone
