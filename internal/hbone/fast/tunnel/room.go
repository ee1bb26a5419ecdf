package tunnel

// Room is how many streams the peer takes besides, of how many at once.
func (c *Conn) Room() (left, limit int) {
	return max(0, c.flow.streams-len(c.streams)), c.flow.streams
}
