package datagram_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// processor is what the process has had of it: what a busy machine does not change much.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// each runs fn, and reports what it has of the processor, garbage collection included.
func each(b *testing.B, fn func()) {
	b.ReportAllocs()
	began := processor(b)
	for b.Loop() {
		fn()
	}
	b.ReportMetric(float64((processor(b)-began).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// eachLarge is for each size of a mesh and number of ports.
func eachLarge(b *testing.B, fn func(b *testing.B, v *mesh.View)) {
	for _, workloads := range []int{10_000, 50_000, 100_000} {
		for _, ports := range []int{1, 10} {
			b.Run(fmt.Sprintf("%d/%d", workloads, ports), func(b *testing.B) { fn(b, large(b, workloads, ports)) })
		}
	}
}

// large is a mesh of so many workloads of 1,000 identities, 30 to a node, of which all of
// node n0 and every hundredth elsewhere take datagrams from all others, at so many ports.
func large(t testing.TB, workloads, ports int) *mesh.View {
	t.Helper()
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	open := &mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "open"}, Rules: []mesh.Rule{{From: []mesh.Source{{Namespaces: []string{"shop"}}}, To: []mesh.Destination{{}}}}}
	for i := range ports {
		open.Rules[0].To[0].Ports = append(open.Rules[0].To[0].Ports, uint16(4000+i))
	}
	var all []mesh.Workload
	for i := range workloads {
		account := fmt.Sprintf("a%d", i%1000)
		id, err := mesh.IdentityFor(domain, "shop", account)
		if err != nil {
			t.Fatal(err)
		}
		w := mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: fmt.Sprintf("w%06d", i)}, ServiceAccount: account, Identity: id, Node: fmt.Sprintf("n%d", i/30), Enrolled: true, Gated: true, Ready: true,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
		if i < 30 || i%100 == 0 {
			w.Datagrams = []*mesh.Policy{open}
		}
		all = append(all, w)
	}
	v, err := mesh.NewView("r", mesh.Settings{TrustDomain: domain, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, all, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// BenchmarkRules writes out all rules of a node of a large mesh.
func BenchmarkRules(b *testing.B) {
	eachLarge(b, func(b *testing.B, v *mesh.View) {
		each(b, func() {
			if all := datagram.Rules(v, "n0"); len(all) != 30 {
				b.Fatalf("%d workloads have rules", len(all))
			}
		})
	})
}

// BenchmarkChange follows one workload of a large mesh that comes back at another address:
// one of another node, a receiver of another node, or one of the node itself, which is whole.
func BenchmarkChange(b *testing.B) {
	for name, i := range map[string]int{"client": 50, "receiver": 200, "own": 7} {
		b.Run(name, func(b *testing.B) {
			eachLarge(b, func(b *testing.B, v *mesh.View) {
				w := *v.Workloads()[i]
				w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 200, 0, 1})}
				next, err := v.With("r", mesh.Change{Workloads: []*mesh.Workload{&w}})
				if err != nil {
					b.Fatal(err)
				}
				each(b, func() {
					all := datagram.Changes(v, next, "n0")
					if len(all) < 29 {
						b.Fatalf("%d workloads have other rules", len(all))
					}
					for key, c := range all {
						if c.Whole {
							datagram.RulesOf(next, "n0", key)
						}
					}
				})
			})
		})
	}
}
