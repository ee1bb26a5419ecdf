package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Passages counts the connections that go by one route to one backend.
type Passages struct {
	carried, refused prometheus.Counter
	epoch            int // of the metrics, when it was looked up last; 0 of those that stay
}

// Passages returns those of a route and a backend, of at most MaxSeries pairs. As of Series, pairs of earlier routes make
// room for later ones.
func (m *Metrics) Passages(route, backend string) *Passages {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{route, backend}
	if p := m.passed[key]; p != nil {
		if p.epoch > 0 {
			p.epoch = m.epoch
		}
		return p
	}
	if len(m.passed) > MaxSeries {
		m.forgetPassagesLocked()
	}
	if len(m.passed) > MaxSeries {
		return m.passed[[2]string{Other, Other}]
	}
	p := &Passages{epoch: m.epoch, carried: m.passages.WithLabelValues(backend, Carried, route), refused: m.passages.WithLabelValues(backend, Refused, route)}
	m.passed[key] = p
	return p
}

// forgetPassagesLocked forgets those that nobody has looked up since the routes changed. The caller holds mu.
func (m *Metrics) forgetPassagesLocked() {
	for key, p := range m.passed {
		if p.epoch != m.epoch && p.epoch != 0 {
			delete(m.passed, key)
			m.passages.DeleteLabelValues(key[1], Carried, key[0])
			m.passages.DeleteLabelValues(key[1], Refused, key[0])
		}
	}
}

// Ended counts a connection.
func (p *Passages) Ended(refused bool) {
	if refused {
		p.refused.Inc()
		return
	}
	p.carried.Inc()
}
