package route

// of returns the routes for clients of a namespace, "" for those of none; nil when there are none.
func (p *parent) of(namespace string) *site {
	if p == nil {
		return nil
	}
	if s := p.consumers[namespace]; s != nil {
		return s
	}
	return p.producers
}

// Kind returns the kind of the routes that connections to a parent go by, of clients of a namespace ("" for those of
// none). Without routes for these clients, it is false.
func (t *Table) Kind(to Parent, from string) (kind Kind, ok bool) {
	s := t.parents[to].of(from)
	if s == nil {
		return 0, false
	}
	return s.kind, true
}

// Connect decides about a connection to a parent, of a client of a namespace ("" for one of none): Unrouted where no
// TLSRoute or TCPRoute is for it. Name is the server's that its ClientHello asks for, in lower case and
// without a dot at its end; without one, no TLSRoute is for it. A name goes to the route that has it, else to the one that has the longest
// "*." name that it is under; of routes that have the same, to the older, then to the first by namespace and name.
func (t *Table) Connect(to Parent, from, name string) Decision {
	s := t.parents[to].of(from)
	switch {
	case s == nil, s.kind.Requests():
		return Decision{Outcome: Unrouted}
	case s.kind == TLS && name == "":
		return Decision{Outcome: NotFound}
	}
	return s.decide(&Request{To: to, From: from, Host: name, Path: "/"})
}
