package script

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Script is one scenario.
type Script struct {
	// Name is the file's name without its ending, and the namespace of all that the
	// scenario makes.
	Name string
	// File is the path that errors name.
	File  string
	Lines []Line
}

// Line is one step and where it stands.
type Line struct {
	Number int // from 1
	Step   Step
}

// Step is one thing to do or to expect: a pointer to one of this package's types.
// String returns it as the language has it.
type Step interface {
	fmt.Stringer
	// expects reports whether the step can find the mesh at fault.
	expects() bool
}

func (*Deploy) expects() bool  { return false }
func (*Enroll) expects() bool  { return false }
func (*Apply) expects() bool   { return false }
func (*Agent) expects() bool   { return false }
func (*Hold) expects() bool    { return false }
func (*Capture) expects() bool { return false }
func (*Connect) expects() bool { return true }
func (*Alive) expects() bool   { return true }
func (*Ended) expects() bool   { return true }
func (*Flow) expects() bool    { return true }
func (*Wire) expects() bool    { return true }

// The actors that every drawing may have, beside workloads and agents.
const (
	You      = "you" // who runs the steps
	Operator = "operator"
)

// Nodes are the names of the nodes that every world has.
func Nodes() []string { return []string{"n1", "n2"} }

// Workload is one that a scenario deploys.
type Workload struct {
	Name, Node string
	// Label is the value of heddle.dev/mesh; "" for none.
	Label string
}

// File is one of a scenario's files.
type File struct {
	Name    string
	Objects []Object
}

// Object is a Kubernetes object; its namespace is the scenario's.
type Object struct {
	Kind, Name string
	// Fields are the whole object, as decoded JSON.
	Fields map[string]any
}

// String returns the steps, one a line.
func (s *Script) String() string {
	var out strings.Builder
	for _, l := range s.Lines {
		fmt.Fprintln(&out, l.Step)
	}
	return out.String()
}

// Span says how long an expectation is waited for, or must hold.
type Span struct {
	Within, Throughout time.Duration
}

func (s Span) String() string {
	switch {
	case s.Within > 0:
		return " within " + s.Within.String()
	case s.Throughout > 0:
		return " for " + s.Throughout.String()
	}
	return ""
}

// Deploy starts a workload.
type Deploy struct{ Workload }

func (d *Deploy) String() string {
	text := "deploy " + d.Name + " on " + d.Node
	if d.Label != "" {
		text += " outside"
	}
	return text
}

// Enroll takes workloads, or the namespace when there are none, into the mesh or
// out of it.
type Enroll struct {
	In    bool
	Names []string // of workloads
}

func (e *Enroll) String() string {
	verb := "unenroll"
	if e.In {
		verb = "enroll"
	}
	return strings.Join(append([]string{verb}, e.Names...), " ")
}

// Apply makes the objects of a file, or takes them away.
type Apply struct {
	File   File
	Remove bool
}

func (a *Apply) String() string {
	if a.Remove {
		return "delete " + a.File.Name
	}
	return "apply " + a.File.Name
}

// Pair is who connects to whom.
type Pair struct {
	// Client is a workload, Target a workload or a Service.
	Client, Target string
	Port           uint16
}

func (p Pair) String() string {
	return p.Client + " " + p.Target + ":" + strconv.Itoa(int(p.Port))
}

// Connect opens a connection of its own.
type Connect struct {
	Pair
	Echo   bool
	Reason string // of a refusal; "" for any
	Span
}

func (c *Connect) String() string {
	text := "connect " + c.Pair.String() + " refused"
	if c.Echo {
		text = "connect " + c.Pair.String() + " echo"
	}
	if c.Reason != "" {
		text += " " + c.Reason
	}
	return text + c.Span.String()
}

// Hold opens a connection that stays.
type Hold struct {
	ID string
	Pair
}

func (h *Hold) String() string { return "hold " + h.ID + " " + h.Pair.String() }

// Alive says that a held connection answers.
type Alive struct {
	ID string
	Span
}

func (a *Alive) String() string { return "alive " + a.ID + a.Span.String() }

// Ended says that a held connection is no more.
type Ended struct {
	ID string
	Span
}

func (e *Ended) String() string { return "ended " + e.ID + e.Span.String() }

// Flow says that the agents recorded a flow.
type Flow struct {
	Pair
	Fields map[string]string // by the names of flowFields
	Span
}

func (e *Flow) String() string {
	text := "flow " + e.Pair.String()
	for _, key := range flowFields() {
		if value, ok := e.Fields[key]; ok {
			text += " " + key + "=" + value
		}
	}
	return text + e.Span.String()
}

// flowFields are what a flow can be asked for, in the order in which they print.
func flowFields() []string {
	return []string{"verdict", "reason", "direction", "transport", "policy", "source", "destination", "node"}
}

// Capture starts to record the wire.
type Capture struct{}

func (*Capture) String() string { return "capture" }

// Wire ends the capture and says what was on the wire.
type Wire struct{ Verdict, Workload string }

func (j *Wire) String() string { return "wire " + j.Verdict + " " + j.Workload }

// What a wire can be judged; WireVerdicts are all of them.
const (
	WireEncrypted = "encrypted" // TLS, and not one byte of plaintext
	WireMixed     = "mixed"     // what was held is plaintext, what connected is TLS
	WirePlaintext = "plaintext" // what connected is plaintext
)

// WireVerdicts returns every verdict.
func WireVerdicts() []string { return []string{WireEncrypted, WireMixed, WirePlaintext} }

// Agent kills the agent of a node, or starts it again.
type Agent struct {
	Node  string
	Start bool
}

func (a *Agent) String() string {
	if a.Start {
		return "start agent on " + a.Node
	}
	return "kill agent on " + a.Node
}

// Workloads are all that the script deploys, in the order of its lines.
func (s *Script) Workloads() []Workload {
	var all []Workload
	for _, l := range s.Lines {
		if d, ok := l.Step.(*Deploy); ok {
			all = append(all, d.Workload)
		}
	}
	return all
}

// KillsAgents reports whether the script does to the mesh what others would feel that
// run beside it.
func (s *Script) KillsAgents() bool {
	return slices.ContainsFunc(s.Lines, func(l Line) bool { _, kills := l.Step.(*Agent); return kills })
}

// DeploysFrom are the workloads that are deployed by the lines that follow each
// other from an index on.
func (s *Script) DeploysFrom(i int) []Workload {
	var batch []Workload
	for _, l := range s.Lines[i:] {
		d, ok := l.Step.(*Deploy)
		if !ok {
			break
		}
		batch = append(batch, d.Workload)
	}
	return batch
}
