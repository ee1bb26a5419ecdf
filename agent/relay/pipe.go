package relay

import "golang.org/x/sys/unix"

// takePipe returns an empty pipe, or nil when the limit is reached or the
// process has no descriptors left: the caller copies instead.
func (r *Relay) takePipe() *pipe {
	r.pipes.Lock()
	defer r.pipes.Unlock()
	if n := len(r.pipes.free); n > 0 {
		p := r.pipes.free[n-1]
		r.pipes.free = r.pipes.free[:n-1]
		return p
	}
	if r.pipes.open >= r.pipes.limit {
		return nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	// A smaller pipe works too: the kernel may refuse when its own bound on
	// pipe memory is reached (fs/pipe.c).
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeBytes)
	r.pipes.open++
	return &pipe{r: fds[0], w: fds[1]}
}

// givePipe takes back an empty pipe.
func (r *Relay) givePipe(p *pipe) {
	r.pipes.Lock()
	defer r.pipes.Unlock()
	r.pipes.free = append(r.pipes.free, p)
}

// dropPipe closes a pipe that has bytes left in it.
func (r *Relay) dropPipe(p *pipe) {
	r.pipes.Lock()
	defer r.pipes.Unlock()
	r.pipes.open--
	p.close()
}

// close closes both ends. Nothing is lost by an error: nobody else has them.
func (p *pipe) close() {
	_ = unix.Close(p.r) // see above
	_ = unix.Close(p.w) // see above
}
