package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// maxPeersShown bounds the peers that the text form lists for each pod.
const maxPeersShown = 6

// proofJSON is one pod's proof as -o json prints it.
type proofJSON struct {
	Node            string        `json:"node"`
	Workload        string        `json:"workload"`
	Error           string        `json:"error,omitempty"`
	Counters        []counterJSON `json:"counters"`
	Peers           []peerJSON    `json:"peers"`
	DropsUnreported uint64        `json:"dropsUnreported"`
}

type counterJSON struct {
	Class     string `json:"class"`
	Direction string `json:"direction"`
	Reason    string `json:"reason,omitempty"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

type peerJSON struct {
	counterJSON
	Address  string `json:"address"`
	Port     uint32 `json:"port,omitempty"`
	Protocol uint32 `json:"protocol,omitempty"`
}

func (a *app) prove() *cobra.Command {
	var attacked string
	var port uint16
	cmd := &cobra.Command{
		Use: "prove [POD]", Args: cobra.MaximumNArgs(1), Short: "Show from the kernel's counters what left and entered each pod",
		Long: `Read, from the kernel, what the gate of each pod counted since enrolment: bytes in
mutual TLS, plaintext that policy allowed and with whom, what was dropped and why.

With --attack POD, try the ways around the gate that a pod with NET_ADMIN and
NET_RAW has, and from the wire; a tap behind the gate and the kernel's counters
say what became of each. It needs a local mesh and root, and sends packets to
addresses of that mesh only. Exit status 1 if anything got through, or if it was
not shown that nothing did.`,
		Example: `  heddle prove
  heddle prove shop/web
  heddle prove --attack shop/web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if attacked != "" {
				if len(args) > 0 {
					return fmt.Errorf("%w: --attack names the pod: %s is one too many", errUsage, args[0])
				}
				return a.attack(cmd.Context(), attacked, port)
			}
			pod := ""
			if len(args) > 0 {
				pod = args[0]
			}
			return a.showProof(cmd.Context(), pod)
		},
	}
	cmd.Flags().StringVar(&attacked, "attack", "", "try to get around the gate of this pod, NAMESPACE/NAME")
	cmd.Flags().Uint16Var(&port, "port", 80, "with --attack: the application's port, STRICT")
	return cmd
}

func (a *app) showProof(ctx context.Context, pod string) error {
	var all []proofJSON
	err := a.eachAgent(ctx, func(t target, c *admin.Client) error {
		response, err := c.Admin.Prove(ctx, &meshpb.ProveRequest{Workload: pod})
		if err != nil {
			if pod != "" && a.socket == "" && isNotFound(err) {
				return nil // another node's, maybe
			}
			return err
		}
		for _, p := range response.GetPods() {
			all = append(all, proofOf(response.GetNode(), p))
		}
		return nil
	})
	if len(all) == 0 && err != nil {
		return err
	}
	if pod != "" && len(all) == 0 {
		return fmt.Errorf("no pod %s is enrolled: `heddle check` lists those that are", pod)
	}
	// An agent that does not answer hides the pods of its node only.
	if a.output == "json" {
		err = errors.Join(a.document(all), err)
	} else {
		err = errors.Join(a.printProof(all), err)
	}
	if err == nil && slices.ContainsFunc(all, func(p proofJSON) bool { return p.Error != "" }) {
		err = errNotWell
	}
	return err
}

func proofOf(node string, p *meshpb.PodProof) proofJSON {
	proof := proofJSON{Node: node, Workload: p.GetWorkload(), Error: p.GetError(), DropsUnreported: p.GetDropsUnreported(),
		Counters: []counterJSON{}, Peers: []peerJSON{}}
	for _, c := range p.GetCounters() {
		proof.Counters = append(proof.Counters, counterJSON{c.GetClass(), c.GetDirection(), c.GetReason(), c.GetPackets(), c.GetBytes()})
	}
	for _, peer := range p.GetPeers() {
		proof.Peers = append(proof.Peers, peerJSON{
			counterJSON{peer.GetClass(), peer.GetDirection(), peer.GetReason(), peer.GetPackets(), peer.GetBytes()},
			peer.GetAddress(), peer.GetPort(), peer.GetProtocol(),
		})
	}
	slices.SortFunc(proof.Peers, func(x, y peerJSON) int {
		if x.Packets != y.Packets {
			return int(min(max(int64(y.Packets)-int64(x.Packets), -1), 1))
		}
		return strings.Compare(x.Address, y.Address)
	})
	return proof
}

// sum adds the counters of some classes.
func (p *proofJSON) sum(direction string, classes ...string) (packets, bytes uint64) {
	for _, c := range p.Counters {
		if slices.Contains(classes, c.Class) && (direction == "" || direction == c.Direction) {
			packets, bytes = packets+c.Packets, bytes+c.Bytes
		}
	}
	return packets, bytes
}

// plaintextClasses are what policy or configuration let by outside the tunnel.
// Control is neighbour discovery and the like.
func plaintextClasses() []string {
	return []string{"egress", "permissive", "probe", "grandfathered", "datagram"}
}

func (a *app) printProof(all []proofJSON) error {
	t := show.NewTable(a.out, a.color, "POD", "NODE", "TLS OUT", "TLS IN", "PLAIN OUT", "PLAIN IN", "CONTROL", "DROPPED", "STATE")
	size := func(p *proofJSON, direction string, classes ...string) show.Cell {
		packets, bytes := p.sum(direction, classes...)
		switch {
		case packets == 0:
			return show.In("0", show.Dim)
		case classes[0] == "egress":
			return show.In(show.Bytes(bytes), show.Yellow)
		default:
			return show.Text(show.Bytes(bytes))
		}
	}
	for i := range all {
		p := &all[i]
		state, dropped := show.In("gate in place", show.Green), show.In("0", show.Dim)
		if p.Error != "" {
			state = show.In("fail: "+p.Error, show.Red)
		}
		if packets, _ := p.sum("", "dropped"); packets > 0 {
			dropped = show.In(show.Packets(packets), show.Red)
		}
		t.Add(show.Text(p.Workload), show.Text(p.Node), size(p, "outbound", "tunnel"), size(p, "inbound", "tunnel"),
			size(p, "outbound", plaintextClasses()...), size(p, "inbound", plaintextClasses()...),
			size(p, "", "control"), dropped, state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range all {
		if err := a.printPeers(&all[i]); err != nil {
			return err
		}
	}
	return nil
}

// printPeers lists whom plaintext was exchanged with, and what was dropped.
func (a *app) printPeers(p *proofJSON) error {
	var lines []string
	for _, c := range p.Counters {
		if c.Class == "dropped" && c.Packets > 0 {
			lines = append(lines, fmt.Sprintf("%s %s %s%s", show.Painted("dropped", show.Red, a.color), show.Packets(c.Packets), c.Direction+", "+c.Reason, p.who(c)))
		}
	}
	for _, c := range p.Counters {
		if slices.Contains(plaintextClasses(), c.Class) && c.Packets > 0 {
			lines = append(lines, fmt.Sprintf("%s %s %s, %s%s", show.Painted("plaintext", show.Yellow, a.color), show.Bytes(c.Bytes), c.Direction, c.Class, p.who(c)))
		}
	}
	if p.DropsUnreported > 0 {
		lines = append(lines, fmt.Sprintf("%d drops made no flow record: there were too many at once", p.DropsUnreported))
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(a.out, "\n%s\n  %s\n", show.Painted(p.Workload, show.Bold, a.color), strings.Join(lines, "\n  "))
	return err
}

// who lists the peers of a counter, busiest first.
func (p *proofJSON) who(c counterJSON) string {
	var names []string
	for _, peer := range p.Peers {
		if peer.Class != c.Class || peer.Direction != c.Direction || peer.Reason != c.Reason {
			continue
		}
		name := peer.String()
		if slices.Contains(names, name) {
			continue // the agent's tests, one for each of its starts
		}
		if len(names) == maxPeersShown {
			names = append(names, "...")
			break
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	preposition := ": to "
	if c.Direction == "inbound" {
		preposition = ": from "
	}
	return preposition + strings.Join(names, ", ")
}

// String names a peer, with the port as the one whose it is: bpf.Peer and
// bpf.DropPeer say which one the kernel notes. The agent proves at enrolment that
// the gate sees packets, by some that it must drop, to and from these two (RFC
// 5737, RFC 6666).
func (p *peerJSON) String() string {
	if p.Address == "192.0.2.254" || p.Address == "100::fe" {
		return "the agent's own test at enrolment"
	}
	addr, err := netip.ParseAddr(p.Address)
	if err != nil || p.Port == 0 {
		return p.Address
	}
	inbound := p.Direction == "inbound"
	switch {
	case p.Class == "grandfathered": // of either end
		return fmt.Sprintf("%s (port %d)", addr, p.Port)
	case inbound && slices.Contains([]string{"dropped", "permissive", "probe"}, p.Class):
		return fmt.Sprintf("%s to port %d", addr, p.Port)
	case !inbound && slices.Contains([]string{"permissive", "probe"}, p.Class):
		return fmt.Sprintf("%s from port %d", addr, p.Port)
	}
	return netip.AddrPortFrom(addr, uint16(p.Port)).String()
}
