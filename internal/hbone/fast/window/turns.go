package window

const (
	// record is what a full record carries of a stream.
	record = 1<<14 - 9
	// firstBytes is how much may be read of who is not known for a large flow.
	firstBytes = 2 * record
	// quantumBytes is how much a large flow may read before others have, turnBytes
	// how much all large flows may in a turn: who comes between two turns waits
	// for no more. What is left of them below leastBytes is not worth a read.
	quantumBytes, turnBytes, leastBytes = 8 * record, 16 * record, 4 << 10
	// sharedBytes is both of these for sharedTurns after a message.
	sharedBytes, sharedTurns = 2 * record, 16
	// largeBytes at once make a large flow. It is one until it has read less
	// forgetAfter times in a row.
	largeBytes, forgetAfter = record, 8
)

// Reader is what waits in a Queue for its turn. Read reads up to most bytes, and
// says how many these were and whether there may be more at once.
type Reader interface {
	comparable
	Place() *Place
	Read(most int) (n int, more bool)
}

// Place is a Reader's in a Queue. The zero value is ready.
type Place struct {
	queued bool
	large  uint8 // as many times it may read little, and is a large flow yet
}

// IsLarge says that the reader is a large flow.
func (p *Place) IsLarge() bool { return p.large > 0 }

// took takes note of what was read, and says whether it was a message.
func (p *Place) took(n int) bool {
	switch {
	case n >= largeBytes:
		p.large = forgetAfter
	case n > 0 && p.large > 0:
		p.large--
	}
	return n > 0 && p.large == 0
}

// Queue is a loop's readers that have something to read. It says which of them
// read in a turn, and how much: those that send messages first, and then large
// flows by deficit round robin (ADR 0023). The zero value is ready.
type Queue[R Reader] struct {
	messages, before []R // before is the list before, to be used again
	large            []R // in their order
	shared           int // turns for which large flows are taken to have neighbours
}

// Add queues a reader, once.
func (q *Queue[R]) Add(r R) {
	p := r.Place()
	if p.queued {
		return
	}
	if p.queued = true; p.IsLarge() {
		q.large = append(q.large, r)
	} else {
		q.messages = append(q.messages, r)
	}
}

// Waits says that somebody waits for the next turn.
func (q *Queue[R]) Waits() bool { return len(q.messages) > 0 || len(q.large) > 0 }

// Turn lets each read that sends messages, and then large flows.
func (q *Queue[R]) Turn() {
	q.shared = max(0, q.shared-1)
	messages := q.messages
	q.messages = q.before[:0]
	for _, r := range messages {
		q.read(r, firstBytes)
	}
	clear(messages)
	q.before = messages
	quantum, left := quantumBytes, turnBytes
	if q.shared > 0 {
		quantum, left = sharedBytes, sharedBytes
	}
	done := 0
	for n := len(q.large); done < n && left >= leastBytes; done++ { // reading may add to them
		left -= q.read(q.large[done], min(quantum, left))
	}
	rest := copy(q.large, q.large[done:])
	clear(q.large[rest:])
	q.large = q.large[:rest]
}

// read lets one read, and queues it behind the others when there is more.
func (q *Queue[R]) read(r R, most int) int {
	p := r.Place()
	p.queued = false
	n, more := r.Read(most)
	if p.took(n) {
		q.shared = sharedTurns
	}
	if more {
		q.Add(r)
	}
	return n
}
