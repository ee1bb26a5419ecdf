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

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/pools"
)

// errRanges is why ranges could not be found.
var errRanges = errors.New("the cluster does not say which addresses its pods and services have; remedy: say it, as in --set mesh.clusterRanges='{10.244.0.0/16,10.96.0.0/16}'")

// ranges finds the addresses of the cluster's pods, from its nodes and from the pods that
// run, and of its services.
func (c *Cluster) ranges(ctx context.Context) ([]any, error) {
	nodes, err := c.list(ctx, core("Node"), "", "")
	if err != nil {
		return nil, err
	}
	running, err := c.list(ctx, core("Pod"), "", "")
	if err != nil {
		return nil, err
	}
	shown, err := pools.Read(nodes, running)
	if err != nil {
		return nil, err
	}
	services, err := c.serviceRanges(ctx)
	if err != nil {
		return nil, err
	}
	pods, ok := shown.Cover()
	if !ok || len(services) == 0 {
		return nil, errRanges
	}
	var out []any
	for _, block := range append(pods, services...) {
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
			all = append(all, pools.Prefixes(blocks)...)
		}
		break
	}
	return all, nil
}
