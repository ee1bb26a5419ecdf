package frozen

// Obstacle says what keeps a connection from moving to another process now.
type Obstacle int

// The obstacles.
const (
	None       Obstacle = iota
	Opening             // its beginning, its end, or an answer to a CONNECT is awaited
	Deciding            // a stream's owner decides; Hold keeps the peer from adding to these
	Delivering          // what came before a stream's reset is delivered, which nothing makes faster
	Owned               // a stream's owner stays
)
