// Package route says what is to be done with an HTTP or gRPC request to a service:
// the rules of HTTPRoutes and GRPCRoutes of the Gateway API v1.6, compiled to a Table
// once, and matched without allocation; and with a connection, where TLSRoutes and TCPRoutes are about it.
//
// It is pure: it reads no object, opens no connection, knows no clock. What it is
// given are Routes, which package internal/kube/routes makes of Kubernetes objects;
// what it returns is a Decision, which the waypoint carries out. Whose turn it is
// among the backends of a rule is kept in Splits, beside the Table.
//
// A Table and all that is reachable from it is immutable, and safe for concurrent
// use; so are Routes once a Table was made of them. Splits are safe for concurrent use.
//
// # What is matched is what is forwarded
//
// A path is brought into one form (uri.NormalPath), that form is matched, and that form
// is what goes to the backend. Escapes and dot segments are no way around a rule. What
// backends read in different ways is another path here, and stays as it is: "//" and "/",
// %2F and "/", ";" and %3B, "+" and %2B, and the segment with ";x" and without. A backend
// that takes the two for the same has to be given rules for both. Query and headers are
// forwarded as they came; how they are compared is said at ValueMatch.
//
// # Bounds
//
// Regular expressions are RE2's, so that their time is linear in what they are
// matched with; package pattern bounds each, Room those of one Route, before any is
// compiled. All that one request is compared with may cost MaxWork steps: names of headers
// and parameters are looked up once, expressions that a literal text excludes cost next to
// nothing. A request that would cost more is refused (TooCostly), never let through.
package route
