package product

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

// testAttack runs the adversarial suite on a node, against a pod that is enrolled:
// what a pod with NET_ADMIN and NET_RAW can try, and the wire. Everything must be shown
// to be held, by the kernel's counters and a tap behind the gate.
func (w *world) testAttack(t *testing.T) {
	w.apply(t, podYAML("bystander", "n2", "", "wait")) // a client on the attacked pod's node
	w.waitReady(t, "bystander")
	w.enrolled(t, "n2", "shop/bystander")
	peer := w.pod(t, "client").Status.PodIP
	out, err := w.node(t, "n2").Exec(t.Context(), onNode, "prove", "--attack", "shop/server", "--port", "7000", "--peer", peer, "-o", "json", "--socket", agent)
	var said struct {
		Held    bool
		Attacks []tried
	}
	if e := json.Unmarshal([]byte(out), &said); e != nil {
		t.Fatalf("%v\n%s", errors.Join(err, e), out)
	}
	for _, a := range said.Attacks {
		t.Logf("%s, %s: %d through, control %v, %v", a.Name, a.Direction, a.Through, a.Control, a.Reasons)
	}
	if err != nil || !said.Held {
		t.Errorf("not all attacks were shown to be held: %v\n%s", err, out)
	}
	for direction, names := range map[string][]string{
		"outbound": {"agent's mark", "plaintext to 15008", "forged source", "raw ACK", "bare ACK", "bare RST", "passthru tuple", "IP options", "fragments", "UDP", "ping", "other protocol",
			"bound to the link", "bound, to 15008", "IPPROTO_RAW, TCP", "IPPROTO_RAW, UDP", "raw TCP socket", "UDP to 15008", "IPv4 in IP", "IPv6 in IP"},
		"inbound": {"plaintext", "raw ACK", "passthru tuple", "forged source", "IP options", "fragments", "UDP", "UDP to 15008", "IPv4 in IP", "IPv6 in IP"},
	} {
		for _, name := range names {
			if !slices.ContainsFunc(said.Attacks, func(a tried) bool { return a.Name == name && a.Direction == direction }) {
				t.Errorf("%s, %s: was not tried", name, direction)
			}
		}
	}
	w.notBroken(t, "holder")
	w.kubectl(t, "-n", "shop", "delete", "pod", "bystander", "--now")
}

// tried is what the command line says of one attack.
type tried struct {
	Name, Direction string
	Through         int
	Control         bool
	Reasons         []struct {
		Reason        string
		Before, After uint64
	}
}
