package history

import "time"

// steadyEnough is how long a node's clock must have gone without being set before files
// go for their age. A machine without a clock of its own begins at some date of the past
// until NTP answers, and one that a hypervisor resumes may be days ahead for a while.
const steadyEnough = time.Hour

// maxStep is by how much the clock may part from the monotonic one between two looks
// without having been set: NTP slews it by 1.8 s an hour at most.
const maxStep = time.Minute

// clock watches whether the time of day goes as the monotonic one does. Its zero value
// has not looked yet.
type clock struct {
	looked bool
	wall   time.Time
	ran    time.Duration
	since  time.Duration
}

// steady returns for how long, as far as it looked, nobody has set the clock whose time
// is now. ran is the monotonic clock's.
func (c *clock) steady(now time.Time, ran time.Duration) time.Duration {
	now = now.Round(0) // without it, Sub would compare monotonic readings
	if step := now.Sub(c.wall) - (ran - c.ran); !c.looked || step.Abs() > maxStep {
		c.since = ran
	}
	c.looked, c.wall, c.ran = true, now, ran
	return ran - c.since
}
