package waypoints

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestReplicasSpread: on nodes that are in no zone, too, replicas are told to keep apart. A scheduler passes over all
// soft constraints of a pod on a node that lacks the label of one of them, but weighs each term of an affinity alone.
func TestReplicasSpread(t *testing.T) {
	program, g := testProgram(), testGateway()
	s, fault := read(g)
	if fault != nil {
		t.Fatal(fault.message)
	}
	pod := (&waypoint{Program: &program, gateway: g, settings: &s}).pod()
	counts := func(key string, labels ...string) bool {
		constraints := pod.TopologySpreadConstraints
		if !slices.ContainsFunc(constraints, func(c corev1.TopologySpreadConstraint) bool { return !slices.Contains(labels, c.TopologyKey) }) &&
			slices.ContainsFunc(constraints, func(c corev1.TopologySpreadConstraint) bool { return c.TopologyKey == key }) {
			return true
		}
		return pod.Affinity != nil && slices.ContainsFunc(pod.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution,
			func(t corev1.WeightedPodAffinityTerm) bool {
				return t.PodAffinityTerm.TopologyKey == key && slices.Contains(labels, key)
			})
	}
	if !counts(corev1.LabelHostname, corev1.LabelHostname) {
		t.Error("on nodes without a zone all replicas may come to one node")
	}
	for _, key := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
		if !counts(key, corev1.LabelHostname, corev1.LabelTopologyZone) {
			t.Errorf("on nodes with a zone replicas are not spread by %s", key)
		}
	}
}
