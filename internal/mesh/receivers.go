package mesh

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh/index"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Receivers returns the workloads of which policies say something about UDP, sorted by
// key. Where there is none, nothing about UDP is to be decided.
func (v *View) Receivers() []*Receiver { return v.receivers }

// Receiver returns the receiver that a workload of the View is, or nil.
func (v *View) Receiver(w *Workload) *Receiver {
	if r := keyed.Find(v.receivers, w.Key); r != nil && r.Workload == w {
		return r
	}
	return nil
}

// ServicesOf returns the services that a name is among the endpoints of, in no order.
func (v *View) ServicesOf(key Key) (all []*Service) {
	for _, name := range v.endpoints.Bucket(index.OfTexts(key.Namespace, key.Name)) {
		if e := v.entry(*name); e != nil && keyed.Has(e.service.Endpoints, key) {
			all = append(all, e.service)
		}
	}
	return all
}

// SameSettings reports whether settings are known to be those of another View; it may be
// false of Views that were made apart.
func (v *View) SameSettings(other *View) bool {
	return v.lineage == other.lineage && v.synced == other.synced
}

// SameMembers reports whether workloads, services and settings are known to be those of
// another View, or of the same: it may be false of Views that were made apart.
func (v *View) SameMembers(other *View) bool {
	return v.SameSettings(other) && shared(v.workloads, other.workloads) && shared(v.services, other.services)
}

func shared[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// changeReceivers follows changeWorkloads.
func (b *viewBuilder) changeReceivers(put []*Workload, gone []Key) {
	var is []*Receiver
	for _, w := range put {
		if len(w.Datagrams) > 0 {
			is = append(is, &Receiver{Workload: w})
		}
	}
	if len(is)+len(b.base.receivers) == 0 {
		return
	}
	gone = slices.Clone(gone)
	for _, w := range put {
		if len(w.Datagrams) == 0 {
			gone = append(gone, w.Key)
		}
	}
	b.view.receivers = keyed.Splice(b.base.receivers, is, SortedKeys(gone))
}
