package report

import "github.com/heddle-mesh/heddle/api/meshpb"

// Gated says which pods are behind their gates, for the operator, and which are known not to
// be, without addresses. It returns a channel that is closed when that may be different.
func (r *Report) Gated() (*meshpb.GatedPods, <-chan struct{}) {
	pods, complete, changed := r.Enrolments.Gated()
	out := &meshpb.GatedPods{Complete: complete}
	for _, s := range pods {
		p := &meshpb.GatedPod{Namespace: s.Key.Namespace, Name: s.Key.Name}
		if s.Gated != nil {
			p.Uid, p.NetworkNamespace = s.Gated.UID, s.Gated.NetNS
			for _, addr := range s.Gated.Addresses {
				p.Addresses = append(p.Addresses, addr.AsSlice())
			}
		}
		out.Pods = append(out.Pods, p)
	}
	return out, changed
}
