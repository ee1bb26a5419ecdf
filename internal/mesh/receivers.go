package mesh

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Receivers returns the workloads of which policies say something about UDP, sorted by
// key. Where there is none, nothing about UDP is to be decided.
func (v *View) Receivers() []*Workload { return v.receivers }

// OfReceiver returns what compile makes of a receiver, which must depend on nothing else:
// it is made once for as long as the workload stays as it is, or by two goroutines at
// once, and then comes to the same.
func (v *View) OfReceiver(w *Workload, compile func(*Workload) any) any {
	if made, ok := v.ofReceivers.Load(w); ok {
		return made
	}
	made := compile(w)
	v.ofReceivers.Store(w, made)
	return made
}

// SameMembers reports whether workloads, services and settings are known to be those of
// another View, or of the same: it may be false of Views that were made apart.
func (v *View) SameMembers(other *View) bool {
	return v.lineage == other.lineage && v.synced == other.synced && shared(v.workloads, other.workloads) && shared(v.services, other.services)
}

func shared[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// changeReceivers follows changeWorkloads.
func (b *viewBuilder) changeReceivers(put []*Workload, gone []Key) {
	var is []*Workload
	for _, w := range put {
		if len(w.Datagrams) > 0 {
			is = append(is, w)
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

// keepOfReceivers takes over what was made of receivers that are as they were.
func (v *View) keepOfReceivers(base *View) {
	for _, w := range v.receivers {
		if made, ok := base.ofReceivers.Load(w); ok {
			v.ofReceivers.Store(w, made)
		}
	}
}
