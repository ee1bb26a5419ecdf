package eventloop

import "time"

// Timer calls a function on the loop's goroutine. It lives inside of what it
// serves: setting it allocates nothing. The zero value is off; it must not be
// copied while it is set.
type Timer struct {
	at    time.Time
	fire  func()
	index int // 1 + its place in the heap; 0 when off
}

// Set makes t call fire at the given time, in place of what it was set to.
func (l *Loop) Set(t *Timer, at time.Time, fire func()) {
	l.Clear(t)
	t.at, t.fire = at, fire
	l.timers = append(l.timers, t)
	t.index = len(l.timers)
	l.timers.up(len(l.timers) - 1)
}

// SetAfter is Set with a duration from now.
func (l *Loop) SetAfter(t *Timer, d time.Duration, fire func()) { l.Set(t, l.now.Add(d), fire) }

// Clear turns t off.
func (l *Loop) Clear(t *Timer) {
	if t.index > 0 {
		l.timers.remove(t.index - 1)
	}
}

// IsSet says whether t will fire.
func (t *Timer) IsSet() bool { return t.index > 0 }

// Left is the time until t fires, at least 0; 0 too when it is off.
func (l *Loop) Left(t *Timer) time.Duration {
	if !t.IsSet() {
		return 0
	}
	return max(0, t.at.Sub(l.now))
}

// timerHeap has the next timer first.
type timerHeap []*Timer

func (h timerHeap) next() (time.Time, bool) {
	if len(h) == 0 {
		return time.Time{}, false
	}
	return h[0].at, true
}

// run fires what is due. A timer may set and clear others.
func (h *timerHeap) run(now time.Time) {
	for len(*h) > 0 && !(*h)[0].at.After(now) {
		t := (*h)[0]
		h.remove(0)
		t.fire()
	}
}

func (h *timerHeap) remove(i int) {
	s := *h
	last := len(s) - 1
	s[i].index = 0
	if i != last {
		s[i] = s[last]
		s[i].index = i + 1
	}
	s[last] = nil
	*h = s[:last]
	if i != last {
		h.down(i)
		h.up(i)
	}
}

func (h timerHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

func (h timerHeap) up(i int) {
	for i > 0 && h[i].at.Before(h[(i-1)/2].at) {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (h timerHeap) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
			if h[c].at.Before(h[least].at) {
				least = c
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}
