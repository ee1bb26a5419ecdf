package serve

// A WebSocket of a client that speaks HTTP/1.1 whose workload speaks HTTP/2 is a stream that package h2 carries, from its grant on
// as before. Each direction ends by itself: the client's FIN is the stream's END_STREAM, and the other way round; a RST of either is one
// of both (RFC 8441 section 5). No timeout is about it, as of what is relayed.

// between does all that can be done now of what goes to and fro.
func (h *h1) between() {
	c := h.c
	h.fromClient()
	if c.Broken() || c.Refused() {
		c.refused()
		return
	}
	if c.EOF() && len(c.In) == 0 && !h.spoken && h.carried != nil {
		h.spoken = true
		h.carried.BodyEnd(nil)
	}
	if h.carried != nil {
		h.carried.Step()
	}
	switch {
	case c.stage != active || !h.answered:
	case h.carried == nil: // both have ended it, or nobody hears the client any more
		c.end()
	case len(c.Out) == 0 && !c.shut:
		c.shut = true
		c.CloseWrite()
	}
}

// fromClient hands on what the client sends.
func (h *h1) fromClient() {
	for c := h.c; h.carried != nil && c.budget > 0; {
		if h.stalled = h.carried.Waiting() >= c.w.backlog(); h.stalled {
			return
		}
		data, kept := c.read()
		if len(data) == 0 {
			return
		}
		h.carried.Got(len(data))
		h.carried.Body(data)
		c.used(data, kept, len(data))
	}
}
