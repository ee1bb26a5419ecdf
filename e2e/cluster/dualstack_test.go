package cluster_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/clustertest"
)

// TestDualStack brings up a cluster whose pods and services have addresses of both
// families, and asks it over each.
func TestDualStack(t *testing.T) {
	t.Setenv(clustertest.Reuse, "") // it is what is tested
	c := clustertest.Up(t, cluster.Options{Name: "ht-both", IPFamilies: []string{"ipv6", "ipv4"}})
	clustertest.LoadProgram(t, c, "./probe", probeImage)
	manifest, err := os.ReadFile("testdata/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(manifest), "spec:\n  selector: {app: echo}\n", "spec:\n  ipFamilyPolicy: RequireDualStack\n  selector: {app: echo}\n", 1)
	clustertest.Kubectl(t, c, text, "apply", "-f", "-")
	waitDemo(t, c)
	t.Run("nodes", func(t *testing.T) { testNodesOfBoth(t, c) })
	t.Run("pods reach pods", func(t *testing.T) { testPodsReachPodsOverBoth(t, c) })
	t.Run("services and DNS", func(t *testing.T) { testServicesOfBoth(t, c) })
	t.Run("pods are reached from the control plane", func(t *testing.T) { testFromOutsideOverBoth(t, c) })
	t.Run("reboot", func(t *testing.T) {
		before := pods(t, c, "echo")
		for _, name := range []string{"n1", "cp"} { // whose routes are made anew
			node, err := c.Node(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := node.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the pods of n1 run again", func() error { return restarted(t, c, before, "n1") })
		}
		testPodsReachPodsOverBoth(t, c)
	})
}

// podOfBoth is a pod with all its addresses, the primary family's first.
type podOfBoth struct {
	name, node string
	addresses  []netip.Addr
}

func podsOfBoth(t *testing.T, c *cluster.Cluster, app string) []podOfBoth {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name, DeletionTimestamp string }
			Spec     struct{ NodeName string }
			Status   struct{ PodIPs []struct{ IP netip.Addr } }
		}
	}
	if err := json.Unmarshal([]byte(clustertest.Kubectl(t, c, "", "-n", "demo", "get", "pods", "-l", "app="+app, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	var all []podOfBoth
	for _, item := range list.Items {
		p := podOfBoth{name: item.Metadata.Name, node: item.Spec.NodeName}
		for _, address := range item.Status.PodIPs {
			p.addresses = append(p.addresses, address.IP)
		}
		if len(p.addresses) != 2 || !p.addresses[0].Is6() || !p.addresses[1].Is4() {
			t.Fatalf("pod %s has the addresses %v, want one of IPv6 and then one of IPv4", p.name, p.addresses)
		}
		all = append(all, p)
	}
	return all
}

// at is where a server of the demo answers, at one of its addresses.
func at(address netip.Addr, port string) string { return net.JoinHostPort(address.String(), port) }

func testNodesOfBoth(t *testing.T, c *cluster.Cluster) {
	want := "fd00:10:244:1::/64 10.244.1.0/24 fd00:10:231::b 10.231.0.11 n1;fd00:10:244:2::/64 10.244.2.0/24 fd00:10:231::c 10.231.0.12 n2;"
	got := clustertest.Kubectl(t, c, "", "get", "nodes", "-o", "jsonpath={range .items[*]}{.spec.podCIDRs[*]} {.status.addresses[*].address};{end}")
	if got != want {
		t.Errorf("nodes have %s, want %s", got, want)
	}
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n1 := status.Nodes[1]; !slices.Equal(n1.Addresses, []string{"fd00:10:231::b", "10.231.0.11"}) || !slices.Equal(n1.PodRanges, []string{"fd00:10:244:1::/64", "10.244.1.0/24"}) {
		t.Errorf("status: %+v", n1)
	}
}

// testPodsReachPodsOverBoth: on the same node and across nodes, and servers see who calls.
func testPodsReachPodsOverBoth(t *testing.T, c *cluster.Cluster) {
	servers, clients := podsOfBoth(t, c, "echo"), podsOfBoth(t, c, "client")
	for _, client := range clients {
		for _, server := range servers {
			for i, address := range server.addresses {
				got, err := inPod(t.Context(), c, client.name, "get", "http://"+at(address, "8080")+"/")
				if want := server.name + " " + server.node + " " + client.addresses[i].String(); err != nil || got != want {
					t.Errorf("from %s to %s: got %q, want %q (%v)", client.node, address, got, want, err)
				}
			}
		}
	}
}

func testServicesOfBoth(t *testing.T, c *cluster.Cluster) {
	addresses := strings.Fields(clustertest.Kubectl(t, c, "", "-n", "demo", "get", "service", "echo", "-o", "jsonpath={.spec.clusterIPs[*]}"))
	if len(addresses) != 2 || !strings.HasPrefix(addresses[0], "fd00:10:96::") || !strings.HasPrefix(addresses[1], "10.96.") {
		t.Fatalf("the service has %v", addresses)
	}
	for _, client := range podsOfBoth(t, c, "client") {
		got, err := inPod(t.Context(), c, client.name, "lookup", "echo")
		found := strings.Fields(got)
		slices.Sort(found)
		if want := []string{addresses[1], addresses[0]}; err != nil || !slices.Equal(found, want) {
			t.Errorf("on %s the service is %q, want %v (%v)", client.node, got, want, err)
		}
		for i, address := range addresses {
			got, err := inPod(t.Context(), c, client.name, "get", "http://"+at(netip.MustParseAddr(address), "80")+"/")
			if err != nil || !strings.HasSuffix(got, " "+client.addresses[i].String()) {
				t.Errorf("on %s, %s answers %q, want the client's %s (%v)", client.node, address, got, client.addresses[i], err)
			}
		}
	}
}

// testFromOutsideOverBoth reaches pods from where an ingress or a webhook's caller is.
func testFromOutsideOverBoth(t *testing.T, c *cluster.Cluster) {
	control, err := c.Node("cp")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range podsOfBoth(t, c, "echo") {
		for i, address := range server.addresses {
			out, err := fetchFrom(control, at(address, "8080"))
			if want := server.name + " " + server.node + " " + control.Addresses()[i].String() + "\n"; err != nil || out != want {
				t.Errorf("to %s: got %q, want %q (%v)", address, out, want, err)
			}
		}
	}
}
