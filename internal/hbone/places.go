package hbone

// Places bounds the tunnel connections of a pod, those that it opens and those that it
// accepts, from before their handshake on: each takes a socket of its agent. Its methods
// are called by any goroutine.
type Places interface {
	// Take takes a place, or says by an error that matches ErrLimit why there is none.
	Take() error
	// Keep takes one for a connection that was let in before, by another process.
	Keep()
	// Give gives one back.
	Give()
}

// WithPlaces bounds tunnel connections beside bytes, which no connection has taken any of
// yet. It returns m.
func (m *Memory) WithPlaces(p Places) *Memory {
	m.places = p
	return m
}

// Open accounts for a tunnel connection, or refuses it with ErrLimit.
func (m *Memory) Open() error {
	if m == nil || m.places == nil {
		return nil
	}
	return m.places.Take()
}

// Within has a connection opened with a place, which is given back when that fails.
func (m *Memory) Within(open func() error) error {
	if err := m.Open(); err != nil {
		return err
	}
	err := open()
	if err != nil {
		m.Closed()
	}
	return err
}

// Opened accounts for a tunnel connection that another process has let in.
func (m *Memory) Opened() {
	if m != nil && m.places != nil {
		m.places.Keep()
	}
}

// Closed is the end of what Open or Opened has accounted for.
func (m *Memory) Closed() {
	if m != nil && m.places != nil {
		m.places.Give()
	}
}
