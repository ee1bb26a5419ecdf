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
		p.podRange("n1").String():        "10.8.1.0/24",
		p.podRange("n3").String():        "10.8.3.0/24",
		p.dnsAddress().String():          "10.96.0.10",
		p.apiServiceAddress().String():   "10.96.0.1",
		strings.Join(p.machines(), " "):  "cp n1 n2 n3",
		nth(o.NodeRange, 300).String():   "192.168.5.44",
		(plan{Options: o}).dir() + "/cp": "/src/.cache/clusters/dev/cp",
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
		"overlaps":           {Root: "/src", PodRange: netip.MustParsePrefix("10.231.0.0/16")},
	} {
		if _, err := o.WithDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
