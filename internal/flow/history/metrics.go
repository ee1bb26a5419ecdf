package history

import "github.com/prometheus/client_golang/prometheus"

// Register registers what a History says of itself.
func (h *History) Register(reg prometheus.Registerer) {
	if h == nil {
		return
	}
	onDisk := func(value func(*written) float64) func() float64 {
		return func() (v float64) {
			h.note(func(w *written) { v = value(w) })
			return v
		}
	}
	inMemory := func(value func() float64) func() float64 {
		return func() float64 {
			h.mu.Lock()
			defer h.mu.Unlock()
			return value()
		}
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	counter := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
	}
	gauge("heddle_history_bytes", "Size of the files of the history of flows.", onDisk(func(w *written) float64 { return float64(w.bytes) }))
	gauge("heddle_history_since_seconds", "The first hour of which something is on disk, in Unix time; 0 when nothing is.", onDisk(func(w *written) float64 {
		if w.oldest.IsZero() {
			return 0
		}
		return float64(w.oldest.Unix())
	}))
	counter("heddle_history_write_failures_total", "Times that news of the history could not be written.", onDisk(func(w *written) float64 { return float64(w.failures) }))
	counter("heddle_history_dropped_files_total", "Files of the history that were dropped for their age, or for want of room.", onDisk(func(w *written) float64 { return float64(w.dropped) }))
	gauge("heddle_history_summaries", "Kinds of connections of this hour.", inMemory(func() float64 {
		if h.hour == nil {
			return 0
		}
		return float64(len(h.hour.sums))
	}))
	counter("heddle_history_left_out_total", "Connections that found no room in the history.", inMemory(func() float64 { return float64(h.leftOut) }))
}
