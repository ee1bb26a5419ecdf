package adversary

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func pod(name, state string, addresses ...string) *meshpb.PodStatus {
	return &meshpb.PodStatus{Workload: name, State: state, NetworkNamespace: "/run/netns/" + name, Addresses: addresses}
}

func TestPartiesOfANode(t *testing.T) {
	pods := []*meshpb.PodStatus{pod("shop/web", "enrolled", "10.1.0.2", "fd01::2"), pod("shop/late", "enrolling", "10.1.0.3"), pod("shop/db", "enrolled", "10.1.0.4")}
	peers, err := parse([]string{"10.2.0.2", "fd02::2"})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := chooseOnNode(pods, "shop/web", peers, "/here")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Target.NetNS != "/run/netns/shop/web" || cfg.Target.Node != "/here" || len(cfg.Target.Addresses) != 2 {
		t.Errorf("target: %+v", cfg.Target)
	}
	if cfg.Client.NetNS != "/run/netns/shop/db" || !slices.Equal(cfg.Other.Addresses, cfg.Client.Addresses) || !slices.Equal(cfg.Peer.Addresses, peers) {
		t.Errorf("client %+v, other %+v, peer %+v", cfg.Client, cfg.Other, cfg.Peer)
	}
	for _, c := range []struct {
		pod, peer, says string
	}{
		{"shop/none", "10.2.0.2", "there are shop/web, shop/db"},
		{"shop/late", "10.2.0.2", "there are shop/web, shop/db"},
		{"shop/web", "", "--peer"},
		{"shop/web", "10.1.0.4", "is shop/db, of this node"},
		{"shop/db", "fd02::2", "same family"},
	} {
		var to []netip.Addr
		if c.peer != "" {
			to = []netip.Addr{netip.MustParseAddr(c.peer)}
		}
		if _, err := chooseOnNode(pods, c.pod, to, "/here"); !errors.Is(err, reach.ErrUsage) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s, --peer %s: %v, want %q", c.pod, c.peer, err, c.says)
		}
	}
}

func TestPeersAreAddressesOfPods(t *testing.T) {
	for _, bad := range []string{"", "web", "10.2.0.0/16", "10.2.0.2:80", "127.0.0.1", "0.0.0.0", "224.0.0.1", "::ffff:10.2.0.2", "fe80::1", "fd02::2%eth0"} {
		if _, err := parse([]string{"10.2.0.2", bad}); !errors.Is(err, reach.ErrUsage) || !strings.Contains(err.Error(), "10.244.2.7") {
			t.Errorf("--peer %q: %v", bad, err)
		}
	}
}

// An API server is no way to a node.
func TestAClusterIsNoNode(t *testing.T) {
	_, err := Find(t.Context(), &reach.Mesh{OnlyCluster: true}, "shop/web", nil)
	if !errors.Is(err, reach.ErrUsage) || !strings.Contains(err.Error(), "--peer") {
		t.Error(err)
	}
}
