// Package observed adds to what package explain says of a connection what agents know
// of the way that it takes: the certificates of both ends, and the key exchange of the
// newest tunnel between them. It decides nothing, and opens no connection but to agents.
package observed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// newest bounds the flows that an agent is asked for.
const newest = 200

// known is what one agent knows.
type known struct {
	node         string
	certificates []*meshpb.CertificateStatus
	flows        []*meshpb.Flow
}

// Add asks the agents of the nodes of both ends, and adds what they know. What they do
// not say becomes a note of the answer.
func Add(ctx context.Context, m *reach.Mesh, a *explain.Answer) {
	nodes := nodesOf(a)
	if len(nodes) == 0 {
		return
	}
	targets, err := m.Agents(ctx)
	if err != nil {
		a.Notes = append(a.Notes, fmt.Sprintf("certificates and key exchange are not known: %v", err))
		return
	}
	if m.Socket == "" { // that of a socket may have no name
		targets = slices.DeleteFunc(targets, func(t reach.Target) bool { return !slices.Contains(nodes, t.Node) })
	}
	answers := reach.Ask(ctx, m.Timeout, targets, func(ctx context.Context, c *admin.Client) (known, error) { return ask(ctx, c, a) })
	if err := reach.Errors(answers); err != nil {
		a.Notes = append(a.Notes, fmt.Sprintf("not all is known of certificates and key exchange: %v", err))
	}
	for _, answer := range answers {
		add(a, &answer.Value)
	}
}

// nodesOf are the nodes of ends that prove themselves by certificates to each other.
func nodesOf(a *explain.Answer) (nodes []string) {
	for i := range a.Endpoints {
		if e := &a.Endpoints[i]; e.Path == explain.PathTunnel || e.Path == explain.PathSplice {
			nodes = append(nodes, e.Node)
		}
	}
	if len(nodes) > 0 {
		nodes = append(nodes, a.Source.Node)
	}
	return nodes
}

func ask(ctx context.Context, c *admin.Client, a *explain.Answer) (k known, err error) {
	status, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
	if err != nil {
		return k, err
	}
	k.node, k.certificates = status.GetNode(), status.GetCertificates()
	filter := &meshpb.FlowFilter{Workloads: []string{a.Source.Workload}, Transports: []string{"tunnel"}}
	live, err := c.Admin.Connections(ctx, &meshpb.ConnectionsRequest{Filter: filter})
	if err != nil {
		return k, err
	}
	k.flows = live.GetConnections()
	stream, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Filter: filter, Last: newest})
	for err == nil {
		var m *meshpb.WatchFlowsResponse
		if m, err = stream.Recv(); err == nil && m.GetFlow() != nil {
			k.flows = append(k.flows, m.GetFlow())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return k, err
}

// add adds what one agent knows.
func add(a *explain.Answer, k *known) {
	certificate(&a.Source, k)
	for i := range a.Endpoints {
		e := &a.Endpoints[i]
		certificate(&e.End, k)
		for _, f := range k.flows {
			s, at := f.GetSecured(), time.Unix(0, f.GetStartNs()).UTC()
			to := f.GetDestination()
			if s.GetKeyExchange() == "" || f.GetSource().GetWorkload() != a.Source.Workload || to.GetWorkload() != e.Workload {
				continue
			}
			if e.Workload == "" && to.GetIdentity() != e.Identity { // of other trust domains, only identities are known
				continue
			}
			if e.Secured == nil || e.Secured.At.Before(at) {
				e.Secured = &explain.Secured{KeyExchange: s.GetKeyExchange(), PostQuantum: secured.PostQuantum(s.GetKeyExchange()), At: at}
			}
		}
	}
}

// certificate adds that of an end which is on the agent's node.
func certificate(e *explain.End, k *known) {
	for _, c := range k.certificates {
		if e.Identity != "" && e.Node == k.node && c.GetIdentity() == e.Identity && c.GetSerial() != "" {
			e.Certificate = &explain.Certificate{Serial: c.GetSerial(), NotAfter: time.Unix(0, c.GetNotAfterNs()).UTC()}
		}
	}
}
