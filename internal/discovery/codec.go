package discovery

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// encoded is a message in its encoded form, in parts that others may send, too.
type encoded [][]byte

// codec is gRPC's for protobuf, which also takes what is encoded.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	parts, ok := v.(encoded)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	buffers := make(mem.BufferSlice, len(parts))
	for i, part := range parts {
		buffers[i] = mem.SliceBuffer(part) // nobody's to reuse
	}
	return buffers, nil
}
