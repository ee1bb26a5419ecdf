package flow

// Sink takes flow records. Add must not block: it is called on the path of
// every connection.
type Sink interface {
	Add(Record)
}

// Recorder is the Sink of an agent: it stamps the node's name, counts in the
// metrics, keeps the record in the Ring, and sums it up in the History. Its fields
// must be set, but for History.
type Recorder struct {
	Node    string
	Ring    *Ring
	Metrics *Metrics
	// History takes what outlives the Ring; nil for none.
	History Sink
}

// Add implements Sink.
func (r *Recorder) Add(rec Record) {
	if rec.Node == "" {
		rec.Node = r.Node
	}
	r.Metrics.Observe(&rec)
	r.Ring.Add(rec)
	if r.History != nil {
		r.History.Add(rec)
	}
}
