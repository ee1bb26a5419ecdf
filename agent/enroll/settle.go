package enroll

import (
	"maps"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// forgive is how long a pod must have been left alone for what it did before to
// count no more.
const forgive = time.Minute

// quickly bounds the stay of a pod that refuses plaintext: those who know already
// that it is to leave send it nothing else, and do not reach it meanwhile.
const quickly = time.Second

// settling slows down pods that leave the mesh again and again, as when two
// programs fight over a label: joining is never slowed, since that would leave
// the pod open.
type settling struct {
	longest time.Duration
	pods    map[mesh.Key]*leaving
	begun   []stay
}

// stay is the time that a pod is kept for which is to leave.
type stay struct {
	key   mesh.Key
	times int // that it was to leave, this one too
	lasts time.Duration
}

// leaving is one pod's record.
type leaving struct {
	times int
	last  time.Time
	now   bool // it is to leave, and last is since when
	told  time.Time
}

// leave returns how long a pod stays that is not desired any more: not at all the
// first time within a minute, a second the next time, then, unless it refuses
// plaintext, twice as long each time.
func (s *settling) leave(key mesh.Key, now time.Time, refuses bool) time.Duration {
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
	lasts := min(time.Second<<min(l.times-2, 10), s.longest)
	if refuses {
		lasts = min(lasts, quickly)
	}
	if now.Sub(l.told) > forgive {
		l.told = now
		s.begun = append(s.begun, stay{key, l.times, lasts})
	}
	return l.last.Add(lasts).Sub(now)
}

// gone forgets a pod that does not run.
func (s *settling) gone(key mesh.Key) { delete(s.pods, key) }

// refusesPlaintext reports whether any port of a workload does.
func refusesPlaintext(w *mesh.Workload) bool {
	for _, mode := range w.PortModes {
		if mode == mesh.ModeStrict {
			return true
		}
	}
	return w.Mode == mesh.ModeStrict
}

// news returns the stays that have begun since it was asked before, of each pod one in a
// minute at most.
func (s *settling) news() []stay {
	begun := s.begun
	s.begun = nil
	return begun
}

// back says that a pod is desired.
func (s *settling) back(key mesh.Key) {
	if l := s.pods[key]; l != nil {
		l.now = false
	}
}
