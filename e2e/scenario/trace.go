package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// agentOf is how a drawing calls the agent of a node.
func agentOf(node string) string { return "agent " + node }

// Trace is what happened while a scenario ran. It is written by the scenario's
// goroutine; Draw may be called when Run has returned.
type Trace struct {
	script *script.Script
	world  string
	now    func() time.Time
	began  time.Time
	step   int // index of the step that runs; -1 before the first
	events []event
	flows  map[flowKey]Flow
	gone   map[string]bool // nodes whose agent is killed
	failed *failure
}

// event is one row of a drawing.
type event struct {
	at       time.Time
	step     int
	from, to string // the same for a note
	text     string
	// cut is set when the arrow does not arrive.
	cut bool
	// count is how often it happened in a row, until last; 0 is once.
	count int
	last  time.Time
}

type failure struct {
	at   time.Time
	step int
	err  error
}

// flowKey tells flows apart: an agent that is restarted counts anew.
type flowKey struct {
	node, direction, reason, source, destination string
	at                                           int64
}

func newTrace(s *script.Script, world string) *Trace {
	t := &Trace{script: s, world: world, now: time.Now, step: -1, flows: map[flowKey]Flow{}, gone: map[string]bool{}}
	t.began = t.now()
	return t
}

func (t *Trace) add(e event) {
	e.at, e.step = t.now(), t.step
	t.events = append(t.events, e)
}

// begin says that a step begins.
func (t *Trace) begin(step int) {
	if t.step == step {
		return
	}
	t.step = step
	t.add(event{})
}

// arrow says that something goes from one actor to another, note that something is
// so at one, and cut that something went and did not arrive.
func (t *Trace) arrow(from, to, text string) { t.add(event{from: from, to: to, text: text}) }
func (t *Trace) note(at, text string)        { t.arrow(at, at, text) }
func (t *Trace) cut(from, to, text string) {
	t.add(event{from: from, to: to, text: text, cut: true})
}

func (t *Trace) fail(err error) { t.failed = &failure{t.now(), t.step, err} }

// alive says whether the agent of a node lives.
func (t *Trace) alive(node string, lives bool) { t.gone[node] = !lives }

// killed are the nodes whose agent does not live.
func (t *Trace) killed() []string {
	return slices.DeleteFunc(script.Nodes(), func(node string) bool { return !t.gone[node] })
}

// addFlows adds the flows that began after the scenario did, each once.
func (t *Trace) addFlows(flows []Flow) {
	for _, f := range flows {
		if f.Time.Before(t.began.Add(-clockSlack)) {
			continue
		}
		t.flows[flowKey{f.Node, f.Direction, f.Reason, f.Source.Address, f.Destination.Address, f.Time.UnixNano()}] = f
	}
}

// String is the flow in short, with what its ends have proved to be.
func (f Flow) String() string {
	text := f.Direction + " " + f.Verdict + " " + f.Reason
	if f.Policy != "" {
		text += " of " + f.Policy
	}
	if f.Transport != "" && f.Transport != script.Nobody {
		text += ", " + f.Transport
	}
	text += ", " + f.Source.name() + " → " + f.Destination.name()
	if f.Packets > 0 {
		text += fmt.Sprintf(", %d packets", f.Packets)
	}
	return text
}

// name is what a reader knows an end by.
func (e Endpoint) name() string {
	name := e.Workload
	if name == "" {
		name = e.Address
	}
	if _, path, ok := strings.Cut(strings.TrimPrefix(e.Identity, "spiffe://"), "/"); ok {
		return name + " (" + path + ")"
	}
	return name + " (no identity)"
}

// events of flows: what is let through goes on, what is not ends at the agent.
func (t *Trace) flowEvent(f Flow) event {
	self := agentOf(f.Node)
	e := event{at: f.Time, step: t.stepAt(f.Time), from: self, to: self, text: "flow: " + f.String()}
	source, known := t.workload(f.Source.Workload)
	target, reached := t.workload(f.Destination.Workload)
	switch {
	case f.Verdict == "deny" && known:
		e.from, e.cut = source.Name, true
	case f.Verdict == "deny":
		e.cut = true
	case f.Direction == "outbound" && reached && target.Node != f.Node:
		e.to = agentOf(target.Node)
	case reached:
		e.to = target.Name
	}
	return e
}

func (t *Trace) workload(key string) (script.Workload, bool) {
	all := t.script.Workloads()
	i := slices.IndexFunc(all, func(w script.Workload) bool { return t.script.Name+"/"+w.Name == key })
	if i < 0 {
		return script.Workload{}, false
	}
	return all[i], true
}

// stepAt is the step that ran at a time.
func (t *Trace) stepAt(at time.Time) int {
	step := -1
	for _, e := range t.events {
		if e.from == "" && !e.at.After(at) {
			step = e.step
		}
	}
	return step
}

// rows are all events and flows in order of time, with what happened again and
// again in one step as one.
func (t *Trace) rows() []event {
	var happened []event
	for _, e := range t.events {
		happened = append(happened, e)
		happened = foldPair(happened)
	}
	flows := make([]event, 0, len(t.flows))
	for _, f := range t.flows {
		flows = append(flows, t.flowEvent(f))
	}
	byTime := func(a, b event) int { return a.at.Compare(b.at) }
	slices.SortFunc(flows, func(a, b event) int {
		if order := byTime(a, b); order != 0 {
			return order
		}
		return strings.Compare(a.text+a.from, b.text+b.from)
	})
	all := append(happened, foldEqual(flows)...)
	slices.SortStableFunc(all, byTime)
	return all
}

// same reports whether two events differ by their times alone.
func (e event) same(o event) bool {
	return e.step == o.step && e.from == o.from && e.to == o.to && e.cut == o.cut && withoutTime(e.text) == withoutTime(o.text) && e.from != ""
}

func withoutTime(text string) string {
	before, _, _ := strings.Cut(text, " after ")
	return before
}

// foldPair folds the last two events into the two before them, when they are the
// same try with the same outcome.
func foldPair(events []event) []event {
	n := len(events)
	if n < 4 || !events[n-4].same(events[n-2]) || !events[n-3].same(events[n-1]) {
		return events
	}
	for i := n - 2; i < n; i++ {
		events[i-2].again(events[i])
	}
	return events[:n-2]
}

func (e *event) again(o event) {
	e.count, e.last = max(e.count, 1)+1, o.at
}

// foldEqual folds events into an equal one of the same step.
func foldEqual(events []event) []event {
	var out []event
	for _, e := range events {
		if i := slices.IndexFunc(out, e.same); i >= 0 {
			out[i].again(e)
			continue
		}
		out = append(out, e)
	}
	return out
}
