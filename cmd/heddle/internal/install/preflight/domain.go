package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// domain warns of a cluster whose services have names of another domain than the one that
// agents know. Nothing of Kubernetes' own says which: CoreDNS' configuration does, where
// that is where kubeadm and most others put it.
func (c Cluster) domain(ctx context.Context, r *health.Report) error {
	const namespace, name = "kube-system", "coredns"
	object, err := c.Get(ctx, core("ConfigMap"), namespace, name)
	if object == nil || err != nil {
		return err
	}
	text, _, err := unstructured.NestedString(object.Object, "data", "Corefile")
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", namespace, name, err)
	}
	zones := zonesOf(text)
	if len(zones) == 0 || slices.Contains(zones, mesh.ClusterDomain) {
		return nil
	}
	r.Warn(clusterPart, "cluster domain", fmt.Sprintf("CoreDNS has services under %s (ConfigMap %s/%s), and agents know names of %s alone", strings.Join(zones, ", "), namespace, name, mesh.ClusterDomain),
		"connections, policies and routes go by addresses, and are not concerned; with mesh.dns=CAPTURE, agents leave services' names to the pods' servers")
	return nil
}

// zonesOf returns the zones of the plugin that answers for services, without those of
// addresses: https://coredns.io/plugins/kubernetes/.
func zonesOf(corefile string) (zones []string) {
	for line := range strings.Lines(corefile) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "kubernetes" {
			continue
		}
		for _, word := range words[1:] {
			if strings.HasPrefix(word, "{") || strings.HasPrefix(word, "#") {
				break
			}
			if zone := strings.ToLower(strings.TrimSuffix(word, ".")); !strings.HasSuffix(zone, ".arpa") {
				zones = append(zones, zone)
			}
		}
	}
	return zones
}
