package netpolicy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func members(n int) []Member {
	var all []Member
	for i := range n {
		all = append(all, Member{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})})
	}
	return all
}

func TestSplit(t *testing.T) {
	for _, n := range []int{0, 1, 64, 65, 1000, 50_000} {
		all := append(members(n), members(n)...) // each twice
		rand.New(rand.NewPCG(1, uint64(n))).Shuffle(len(all), reflect.Swapper(all))
		shards := Split("s", all)
		got, largest := 0, 0
		for i := range shards {
			if err := shards[i].Validate(); err != nil {
				t.Fatal(err)
			}
			got, largest = got+len(shards[i].Members), max(largest, len(shards[i].Members))
		}
		if got != n || largest > 3*shardSize {
			t.Errorf("%d members: %d in shards, the largest of %d", n, got, largest)
		}
		x, err := New(nil, shards)
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Shards()) != len(shards) {
			t.Errorf("%d members: the index has %d shards of %d", n, len(x.Shards()), len(shards))
		}
	}
}

func TestNewRefuses(t *testing.T) {
	block := netip.MustParsePrefix("10.0.0.0/8")
	policy := func(r Rule) []Policy {
		return []Policy{{Name: Name{"shop", "np"}, Egress: &Direction{Rules: []Rule{r}}}}
	}
	addr := netip.MustParseAddr("10.0.0.1")
	for says, in := range map[string]struct {
		policies []Policy
		shards   []Shard
	}{
		"has no name of its own": {append(policy(Rule{}), policy(Rule{})...), nil},
		"address block":          {policy(Rule{Peers: []Peer{{}}}), nil},
		"address block ::ffff":   {policy(Rule{Peers: []Peer{{Block: block, Except: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}}}), nil},
		"ports 0 to 80":          {policy(Rule{Ports: []Port{{Last: 80}}}), nil},
		"ports 80 to 79":         {policy(Rule{Ports: []Port{{First: 80, Last: 79}}}), nil},
		"operator is unknown":    {[]Policy{{Name: Name{"shop", "np"}, Selector: Selector{{Key: "app", Operator: 9}}}}, nil},
		"the set has no name":    {nil, []Shard{{Count: 1, Members: []Member{{Addr: addr}}}}},
		"shard 0 of 3":           {nil, []Shard{{Set: "s", Count: 3, Members: []Member{{Addr: addr}}}}},
		"go with another shard":  {nil, []Shard{{Set: "s", Count: 1}, {Set: "s", Count: 2, Index: 1}}},
		"not go with another":    {nil, []Shard{{Set: "s", Count: 2, Index: 1}, {Set: "s", Count: 2, Index: 1}}},
	} {
		if _, err := New(in.policies, in.shards); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

func TestValidateMembers(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	for says, s := range map[string]Shard{
		"not one of this shard": {Set: "s", Count: 1, Members: []Member{{}}},
		"out of order":          {Set: "s", Count: 1, Members: []Member{{Addr: addr}, {Addr: addr}}},
	} {
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

// large has 20 policies for one workload, each with 10 rules by sets of 10,000.
func large(t testing.TB) *Rules {
	t.Helper()
	var policies []Policy
	var shards []Shard
	for i := range 20 {
		set := fmt.Sprintf("set%d", i)
		shards = append(shards, Split(set, members(10_000))...)
		p := Policy{Name: Name{"shop", fmt.Sprintf("np%02d", i)}, Ingress: &Direction{}}
		for j := range 10 {
			p.Ingress.Rules = append(p.Ingress.Rules, Rule{Peers: []Peer{{Set: set}, {Block: netip.MustParsePrefix("192.0.2.0/24"), Except: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}}},
				Ports: []Port{{First: uint16(1000 + 10*i + j), Last: uint16(1000 + 10*i + j)}}})
		}
		policies = append(policies, p)
	}
	x, err := New(policies, shards)
	if err != nil {
		t.Fatal(err)
	}
	return x.For("shop", nil)
}

func TestJudgingAllocatesNothing(t *testing.T) {
	r := large(t)
	last, none := netip.MustParseAddrPort("10.9.9.9:1199"), netip.MustParseAddrPort("10.9.9.9:80")
	client := netip.MustParseAddr("10.0.7.7")
	if _, ok := r.Ingress(client, true, last); !ok {
		t.Error("the last rule does not admit")
	}
	if by, ok := r.Ingress(client, true, none); ok || by.Name != "np00" {
		t.Errorf("admitted, or by %v", by)
	}
	if by, ok := r.Ingress(client, false, last); ok || by.Name != "np00" {
		t.Error("somebody who is not known to have the address is taken for who has it")
	}
	if _, ok := r.Ingress(netip.MustParseAddr("192.0.2.200"), false, last); !ok {
		t.Error("a block does not admit by the address alone")
	}
	if n := testing.AllocsPerRun(100, func() { r.Ingress(client, true, last); r.Ingress(client, true, none); r.Egress(none) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// TestJudgeAgrees: what people are told is what was decided, whatever is asked.
func TestJudgeAgrees(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	address := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(8))}) }
	direction := func() *Direction {
		d := &Direction{}
		for range random.IntN(3) {
			r := Rule{Number: random.IntN(10)}
			for range random.IntN(3) {
				if random.IntN(2) == 0 {
					r.Peers = append(r.Peers, Peer{Set: fmt.Sprintf("set%d", random.IntN(3))})
				} else {
					r.Peers = append(r.Peers, Peer{Block: netip.PrefixFrom(address(), 30).Masked(), Except: []netip.Prefix{netip.PrefixFrom(address(), 32)}})
				}
			}
			for range random.IntN(3) {
				first := uint16(1 + random.IntN(4))
				r.Ports = append(r.Ports, Port{First: first, Last: first + uint16(random.IntN(2))})
			}
			d.Rules = append(d.Rules, r)
		}
		return d
	}
	admitted, refused, excepted := 0, 0, 0
	for range 300 {
		var policies []Policy
		for i := range random.IntN(4) {
			p := Policy{Name: Name{"shop", fmt.Sprint("np", i)}}
			if random.IntN(3) > 0 {
				p.Ingress = direction()
			}
			if random.IntN(3) > 0 {
				p.Egress = direction()
			}
			policies = append(policies, p)
		}
		var shards []Shard
		for i := range 3 {
			shards = append(shards, Split(fmt.Sprintf("set%d", i), []Member{{Addr: address()}, {Addr: address()}})...)
		}
		x, err := New(policies, shards)
		if err != nil {
			t.Fatal(err)
		}
		rules := x.For("shop", nil)
		for range 20 {
			other, port := address(), uint16(1+random.IntN(5))
			for _, ingress := range []bool{false, true} {
				server := netip.AddrPortFrom(other, port)
				by, ok := rules.Egress(server)
				if ingress {
					server = netip.AddrPortFrom(address(), port)
					by, ok = rules.Ingress(other, true, server)
				}
				says := x.Judge("shop", nil, ingress, other, server)
				admits := len(says) == 0
				for i := range says {
					_, fine := says[i].Admits()
					admits = admits || fine
					for _, r := range says[i].Rules {
						if r.Except.IsValid() {
							excepted++
							if !r.Except.Contains(other) || r.Peer {
								t.Errorf("%v is told of exception %v", other, r)
							}
						}
					}
				}
				if admits != ok || !ok && says[0].Policy.Name != by {
					t.Fatalf("of %v at port %d, ingress %v, it is decided %v by %v, and said %+v of %+v", other, port, ingress, ok, by, says, policies)
				}
				if ok {
					admitted++
				} else {
					refused++
				}
			}
		}
	}
	if admitted < 100 || refused < 100 || excepted < 100 {
		t.Errorf("%d admitted, %d refused, %d exceptions: too few to show anything", admitted, refused, excepted)
	}
}

func BenchmarkJudge(b *testing.B) {
	r := large(b)
	client := netip.MustParseAddr("10.0.7.7")
	for name, to := range map[string]string{"first": "10.9.9.9:1000", "last": "10.9.9.9:1199", "none": "10.9.9.9:80"} {
		at := netip.MustParseAddrPort(to)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Ingress(client, true, at)
			}
		})
	}
}
