package install

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// errRanges is why ranges could not be found.
var errRanges = errors.New("the cluster does not say which addresses its pods and services have; remedy: say it, as in --set mesh.clusterRanges='{10.244.0.0/16,10.96.0.0/16}'")

// ranges finds the addresses of the cluster's pods, from its nodes, and of its
// services. Those of pods are widened to one range of each IP version that holds
// all nodes', the larger of it and a /16 (/48), so that nodes to come are in it.
func (c *Cluster) ranges(ctx context.Context) ([]any, error) {
	nodes, err := c.list(ctx, core("Node"), "", "")
	if err != nil {
		return nil, err
	}
	var pods []netip.Prefix
	for i := range nodes {
		blocks, _, err := unstructured.NestedStringSlice(nodes[i].Object, "spec", "podCIDRs")
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", nodes[i].GetName(), err)
		}
		pods = append(pods, prefixes(blocks)...)
	}
	services, err := c.serviceRanges(ctx)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 || len(services) == 0 {
		return nil, errRanges
	}
	var out []any
	for _, block := range append(covering(pods), services...) {
		if !slices.Contains(out, any(block.String())) {
			out = append(out, block.String())
		}
	}
	return out, nil
}

func (c *Cluster) serviceRanges(ctx context.Context) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, version := range []string{"v1", "v1beta1"} {
		objects, err := c.list(ctx, schema.GroupVersionKind{Group: "networking.k8s.io", Version: version, Kind: "ServiceCIDR"}, "", "")
		if meta.IsNoMatchError(err) {
			continue // an older cluster
		}
		if err != nil {
			return nil, err
		}
		for i := range objects {
			blocks, _, err := unstructured.NestedStringSlice(objects[i].Object, "spec", "cidrs")
			if err != nil {
				return nil, fmt.Errorf("ServiceCIDR %s: %w", objects[i].GetName(), err)
			}
			all = append(all, prefixes(blocks)...)
		}
		break
	}
	return all, nil
}

func prefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if block, err := netip.ParsePrefix(text); err == nil { // an API server checks them
			all = append(all, block.Masked())
		}
	}
	return all
}

// covering returns one range for each IP version.
func covering(blocks []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, v4 := range []bool{true, false} {
		var cover netip.Prefix
		for _, b := range blocks {
			switch {
			case b.Addr().Is4() != v4:
			case !cover.IsValid():
				cover = netip.PrefixFrom(b.Addr(), min(b.Bits(), map[bool]int{true: 16, false: 48}[v4])).Masked()
			default:
				for !cover.Contains(b.Addr()) || cover.Bits() > b.Bits() {
					cover = netip.PrefixFrom(cover.Addr(), cover.Bits()-1).Masked()
				}
			}
		}
		if cover.IsValid() {
			out = append(out, cover)
		}
	}
	return out
}
