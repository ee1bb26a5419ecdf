package gated

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
)

// Connected is what those agents say that are connected, in the order of their reports. What
// came on an earlier stream than the present one may be another agent's, and is not said now.
func Connected(reports []trustfeed.Report) (all []*meshpb.NodeGates) {
	for _, r := range reports {
		if r.Connected && r.Report != nil && !r.Received.Before(r.Since) {
			all = append(all, &meshpb.NodeGates{Node: r.Node, ReportedNs: meshpb.Nanos(r.Received), Gated: r.Report.GetGated()})
		}
	}
	return all
}

// Reply answers another replica with what agents say to this one.
func Reply(req *meshpb.GatesRequest, nodes []*meshpb.NodeGates) (*meshpb.GatesResponse, error) {
	named := &meshpb.GatesResponse{} // without when it came: certificates are reported with it, often
	for _, n := range nodes {
		named.Nodes = append(named.Nodes, &meshpb.NodeGates{Node: n.GetNode(), Gated: n.GetGated()})
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(named)
	if err != nil {
		return nil, fmt.Errorf("encode gates: %w", err)
	}
	sum := sha256.Sum256(body)
	if string(sum[:]) == string(req.GetDigest()) {
		nodes = nil
	}
	return &meshpb.GatesResponse{Digest: sum[:], Nodes: nodes}, nil
}
