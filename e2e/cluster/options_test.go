package cluster

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPlanGivesEveryMachineItsAddresses(t *testing.T) {
	o, err := Options{Root: "/src", NodeRange: netip.MustParsePrefix("192.168.4.0/22"), PodRange: netip.MustParsePrefix("10.8.0.0/14"), Workers: 3}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p := plan{Options: o}
	for got, want := range map[string]string{
		p.dir():                          "/src/.cache/clusters/dev",
		p.apiAddress():                   "192.168.4.1:6443",
		p.address("n1").String():         "192.168.4.11",
		p.address("n3").String():         "192.168.4.13",
		listed(p.podRanges("n1")):        "10.8.1.0/24",
		listed(p.podRanges("n3")):        "10.8.3.0/24",
		listed(p.dnsAddresses()):         "10.96.0.10",
		listed(p.apiServiceAddresses()):  "10.96.0.1",
		p.everywhere():                   "0.0.0.0",
		strings.Join(p.machines(), " "):  "cp n1 n2 n3",
		nth(o.NodeRange, 300).String():   "192.168.5.44",
		(plan{Options: o}).dir() + "/cp": "/src/.cache/clusters/dev/cp",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestPlanGivesEveryFamilyItsAddresses(t *testing.T) {
	o, err := Options{Root: "/src", IPFamilies: []string{"ipv6", "ipv4"}, Workers: 200}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p := plan{Options: o}
	for got, want := range map[string]string{
		p.apiAddress():                  "[fd00:10:231::1]:6443",
		listed(p.addresses("n1")):       "fd00:10:231::b,10.231.0.11",
		listed(p.addresses("n200")):     "fd00:10:231::d2,10.231.0.210",
		listed(p.podRanges("n1")):       "fd00:10:244:1::/64,10.244.1.0/24",
		listed(p.podRanges("n200")):     "fd00:10:244:c8::/64,10.244.200.0/24",
		listed(p.allPods()):             "fd00:10:244::/48,10.244.0.0/16",
		listed(p.allServices()):         "fd00:10:96::/108,10.96.0.0/16",
		listed(p.apiServiceAddresses()): "fd00:10:96::1,10.96.0.1",
		listed(p.dnsAddresses()):        "fd00:10:96::a,10.96.0.10",
		p.everywhere():                  "::",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestOptionsSayWhatIsWrong(t *testing.T) {
	for want, o := range map[string]Options{
		"cluster name":       {Root: "/src", Name: "Not_a_name"},
		"neither Root nor":   {},
		"201 workers":        {Root: "/src", Workers: 201},
		"-1 workers":         {Root: "/src", Workers: -1},
		"proxy mode":         {Root: "/src", ProxyMode: "ipvs"},
		"API port":           {Root: "/src", APIPort: 70000},
		"node range":         {Root: "/src", NodeRange: netip.MustParsePrefix("10.0.0.0/25")},
		"pod range":          {Root: "/src", PodRange: netip.MustParsePrefix("10.1.2.3/16")},
		"service range fd00": {Root: "/src", ServiceRange: netip.MustParsePrefix("fd00::/108")},
		"IP families":        {Root: "/src", IPFamilies: []string{"ipv4", "ipv4"}},
		"overlaps":           {Root: "/src", PodRange: netip.MustParsePrefix("10.231.0.0/16")},
	} {
		if _, err := o.WithDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
