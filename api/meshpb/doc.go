// Package meshpb has the protobuf messages and gRPC services of Heddle: the
// resources of discovery, the issuing of SVIDs, flow records and the admin
// socket. It holds generated code only; `go generate ./api/meshpb` writes it.
package meshpb
