package scenario

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/e2e/wire"
)

// How long a world has for what it does, when the text says nothing.
const (
	deployPatience = 2 * time.Minute
	enrollPatience = time.Minute
	flowPatience   = 5 * time.Second // drops are recorded once a second
	heldPatience   = 5 * time.Second
	// programPatience is for a world that is slow to start a program in a pod; the
	// program itself waits for dialPatience.
	programPatience = 30 * time.Second
	pause           = 100 * time.Millisecond // between two tries
)

// marker is what connections send, and what must not be seen on the wire.
const marker = "scenario-marker-5d1c"

// run is a scenario that runs.
type run struct {
	*script.Script
	world World
	trace *Trace
	// labels are the values of heddle.dev/mesh, by workload and for "" the namespace.
	labels   map[string]string
	deployed []string // by now
	// tried is when each pair last began to connect.
	tried   map[script.Pair]time.Time
	held    map[string]*holding
	judging func(marker string, judged netip.Addr) (wire.Findings, error)
}

// Run takes the steps one after the other until one fails, and takes away what they
// made. Its error names the file and the line of that step. The trace has what
// happened, also when all went well.
func Run(ctx context.Context, w World, s *script.Script) (*Trace, error) {
	return runThen(ctx, w, s, settling)
}

// settling is how long after a failure agents may take to record what it was: drops
// are recorded once a second.
const settling = 1500 * time.Millisecond

// runThen is Run, with a time to wait for flows after a failure.
func runThen(ctx context.Context, w World, s *script.Script, settling time.Duration) (*Trace, error) {
	r := &run{
		Script: s, world: w, trace: newTrace(s, w.Name()), labels: map[string]string{},
		tried: map[script.Pair]time.Time{}, held: map[string]*holding{},
	}
	defer r.release()
	failed := r.steps(ctx)
	// What the agents recorded is most wanted after a failure, and then ctx may be over.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if failed != nil {
		time.Sleep(settling)
	}
	r.collect(after)
	if err := r.clear(after); err != nil {
		failed = errors.Join(failed, fmt.Errorf("%s: take the scenario away: %w", s.File, err))
	}
	return r.trace, failed
}

func (r *run) steps(ctx context.Context) error {
	for i := 0; i < len(r.Lines); i++ {
		l := r.Lines[i]
		r.trace.begin(i)
		err := r.take(ctx, i)
		if batch := len(r.DeploysFrom(i)); batch > 1 {
			i += batch - 1 // they were deployed together
		}
		if err != nil {
			r.trace.fail(err)
			return fmt.Errorf("%s:%d: %s: %w", r.File, l.Number, l.Step, err)
		}
	}
	return nil
}

// take takes one step.
func (r *run) take(ctx context.Context, i int) error {
	switch s := r.Lines[i].Step.(type) {
	case *script.Deploy:
		return r.deploy(ctx, i)
	case *script.Enroll:
		return r.enroll(ctx, s)
	case *script.Apply:
		return r.apply(ctx, s)
	case *script.Connect:
		return r.connect(ctx, s)
	case *script.Hold:
		return r.hold(ctx, s)
	case *script.Alive:
		return r.alive(ctx, s)
	case *script.Ended:
		return r.ended(ctx, s)
	case *script.Flow:
		return r.expectFlow(ctx, s)
	case *script.Capture:
		return r.capture(ctx)
	case *script.Wire:
		return r.judge(ctx, s)
	case *script.Agent:
		return r.agent(ctx, s)
	}
	return fmt.Errorf("no world can take the step %q", r.Lines[i].Step)
}

// collect puts into the trace what the agents recorded by now.
func (r *run) collect(ctx context.Context) []Flow {
	flows, err := r.world.Flows(ctx, r.Name)
	if err != nil {
		r.trace.note(script.You, "the flows cannot be had: "+oneLine(err.Error()))
		return nil
	}
	r.trace.addFlows(flows)
	return flows
}

func (r *run) release() {
	for _, h := range r.held {
		h.close()
	}
}

func (r *run) clear(ctx context.Context) error {
	r.release()
	var errs []error
	if r.judging != nil {
		_, err := r.judging(marker, netip.Addr{})
		errs = append(errs, err)
	}
	for _, node := range r.trace.killed() {
		errs = append(errs, r.world.StartAgent(ctx, node))
	}
	return errors.Join(append(errs, r.world.Clear(ctx, r.Name))...)
}

// poll tries until it works, the limit is over, or ctx is. The last try begins when the
// limit is over, so that a slow one is not the only one; without a limit it is the first.
func poll(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	deadline := time.Now().Add(limit)
	for {
		last := limit == 0 || time.Now().After(deadline)
		err := try(ctx)
		if err == nil || last {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// meet waits for an expectation, or has it hold for as long as it must.
func meet(ctx context.Context, s script.Span, unset time.Duration, try func(context.Context) error) error {
	if s.Throughout == 0 {
		return poll(ctx, cmp.Or(s.Within, unset), try)
	}
	for began := time.Now(); ; {
		err := try(ctx)
		if err != nil || time.Since(began) > s.Throughout {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (r *run) deploy(ctx context.Context, at int) error {
	batch := r.DeploysFrom(at)
	ctx, cancel := context.WithTimeout(ctx, deployPatience)
	defer cancel()
	for i, w := range batch {
		r.labels[w.Name] = w.Label
		r.trace.begin(at + i)
		r.trace.arrow(script.You, w.Name, "deploy on "+w.Node)
	}
	if err := r.world.Deploy(ctx, r.Name, batch); err != nil {
		return err
	}
	for _, w := range batch {
		r.deployed = append(r.deployed, w.Name)
		if err := poll(ctx, deployPatience, func(ctx context.Context) error { return r.listens(ctx, w.Name) }); err != nil {
			return fmt.Errorf("workload %s does not listen: %w", w.Name, err)
		}
		r.trace.note(w.Name, "listens")
	}
	return r.awaitEnrolled(ctx)
}

func (r *run) enroll(ctx context.Context, e *script.Enroll) error {
	value, what := "disabled", "out of the mesh"
	if e.In {
		value, what = "enabled", "into the mesh"
	}
	names := e.Names
	if len(names) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		r.labels[name] = value
		text := "the namespace " + what
		if name != "" {
			text = name + " " + what
		}
		r.trace.arrow(script.You, script.Operator, text)
		if err := r.world.Label(ctx, r.Name, name, value); err != nil {
			return err
		}
	}
	return r.awaitEnrolled(ctx)
}

// awaitEnrolled waits until those are in the mesh that labels want there, and no
// others: a pod's own label counts more than its namespace's.
func (r *run) awaitEnrolled(ctx context.Context) error {
	var want []string
	for _, name := range r.deployed {
		label := r.labels[name]
		if label == "enabled" || label == "" && r.labels[""] == "enabled" {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	began := time.Now()
	err := poll(ctx, enrollPatience, func(ctx context.Context) error {
		got, err := r.world.Enrolled(ctx, r.Name)
		if err != nil {
			return err
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("in the mesh are %v, want %v", got, want)
		}
		return nil
	})
	if err == nil && len(r.deployed) > 0 {
		r.trace.note(script.Operator, fmt.Sprintf("in the mesh after %s: %s", brief(time.Since(began)), listed(want)))
	}
	return err
}

func listed(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

func (r *run) apply(ctx context.Context, a *script.Apply) error {
	var what []string
	for _, o := range a.File.Objects {
		what = append(what, o.Kind+" "+o.Name)
	}
	r.trace.arrow(script.You, script.Operator, strings.Join(what, ", "))
	if a.Remove {
		return r.world.Delete(ctx, r.Name, a.File)
	}
	return r.world.Apply(ctx, r.Name, a.File)
}

func (r *run) capture(ctx context.Context) (err error) {
	r.judging, err = r.world.Capture(ctx)
	return err
}

func (r *run) judge(ctx context.Context, j *script.Wire) error {
	addr, err := r.world.Address(ctx, r.Name, j.Workload)
	if err != nil {
		return err
	}
	stop := r.judging
	r.judging = nil
	found, err := stop(marker, addr)
	if err != nil {
		return err
	}
	r.trace.note(j.Workload, "on the wire: "+found.String())
	var ok bool
	switch j.Verdict {
	case script.WireEncrypted:
		ok = found.Markers == 0 && found.PlaintextBytes == 0 && found.TLSBytes > 0
	case script.WireMixed:
		ok = found.Markers == 0 && found.PlaintextBytes > 0 && found.TLSBytes > 0
	case script.WirePlaintext:
		ok = found.Markers > 0
	}
	if !ok {
		return fmt.Errorf("the wire is not %s: %s %v", j.Verdict, found, found.PlaintextFlows)
	}
	return nil
}

func (r *run) agent(ctx context.Context, a *script.Agent) error {
	if a.Start {
		r.trace.arrow(script.You, agentOf(a.Node), "start")
		began := time.Now()
		if err := r.world.StartAgent(ctx, a.Node); err != nil {
			return err
		}
		r.trace.alive(a.Node, true)
		r.trace.note(agentOf(a.Node), "answers after "+brief(time.Since(began)))
		return nil
	}
	r.collect(ctx) // its records go with it
	r.trace.arrow(script.You, agentOf(a.Node), "kill -9")
	r.trace.alive(a.Node, false)
	return r.world.KillAgent(ctx, a.Node)
}

func (r *run) expectFlow(ctx context.Context, e *script.Flow) error {
	return meet(ctx, e.Span, flowPatience, func(ctx context.Context) error {
		return r.findFlow(ctx, e.Pair, r.tried[e.Pair], e.Fields)
	})
}

// findFlow is nil when there is such a flow of a pair that began after since.
func (r *run) findFlow(ctx context.Context, who script.Pair, since time.Time, fields map[string]string) error {
	from, err := r.world.Address(ctx, r.Name, who.Client)
	if err != nil {
		return err
	}
	to, err := r.world.Address(ctx, r.Name, who.Target)
	if err != nil {
		return err
	}
	flows, err := r.world.Flows(ctx, r.Name)
	if err != nil {
		return err
	}
	r.trace.addFlows(flows)
	var others []string
	for _, f := range flows {
		if f.Time.Before(since.Add(-clockSlack)) || f.Source.addr() != from || !r.reaches(f, who, to) {
			continue
		}
		if r.fits(f, fields) {
			return nil
		}
		others = append(others, f.String())
	}
	if len(others) == 0 {
		return fmt.Errorf("no agent recorded a flow of %s", who)
	}
	return fmt.Errorf("no flow of %s is so; recorded are: %s", who, strings.Join(others, "; "))
}

// clockSlack is how far the kernel's clock, which drops have, may be from ours.
const clockSlack = 100 * time.Millisecond

func (r *run) reaches(f Flow, who script.Pair, to netip.Addr) bool {
	return f.Destination.addr() == to && f.Destination.port() == who.Port ||
		f.Service == r.Name+"/"+who.Target
}

func (r *run) fits(f Flow, fields map[string]string) bool {
	identity := func(id, want string) bool {
		if want == script.Nobody {
			return id == ""
		}
		return strings.HasSuffix(id, "/ns/"+r.Name+"/sa/"+want)
	}
	for key, want := range fields {
		fits := true
		switch key {
		case "verdict":
			fits = f.Verdict == want
		case "reason":
			fits = f.Reason == want
		case "direction":
			fits = f.Direction == want
		case "transport":
			fits = f.Transport == want
		case "policy":
			fits = f.Policy == r.Name+"/"+want
		case "node":
			fits = f.Node == want
		case "source":
			fits = identity(f.Source.Identity, want)
		case "destination":
			fits = identity(f.Destination.Identity, want)
		}
		if !fits {
			return false
		}
	}
	return true
}
