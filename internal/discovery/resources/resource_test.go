package resources

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func keyOfSeed(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func FuzzDecodeResource(f *testing.F) {
	key := mesh.Key{Namespace: "a", Name: "b"}
	id := spiffeid.RequireFromString("spiffe://test.example/ns/a/sa/b")
	for _, encode := range []func() (*Resource, error){
		func() (*Resource, error) {
			return EncodeSettings(&mesh.Settings{TrustDomain: id.TrustDomain(), ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		},
		func() (*Resource, error) {
			return EncodeWorkload(&mesh.Workload{Key: key, ServiceAccount: "b", Node: "n", Identity: id, Addresses: []netip.Addr{netip.MustParseAddr("fd00::1")}})
		},
		func() (*Resource, error) {
			return EncodeService(&mesh.Service{Key: key, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}, Endpoints: []mesh.Key{key}})
		},
		func() (*Resource, error) {
			return EncodePolicy(&mesh.Policy{Key: key, Action: mesh.ActionDeny, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{1}}}}}})
		},
		func() (*Resource, error) {
			return EncodeNetworkPolicy(&netpolicy.Policy{Name: netpolicy.Name(key), Selector: netpolicy.Selector{{Key: "app", Values: []string{"a"}}},
				Ingress: &netpolicy.Direction{}, Egress: &netpolicy.Direction{Rules: []netpolicy.Rule{{Ports: []netpolicy.Port{{First: 1, Last: 2}},
					Peers: []netpolicy.Peer{{Set: "s"}, {Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}}}}}})
		},
		func() (*Resource, error) {
			return EncodeAddressSet(&netpolicy.Shard{Set: "s", Count: 1, Members: []netpolicy.Member{{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, {Addr: netip.MustParseAddr("fd00::1")}}})
		},
		func() (*Resource, error) {
			return EncodeRoute(&route.Route{ID: route.ID{Kind: route.GRPC, Key: key}, Parents: []route.Parent{{Service: key, Port: 80}},
				Rules: []route.Rule{{Matches: []route.Match{{}}, Filters: []route.Filter{{Broken: "why"}}, Backends: []route.Backend{{Service: key, Port: 80, Weight: 1}}}}})
		},
	} {
		r, err := encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(r.Kind), r.Name, r.Body)
	}
	f.Fuzz(func(t *testing.T, k uint8, name string, body []byte) {
		d, err := decodeResource(Kind(k), name, versionOf(Kind(k), name, body), body)
		if err != nil {
			return
		}
		if _, err := decodeResource(Kind(k), name, "0", body); err == nil {
			t.Fatal("taken under a wrong version")
		}
		again, err := encodeAgain(d)
		if err != nil {
			t.Fatalf("decoded, but not to be encoded: %v", err)
		}
		if _, err := decodeResource(again.Kind, again.Name, again.Version, again.Body); err != nil {
			t.Fatalf("encoded, but not to be decoded: %v", err)
		}
	})
}

func encodeAgain(d *decoded) (*Resource, error) {
	switch {
	case d.settings != nil:
		return EncodeSettings(d.settings)
	case d.service != nil:
		return EncodeService(d.service)
	case d.workload != nil:
		return EncodeWorkload(d.workload)
	case d.policy != nil:
		return EncodePolicy(d.policy)
	case d.network != nil:
		return EncodeNetworkPolicy(d.network)
	case d.shard != nil:
		return EncodeAddressSet(d.shard)
	case d.route != nil:
		return EncodeRoute(d.route)
	}
	return nil, errors.New("nothing is decoded")
}

func TestSignatureCoversEverything(t *testing.T) {
	c := Commit{Node: "n1", Revision: "r", Epoch: 3, Hash: bytes.Repeat([]byte{1}, 32)}
	c.Sign(keyOfSeed(1))
	keys := []ed25519.PublicKey{nil, keyOfSeed(2).Public().(ed25519.PublicKey), keyOfSeed(1).Public().(ed25519.PublicKey)}
	if !c.verify(keys) {
		t.Fatal("a good signature does not verify")
	}
	for name, change := range map[string]func(*Commit){
		"node":      func(c *Commit) { c.Node = "n2" },
		"revision":  func(c *Commit) { c.Revision = "s" },
		"epoch":     func(c *Commit) { c.Epoch++ },
		"hash":      func(c *Commit) { c.Hash = bytes.Repeat([]byte{2}, 32) },
		"shifted":   func(c *Commit) { c.Node, c.Revision = "n", "1r" },
		"signature": func(c *Commit) { c.signature = nil },
	} {
		forged := c
		change(&forged)
		if forged.verify(keys) {
			t.Errorf("%s: verifies", name)
		}
	}
}
