package frozen

// Obstacle says what keeps a connection from moving to another process now.
type Obstacle int

// The obstacles.
const (
	None     Obstacle = iota
	Opening           // its beginning, its end, or an answer to a CONNECT is awaited
	Deciding          // a stream's owner decides, or what came before its reset is delivered; Hold keeps the peer from adding to these
	Owned             // a stream's owner stays
)
