package scale

import (
	"context"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Numbers of fields, of envoy/service/discovery/v3/discovery.proto.
const (
	responseResources, responseTypeURL, responseNonce, responseRemoved = 2, 4, 5, 6
	resourceVersion, resourceName                                      = 1, 3
)

// response is what a counting node looks at of a DeltaDiscoveryResponse.
type response struct {
	size, resources int
	url, nonce      string
	versions        map[string]string // nil unless they are wanted
	version         string            // of the last resource
}

// countingCodec takes requests as protobuf does and responses without decoding
// their resources.
type countingCodec struct{ record bool }

// Name implements encoding.Codec.
func (countingCodec) Name() string { return "proto" }

// Marshal implements encoding.Codec.
func (countingCodec) Marshal(v any) ([]byte, error) { return proto.Marshal(v.(proto.Message)) }

// Unmarshal implements encoding.Codec.
func (c countingCodec) Unmarshal(data []byte, v any) error {
	r := v.(*response)
	*r = response{size: len(data)}
	if c.record {
		r.versions = map[string]string{}
	}
	return fields(data, func(number protowire.Number, value []byte) error {
		switch number {
		case responseResources:
			r.resources++
			return r.resource(value, c.record)
		case responseRemoved:
			r.resources++
		case responseTypeURL:
			r.url = string(value)
		case responseNonce:
			r.nonce = string(value)
		}
		return nil
	})
}

func (r *response) resource(data []byte, record bool) error {
	var name string
	err := fields(data, func(number protowire.Number, value []byte) error {
		switch number {
		case resourceVersion:
			r.version = string(value)
		case resourceName:
			if record {
				name = string(value)
			}
		}
		return nil
	})
	if record {
		r.versions[name] = r.version
	}
	return err
}

// fields shows the length-delimited fields of a message.
func fields(data []byte, show func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(data)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if err := show(number, value); err != nil {
				return err
			}
			data = data[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
	}
	return nil
}

const (
	typePrefix = "type.googleapis.com/heddle.mesh.v1alpha1."
	commitURL  = typePrefix + "Commit"
)

// kinds, in the order in which an agent subscribes.
var kinds = [...]string{"Settings", "Service", "Workload", "Policy", "Commit"}

// holdings are versions by name by kind: what a node says it has.
type holdings map[string]map[string]string

// round is what came until a Commit.
type round struct {
	bytes, resources, largest, messages int
	commit                              string // version of the commit; "" when what is held is the newest
}

// node is a counting node.
type node struct {
	name   string
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	codec  countingCodec
	cancel context.CancelFunc
	held   holdings // recorded, when the codec records
	commit string   // version of the one applied last
}

// connect subscribes with what is held, which may be nil.
func connect(socket, name string, held holdings, record bool) (*node, error) {
	n := &node{name: name, codec: countingCodec{record}, held: holdings{}}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10), grpc.WithDefaultCallOptions(grpc.ForceCodec(n.codec), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	n.conn = conn
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), nodeHeader, name))
	n.cancel = cancel
	n.stream, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName)
	if err != nil {
		return nil, n.close(err)
	}
	for _, kind := range kinds {
		req := &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: name}, TypeUrl: typePrefix + kind, ResourceNamesSubscribe: []string{"*"}}
		// As the agent's client does: what is held of one kind in several messages.
		for name, version := range held[kind] {
			if req.InitialResourceVersions == nil {
				req.InitialResourceVersions = map[string]string{}
			}
			if req.InitialResourceVersions[name] = version; len(req.InitialResourceVersions) == 5000 {
				if err := n.stream.SendMsg(req); err != nil {
					return nil, n.close(err)
				}
				req.InitialResourceVersions = nil
			}
		}
		if err := n.stream.SendMsg(req); err != nil {
			return nil, n.close(err)
		}
	}
	return n, nil
}

// next takes one round and acknowledges it.
func (n *node) next() (round, error) {
	var all round
	for {
		var r response
		if err := n.stream.RecvMsg(&r); err != nil {
			return all, fmt.Errorf("%s: %w", n.name, err)
		}
		all.bytes, all.largest, all.messages = all.bytes+r.size, max(all.largest, r.size), all.messages+1
		if n.codec.record && len(r.versions) > 0 {
			kind := r.url[len(typePrefix):]
			if n.held[kind] == nil {
				n.held[kind] = map[string]string{}
			}
			for name, version := range r.versions {
				n.held[kind][name] = version
			}
		}
		if err := n.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.url, ResponseNonce: r.nonce}); err != nil {
			return all, fmt.Errorf("%s: %w", n.name, err)
		}
		if r.url == commitURL {
			all.commit = r.version
			return all, nil
		}
		all.resources += r.resources
	}
}

// close ends the node's connection, and returns why.
func (n *node) close(why error) error {
	n.cancel()
	if err := n.conn.Close(); err != nil && why == nil {
		return err
	}
	return why
}
