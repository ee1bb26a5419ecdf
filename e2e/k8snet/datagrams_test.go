package main

import (
	"encoding/json"
	"testing"
	"testing/fstest"

	"github.com/heddle-mesh/heddle/internal/kube"
)

// TestDatagramPolicyIsTaken: the policy of -udp is one that the operator takes, and it
// leaves TCP as it was.
func TestDatagramPolicyIsTaken(t *testing.T) {
	policy, err := json.Marshal(datagramPolicy("nettest"))
	if err != nil {
		t.Fatal(err)
	}
	objs, err := kube.LoadFolder(fstest.MapFS{
		"mesh.yaml": {Data: []byte(`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: example.org, clusterRanges: [10.0.0.0/8]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: nettest}}
`)},
		"policy.json": {Data: policy},
	})
	if err != nil {
		t.Fatal(err)
	}
	objs.UDPByIdentity = true
	compiled, err := kube.Compile(objs)
	if err != nil {
		t.Fatal(err)
	}
	if len(compiled.Refused) != 0 || len(compiled.Policies) != 0 {
		t.Errorf("refused %v; policies about TCP %v", compiled.Refused, compiled.Policies)
	}
}

// TestFewerDifferWhereDatagramsPass: what is admitted is on no list.
func TestFewerDifferWhereDatagramsPass(t *testing.T) {
	const local = "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp [NodeConformance] [Conformance]"
	const node = "[sig-network] Networking Granular Checks: Services should function for node-Service: udp"
	for _, c := range []struct {
		name      string
		off, with bool
	}{{local, true, false}, {node, true, true}} {
		if off, with := isListed(byDesign(false), c.name), isListed(byDesign(true), c.name); off != c.off || with != c.with {
			t.Errorf("%s: listed %v without UDP, %v with it, want %v and %v", c.name, off, with, c.off, c.with)
		}
	}
}
