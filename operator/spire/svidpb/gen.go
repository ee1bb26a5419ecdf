// Package svidpb is the one call of the SPIRE server's API that the operator makes, as it
// goes over the wire. It is not the rest of that API, whose module is not a dependency.
package svidpb

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative svid.proto"
