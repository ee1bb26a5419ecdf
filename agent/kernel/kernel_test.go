package kernel

import (
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestReasonsAreTwins: every reason of the kernel's is one of the model's, and
// the model knows no other that begins with Kernel.
func TestReasonsAreTwins(t *testing.T) {
	twins := map[mesh.Reason]bool{}
	for _, r := range bpf.DropReasons() {
		twin := podnet.ReasonOf(r)
		if twin.String() != r.String() || !strings.HasPrefix(twin.String(), "Kernel") || twins[twin] {
			t.Errorf("%v has the twin %v", r, twin)
		}
		twins[twin] = true
	}
	for _, r := range mesh.Reasons() {
		if strings.HasPrefix(r.String(), "Kernel") && !twins[r] {
			t.Errorf("%v is not given by the kernel", r)
		}
	}
}

type sink struct {
	mu      sync.Mutex
	records []flow.Record
}

func (s *sink) Add(r flow.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, r)
}

func TestDropsNameBothEnds(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.test")
	workload := func(name, addr string) mesh.Workload {
		id, err := mesh.IdentityFor(td, "shop", name)
		if err != nil {
			t.Fatal(err)
		}
		return mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: name}, ServiceAccount: name, Node: "n1", Identity: id,
			Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Enrolled: true, Gated: true}
	}
	web, db := workload("web", "10.0.0.1"), workload("db", "10.0.0.2")
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td}, []mesh.Workload{web, db}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &Datapath{room: newRoom(), log: slog.New(slog.DiscardHandler)}
	d.keys.byName = map[string]mesh.Key{podnet.Name(db.Key): db.Key}
	for _, c := range []struct {
		direction bpf.Direction
		src, dst  string
		from, to  mesh.Key
	}{
		{bpf.Inbound, "10.0.0.1:999", "10.0.0.2:80", web.Key, db.Key},
		{bpf.Outbound, "10.0.0.2:80", "192.0.2.1:443", db.Key, mesh.Key{}},
		// A forged source is the pod's all the same: its gate saw it.
		{bpf.Outbound, "10.0.0.1:80", "192.0.2.1:443", db.Key, mesh.Key{}},
	} {
		s := &sink{}
		drops := flow.NewDrops(s)
		d.record(view, drops, &podnet.Drop{Pod: podnet.Name(db.Key), Reason: mesh.ReasonKernelUnstamped, Drop: bpf.Drop{
			Time: time.Now(), Direction: c.direction, Protocol: 6,
			Source: netip.MustParseAddrPort(c.src), Destination: netip.MustParseAddrPort(c.dst),
		}})
		drops.Flush()
		if len(s.records) != 1 {
			t.Fatalf("%d records", len(s.records))
		}
		r := s.records[0]
		if r.Source.Workload != c.from || r.Destination.Workload != c.to || r.Direction != flow.DirectionKernel || r.Verdict != mesh.VerdictDeny || r.Packets != 1 {
			t.Errorf("%v: %+v", c, r)
		}
	}
}

// TestDropsFromBeforeTheAgent: the records that the ring held when the agent
// started name their pod, although nothing is enrolled or configured yet.
func TestDropsFromBeforeTheAgent(t *testing.T) {
	d := &Datapath{room: newRoom(), log: slog.New(slog.DiscardHandler)}
	s := &sink{}
	drops := flow.NewDrops(s)
	db := mesh.Key{Namespace: "shop", Name: "db.main-0"}
	d.record(mesh.NewStore().View(), drops, &podnet.Drop{Pod: podnet.Name(db), Reason: mesh.ReasonKernelPlaintextInbound, Drop: bpf.Drop{
		Time: time.Now(), Direction: bpf.Inbound, Protocol: 6,
		Source: netip.MustParseAddrPort("10.0.0.1:999"), Destination: netip.MustParseAddrPort("10.0.0.2:80"),
	}})
	drops.Flush()
	if len(s.records) != 1 || s.records[0].Destination.Workload != db {
		t.Errorf("%+v", s.records)
	}
}

// TestRefusalsAreConnections: what the kernel refuses for want of an endpoint is
// recorded as what the proxy refuses for it.
func TestRefusalsAreConnections(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.test")
	service := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "down"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, External: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 80}}}
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td}, nil, []mesh.Service{service}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"10.96.0.7:80", "192.0.2.7:80"} {
		d := &Datapath{room: newRoom(), log: slog.New(slog.DiscardHandler)}
		s := &sink{}
		drops := flow.NewDrops(s)
		web := mesh.Key{Namespace: "shop", Name: "web"}
		for port := range uint16(3) {
			d.record(view, drops, &podnet.Drop{Pod: podnet.Name(web), Reason: podnet.ReasonOf(bpf.RefusedNoEndpoint), Drop: bpf.Drop{
				Time: time.Now(), Direction: bpf.Outbound, Protocol: 6,
				Source: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 40000+port), Destination: netip.MustParseAddrPort(at),
			}})
		}
		drops.Flush()
		if len(s.records) != 1 {
			t.Fatalf("%s: %d records: %+v", at, len(s.records), s.records)
		}
		if r := s.records[0]; r.Direction != flow.DirectionOutbound || r.Verdict != mesh.VerdictDeny || r.Reason != mesh.ReasonNoEndpoint ||
			r.Service != service.Key || r.Source.Workload != web || r.Packets != 3 {
			t.Errorf("%s: %+v", at, r)
		}
	}
}
