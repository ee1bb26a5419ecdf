// Package routes compiles HTTPRoutes, GRPCRoutes, TLSRoutes and TCPRoutes of the Gateway API v1.6 that have
// Services for parents (GEP-1426) into the routes of package internal/mesh/route, and
// says in status conditions what is in force and what is not, as the API has it.
//
// It is pure: it watches nothing, writes no status, and has no clock. Routes of
// Gateways are not its business; parents that are no Services get no status from it.
// Its functions may be called from any goroutine; objects must not be changed while
// someone uses what was compiled from them.
//
// What cannot be served is refused in the status, with field and remedy, and what was
// good before goes on: see Compile.
package routes
