// Package admin serves a program's admin socket: gRPC over a unix socket that
// only root of the same machine reaches. The file's mode says so, and so does
// the kernel, which is asked who connected (SO_PEERCRED, unix(7)).
//
// Serve is for any program; Server is the agent's services, Flows and Admin,
// over what the agent hands in as an Agent. Nothing here changes anything.
// Servers and clients are safe for concurrent use.
package admin
