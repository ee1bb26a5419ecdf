package identity

import (
	"container/heap"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// urgency orders what is due at the same time.
type urgency uint8

const (
	// urgencyFresh: no valid certificate; connections wait for it.
	urgencyFresh urgency = iota
	// urgencyRenewal: there is one, and time.
	urgencyRenewal
)

type task struct {
	id      spiffeid.ID
	urgency urgency
	due     time.Time
	index   int // in the heap that it is in
	ready   bool
}

// queue is a priority queue with one task per identity. Tasks wait ordered by
// due; those that are due are ready, ordered by urgency and then by due. It is
// not safe for concurrent use.
type queue struct {
	byID    map[spiffeid.ID]*task
	waiting taskHeap
	ready   taskHeap
}

func newQueue() *queue {
	byDue := func(a, b *task) bool { return a.due.Before(b.due) }
	return &queue{
		byID:    map[spiffeid.ID]*task{},
		waiting: taskHeap{less: byDue},
		ready: taskHeap{less: func(a, b *task) bool {
			if a.urgency != b.urgency {
				return a.urgency < b.urgency
			}
			return byDue(a, b)
		}},
	}
}

// set puts id's task in, in place of an earlier one.
func (q *queue) set(id spiffeid.ID, u urgency, due time.Time) {
	q.remove(id)
	t := &task{id: id, urgency: u, due: due}
	q.byID[id] = t
	heap.Push(&q.waiting, t)
}

func (q *queue) has(id spiffeid.ID) bool { return q.byID[id] != nil }

func (q *queue) remove(id spiffeid.ID) {
	t := q.byID[id]
	if t == nil {
		return
	}
	delete(q.byID, id)
	if t.ready {
		heap.Remove(&q.ready, t.index)
	} else {
		heap.Remove(&q.waiting, t.index)
	}
}

// pop takes the most urgent of the tasks that are due at now.
func (q *queue) pop(now time.Time) (spiffeid.ID, bool) {
	for len(q.waiting.tasks) > 0 && !q.waiting.tasks[0].due.After(now) {
		t := heap.Pop(&q.waiting).(*task)
		t.ready = true
		heap.Push(&q.ready, t)
	}
	if len(q.ready.tasks) == 0 {
		return spiffeid.ID{}, false
	}
	t := heap.Pop(&q.ready).(*task)
	delete(q.byID, t.id)
	return t.id, true
}

// next returns when the next waiting task is due; false when none waits. Tasks
// that are ready already do not count.
func (q *queue) next() (time.Time, bool) {
	if len(q.waiting.tasks) == 0 {
		return time.Time{}, false
	}
	return q.waiting.tasks[0].due, true
}

// taskHeap is a container/heap of tasks.
type taskHeap struct {
	tasks []*task
	less  func(a, b *task) bool
}

func (h *taskHeap) Len() int           { return len(h.tasks) }
func (h *taskHeap) Less(i, j int) bool { return h.less(h.tasks[i], h.tasks[j]) }
func (h *taskHeap) Swap(i, j int) {
	h.tasks[i], h.tasks[j] = h.tasks[j], h.tasks[i]
	h.tasks[i].index, h.tasks[j].index = i, j
}

func (h *taskHeap) Push(x any) {
	t := x.(*task)
	t.index = len(h.tasks)
	h.tasks = append(h.tasks, t)
}

func (h *taskHeap) Pop() any {
	last := len(h.tasks) - 1
	t := h.tasks[last]
	h.tasks[last] = nil
	h.tasks = h.tasks[:last]
	return t
}
