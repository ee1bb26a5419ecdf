package workload

import "sync/atomic"

// Receiver is a workload of which policies say something about UDP. It is safe for
// concurrent use.
type Receiver struct {
	*Workload
	made atomic.Value // what Of came to
}

// Of returns what compile makes of the workload, which must depend on nothing else: it is
// made once for as long as the workload stays as it is, in whatever View, or by two
// goroutines at once, and then comes to the same. It is of one type, and not nil.
func (r *Receiver) Of(compile func(*Workload) any) any {
	if made := r.made.Load(); made != nil {
		return made
	}
	made := compile(r.Workload)
	r.made.Store(made)
	return made
}
