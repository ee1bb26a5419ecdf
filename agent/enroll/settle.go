package enroll

import (
	"maps"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// forgive is how long a pod must have been left alone for what it did before to
// count no more.
const forgive = time.Minute

// settling slows down pods that leave the mesh again and again, as when two
// programs fight over a label: joining is never slowed, since that would leave
// the pod open.
type settling struct {
	longest time.Duration
	pods    map[mesh.Key]*leaving
}

// leaving is one pod's record.
type leaving struct {
	times int
	last  time.Time
	now   bool // it is to leave, and last is since when
}

// leave returns how long a pod stays that is not desired any more: not at all the
// first time within a minute, a second the next time, then twice as long each
// time. One that does not run leaves at once.
func (s *settling) leave(key mesh.Key, now time.Time, runs bool) time.Duration {
	if !runs {
		delete(s.pods, key)
		return 0
	}
	l := s.pods[key]
	if l == nil {
		maps.DeleteFunc(s.pods, func(_ mesh.Key, l *leaving) bool { return now.Sub(l.last) > forgive+s.longest })
		l = &leaving{}
		s.pods[key] = l
	}
	if !l.now {
		if now.Sub(l.last) > forgive+s.longest {
			l.times = 0
		}
		l.now, l.last = true, now
		l.times++
	}
	if l.times < 2 {
		return 0
	}
	return l.last.Add(min(time.Second<<min(l.times-2, 10), s.longest)).Sub(now)
}

// back says that a pod is desired.
func (s *settling) back(key mesh.Key) {
	if l := s.pods[key]; l != nil {
		l.now = false
	}
}
