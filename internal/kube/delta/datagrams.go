package delta

import (
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// datagrams is what is known of what policies say about UDP, which is told with each pod that
// they select. It is a pod's own, as long as all of a namespace is not too much.
type datagrams struct {
	bytes map[string]int // of all pods, by namespace: kube.Compiled.DatagramBytes
	// said are the parts of policies that were compiled, one for all pods: a policy about UDP
	// that changes has everything compiled.
	said map[mesh.Key]*mesh.Policy
}

func rememberDatagrams(compiled *kube.Compiled) datagrams {
	d := datagrams{map[string]int{}, map[mesh.Key]*mesh.Policy{}}
	for namespace, n := range compiled.DatagramBytes {
		d.bytes[namespace] = n
	}
	for i := range compiled.Workloads {
		for _, p := range compiled.Workloads[i].Datagrams {
			d.said[p.Key] = p
		}
	}
	return d
}

// tooMany reports whether not all pods of a namespace are told: of which ones depends on all.
func (d *datagrams) tooMany(namespace string) bool {
	return d.bytes[namespace] > policies.MaxNamespace
}

// follow follows what is said of the pods that changed, and has them share it with others. It
// returns false where not all of a namespace's can be told any more.
func (d *datagrams) follow(a *concern, compiled *kube.Compiled) bool {
	for _, n := range compiled.DatagramBytes {
		if n > policies.MaxNamespace {
			return false // of those that were compiled some may have been left out
		}
	}
	for key := range a.pods {
		if was, had := a.view.Workload(key); had {
			d.bytes[key.Namespace] -= size(was)
		}
	}
	for i := range compiled.Workloads {
		w := &compiled.Workloads[i]
		if _, changed := a.pods[w.Key]; !changed {
			continue
		}
		d.bytes[w.Namespace] += size(w)
		for j, p := range w.Datagrams {
			if same := d.said[p.Key]; same != nil {
				w.Datagrams[j] = same
			} else {
				d.said[p.Key] = p
			}
		}
	}
	for key := range a.pods {
		if d.tooMany(key.Namespace) {
			return false
		}
	}
	return true
}

func size(w *mesh.Workload) (bytes int) {
	for _, p := range w.Datagrams {
		bytes += fit.Policy(p)
	}
	return bytes
}

// aboutDatagrams returns the policies that select a pod which changed, where some may be about
// UDP, but for those that are compiled in any case.
func (a *concern) aboutDatagrams() (all []kube.Sourced[v1alpha1.AuthorizationPolicy]) {
	added := map[mesh.Key]bool{}
	opens := map[string]bool{}
	for key, pod := range a.pods {
		if pod == nil {
			continue
		}
		if _, asked := opens[key.Namespace]; !asked {
			opens[key.Namespace] = a.opensDatagrams(key.Namespace)
		}
		if !opens[key.Namespace] {
			continue
		}
		for name, p := range a.Compiler.policies[key.Namespace] {
			is := mesh.Key{Namespace: key.Namespace, Name: name}
			if _, compiled := a.policies[is]; !compiled && !added[is] && mesh.Selects(selectorOf(p), pod.Labels) {
				added[is] = true
				all = append(all, kube.Sourced[v1alpha1.AuthorizationPolicy]{Value: p})
			}
		}
	}
	return all
}

// opensDatagrams reports whether a policy of a namespace lets datagrams in.
func (c *Compiler) opensDatagrams(namespace string) bool {
	if !c.objects.UDPByIdentity {
		return false
	}
	for _, p := range c.policies[namespace] {
		if policies.OpensUDP(p) {
			return true
		}
	}
	return false
}
