package flow

// Sink takes flow records. Add must not block: it is called on the path of
// every connection.
type Sink interface {
	Add(Record)
}

// Recorder is the Sink of an agent: it stamps the node's name, counts in the
// metrics and keeps the record in the Ring. Its fields must be set.
type Recorder struct {
	Node    string
	Ring    *Ring
	Metrics *Metrics
}

// Add implements Sink.
func (r *Recorder) Add(rec Record) {
	if rec.Node == "" {
		rec.Node = r.Node
	}
	r.Metrics.Observe(&rec)
	r.Ring.Add(rec)
}
