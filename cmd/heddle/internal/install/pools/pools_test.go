package pools

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestCover(t *testing.T) {
	for name, c := range map[string]struct{ blocks, pods, nodes, want string }{
		"nodes of one pool":                   {"10.244.0.0/24 10.244.7.0/24", "10.244.0.2 10.244.7.9", "192.168.0.1", "10.244.0.0/16"},
		"a pool larger than a /16":            {"10.244.0.0/24 10.245.0.0/24", "", "", "10.244.0.0/15"},
		"a block larger than a /16":           {"10.128.0.0/14", "", "", "10.128.0.0/14"},
		"both versions":                       {"10.244.0.0/24 fd00:10:244::/64 fd00:10:244:1::/64", "", "", "10.244.0.0/16 fd00:10:244::/48"},
		"pools that have nothing in common":   {"10.244.0.0/24 172.20.1.0/24", "", "", "10.244.0.0/16 172.20.0.0/16"},
		"three private blocks":                {"192.168.1.0/24 10.1.0.0/24 100.64.3.0/24", "", "", "10.1.0.0/16 100.64.0.0/16 192.168.0.0/16"},
		"a private pool and a public one":     {"10.1.0.0/24 11.1.0.0/24", "", "", "10.1.0.0/16 11.1.0.0/16"},
		"public pools on both sides":          {"172.15.0.0/16 172.32.0.0/16", "", "", "172.15.0.0/16 172.32.0.0/16"},
		"public and far apart":                {"11.1.0.0/24 201.1.0.0/24", "", "", "11.1.0.0/16 201.1.0.0/16"},
		"IPv6 pools far apart":                {"fd00::/64 fd01::/64", "", "", "fd00::/48 fd01::/48"},
		"a network with pools of its own":     {"10.244.0.0/24 10.244.1.0/24", "10.0.0.12 10.0.1.77", "192.168.0.1", "10.0.0.0/16"},
		"some pods in a pool of their own":    {"10.244.0.0/24", "10.244.0.2 192.168.12.9", "172.18.0.2", "10.244.0.0/16 192.168.0.0/16"},
		"no blocks":                           {"", "192.168.12.9 192.168.200.1", "172.18.0.2", "192.168.0.0/16"},
		"not the nodes' addresses":            {"", "10.0.1.5 10.0.1.9 10.0.2.9", "10.0.128.4", "10.0.0.0/17"},
		"not the nodes' addresses, by blocks": {"10.0.1.0/24", "", "10.0.3.4", "10.0.0.0/23"},
		"merged, nodes would be in it":        {"10.0.0.0/16 10.2.0.0/16", "", "10.1.0.4", "10.0.0.0/16 10.2.0.0/16"},
		"pods among nodes":                    {"", "10.0.1.5", "10.0.1.4", "unknown"},
		"nothing":                             {"", "", "10.0.1.4", "unknown"},
	} {
		var blocks []netip.Prefix
		for _, text := range strings.Fields(c.blocks) {
			blocks = append(blocks, netip.MustParsePrefix(text))
		}
		addresses := func(texts string) (all []netip.Addr) {
			for _, text := range strings.Fields(texts) {
				all = append(all, netip.MustParseAddr(text))
			}
			return all
		}
		ranges, ok := (&Shown{blocks, addresses(c.pods), addresses(c.nodes)}).Cover()
		got := strings.Trim(fmt.Sprint(ranges), "[]")
		if !ok {
			got = "unknown"
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	var many []netip.Prefix
	for i := range 100 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(11 + 2*i), 0, 0, 0}), 16))
	}
	if _, ok := (&Shown{Blocks: many}).Cover(); ok {
		t.Error("a hundred unrelated ranges are taken for pools")
	}
}

func TestRead(t *testing.T) {
	object := func(text string) (u unstructured.Unstructured) {
		if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
			t.Fatal(err)
		}
		return u
	}
	s, err := Read([]unstructured.Unstructured{object(`{metadata: {name: n1}, spec: {podCIDRs: [10.244.0.0/24, "fd00::/64"]}, status: {addresses: [{type: InternalIP, address: 192.168.0.4}, {type: Hostname, address: n1}]}}`)},
		[]unstructured.Unstructured{object(`{metadata: {name: a}, status: {phase: Running, podIPs: [{ip: 10.0.0.7}, {ip: "fd01::7"}]}}`), object(`{metadata: {name: done}, status: {phase: Succeeded, podIPs: [{ip: 10.9.0.7}]}}`),
			object(`{metadata: {name: host}, spec: {hostNetwork: true}, status: {phase: Running, podIPs: [{ip: 192.168.0.4}]}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(*s), "{[10.244.0.0/24 fd00::/64] [10.0.0.7 fd01::7] [192.168.0.4]}"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := Read([]unstructured.Unstructured{object(`{metadata: {name: n1}, spec: {podCIDRs: 7}}`)}, nil); err == nil || !strings.Contains(err.Error(), "node n1") {
		t.Errorf("%v", err)
	}
}
