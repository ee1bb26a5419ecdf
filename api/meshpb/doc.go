// Package meshpb has the protobuf messages and gRPC services of Heddle: the
// resources of discovery, the issuing of SVIDs, flow records and the admin
// socket. Its code is generated, by `go generate ./api/meshpb`, but for how a time is
// written.
package meshpb
