package resources

import (
	"fmt"
	"iter"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// responseResources is the number of the field of a DeltaDiscoveryResponse that has
// the resources; see envoy/service/discovery/v3/discovery.proto.
const responseResources = 2

// encodedLeaf has the resources under one leaf as they are sent, by kind, in pieces
// that fit into a message. It is made when first asked for, and serves every node,
// and every Shared that has the same under the leaf.
type encodedLeaf struct {
	once   sync.Once
	pieces [KindCount][][]byte
	err    error
}

func (e *encodedLeaf) encode(list []*Resource) {
	for _, r := range list {
		text, err := proto.MarshalOptions{}.Marshal(&discoveryv3.Resource{Name: r.Name, Version: r.Version,
			Resource: &anypb.Any{TypeUrl: r.Kind.TypeURL(), Value: r.Body}})
		if err != nil {
			e.err = fmt.Errorf("encode %s %s: %w", r.Kind, r.Name, err)
			return
		}
		pieces := &e.pieces[r.Kind]
		if last := len(*pieces) - 1; last < 0 || len((*pieces)[last])+len(text)+16 > MaxPiece {
			*pieces = append(*pieces, nil)
		}
		into := &(*pieces)[len(*pieces)-1]
		*into = protowire.AppendBytes(protowire.AppendTag(*into, responseResources, protowire.BytesType), text)
	}
}

// MaxPiece bounds a piece: it leaves room in a message for what is beside resources.
const MaxPiece = MaxMessage - 4<<10

// Encoded returns all resources of a kind as they are in the bytes of a
// DeltaDiscoveryResponse, in pieces that may be put together: read only. An error is
// its last.
func (c *Shared) Encoded(k Kind) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for leaf, e := range c.encoded {
			if e == nil {
				continue
			}
			e.once.Do(func() { e.encode(c.byLeaf[leaf]) })
			if e.err != nil {
				yield(nil, e.err)
				return
			}
			for _, piece := range e.pieces[k] {
				if !yield(piece, nil) {
					return
				}
			}
		}
	}
}
