package script

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The bounds of a text.
const (
	maxText      = 64 << 10 // bytes
	maxSteps     = 200
	maxWorkloads = 16
	maxSpan      = 2 * time.Minute
)

var nameForm = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$`)

const nameRemedy = "write 1 to 20 lower-case letters, digits and hyphens, a letter first"

// Parse reads a scenario. file is its path: what stands before ".txtar" is the
// scenario's name. The error joins every problem of the text, each with the file,
// the line and a remedy.
func Parse(file string, text []byte) (*Script, error) {
	p := &parser{
		script: &Script{Name: strings.TrimSuffix(path.Base(file), ".txtar"), File: file},
		nodes:  map[string]string{}, files: map[string]File{}, applied: map[string]bool{}, used: map[string]bool{},
		held: map[string]bool{}, killed: map[string]int{},
	}
	if len(text) > maxText {
		p.problem(1, "split it into several", "the text has %d bytes, more than %d", len(text), maxText)
		return nil, p.err()
	}
	if name := p.script.Name; !nameForm.MatchString(name) || name == "default" || strings.HasPrefix(name, "kube-") || strings.HasPrefix(name, "heddle-") {
		p.problem(1, "rename the file: "+nameRemedy+"; default, kube-* and heddle-* are others'", "%q cannot be a scenario's namespace", name)
	}
	archive := txtar.Parse(text)
	p.readFiles(archive, text)
	p.readSteps(archive.Comment)
	p.atEnd()
	if err := p.err(); err != nil {
		return nil, err
	}
	return p.script, nil
}

// parser is what is known so far of one text.
type parser struct {
	script   *Script
	problems []error
	number   int // the line that is read

	nodes     map[string]string // of each deployed workload
	files     map[string]File
	where     []markedFile
	applied   map[string]bool
	used      map[string]bool // files that were ever applied
	held      map[string]bool
	killed    map[string]int // line, by node
	capturing int            // line of the open capture; 0 for none
}

type markedFile struct {
	name string
	line int
}

func (p *parser) err() error { return errors.Join(p.problems...) }

func (p *parser) problem(line int, remedy, format string, args ...any) {
	p.problems = append(p.problems, &problem.Problem{
		Origin: problem.Origin{File: p.script.File, Line: line}, Text: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

// wrong reports a problem of the line that is read, and is no step.
func (p *parser) wrong(remedy, format string, args ...any) Step {
	p.problem(p.number, remedy, format, args...)
	return nil
}

// readFiles reads the archive's files, whose lines are looked up in the text.
func (p *parser) readFiles(archive *txtar.Archive, text []byte) {
	p.where = markers(text)
	for i, f := range archive.Files {
		line := 1
		if i < len(p.where) {
			line = p.where[i].line
		}
		if _, twice := p.files[f.Name]; twice {
			p.problem(line, "rename one of them", "file %q is there twice", f.Name)
			continue
		}
		if !strings.HasSuffix(f.Name, ".yaml") || strings.ContainsAny(f.Name, " /") {
			p.problem(line, "write a name such as strict.yaml", "file %q is not a YAML file of one word", f.Name)
		}
		objects, wrong := readObjects(p.script.Name, f.Data)
		if wrong != nil {
			p.problem(line+wrong.line, wrong.remedy, "%s: %s", f.Name, wrong.text)
		}
		p.files[f.Name] = File{Name: f.Name, Objects: objects}
	}
}

// markers finds the lines "-- NAME --" that begin files, as txtar does.
func markers(text []byte) []markedFile {
	var found []markedFile
	number := 0
	for l := range bytes.Lines(text) {
		number++
		rest, begins := bytes.CutPrefix(bytes.TrimRight(l, "\r\n"), []byte("-- "))
		name, ends := bytes.CutSuffix(rest, []byte(" --"))
		if name = bytes.TrimSpace(name); begins && ends && len(name) > 0 {
			found = append(found, markedFile{string(name), number})
		}
	}
	return found
}

func (p *parser) readSteps(text []byte) {
	for l := range strings.Lines(string(text)) {
		p.number++
		words := strings.Fields(l)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(p.script.Lines) == maxSteps {
			p.wrong("split the scenario", "there are more than %d steps", maxSteps)
			return
		}
		if s := p.readStep(words[0], words[1:]); s != nil {
			p.script.Lines = append(p.script.Lines, Line{p.number, s})
		}
	}
}

const verbs = "deploy, enroll, unenroll, apply, delete, connect, hold, alive, ended, flow, capture, wire, kill or start"

func (p *parser) readStep(verb string, words []string) Step {
	switch verb {
	case "deploy":
		return p.readDeploy(words)
	case "enroll", "unenroll":
		return p.readEnroll(verb == "enroll", words)
	case "apply", "delete":
		return p.readApply(verb == "delete", words)
	case "connect":
		return p.readConnect(words)
	case "hold":
		return p.readHold(words)
	case "alive":
		return p.readAlive(words)
	case "ended":
		return p.readEnded(words)
	case "flow":
		return p.readFlow(words)
	case "capture":
		return p.readCapture(words)
	case "wire":
		return p.readWire(words)
	case "kill", "start":
		return p.readAgent(verb == "start", words)
	}
	return p.wrong("begin the line with "+verbs+", or with # for a comment", "%q is no step", verb)
}

// readSpan takes "within DURATION" or "for DURATION" off the end.
func (p *parser) readSpan(words []string) (rest []string, s Span, ok bool) {
	n := len(words)
	if n < 2 || words[n-2] != "within" && words[n-2] != "for" {
		return words, s, true
	}
	d, err := time.ParseDuration(words[n-1])
	if err != nil || d <= 0 || d > maxSpan {
		p.wrong("write one such as 500ms or 10s, at most "+maxSpan.String(), "%q is not a time to wait", words[n-1])
		return words[:n-2], s, false
	}
	if words[n-2] == "within" {
		return words[:n-2], Span{Within: d}, true
	}
	return words[:n-2], Span{Throughout: d}, true
}

func (p *parser) readDeploy(words []string) Step {
	d := &Deploy{}
	switch {
	case len(words) == 4 && words[3] == "outside":
		d.Label = "disabled"
	case len(words) != 3:
		return p.wrong(`write "deploy NAME on NODE", and "outside" behind it for one that stays out of the mesh`, "deploy takes a name and a node")
	}
	d.Name, d.Node = words[0], words[2]
	switch _, twice := p.nodes[d.Name]; {
	case words[1] != "on":
		return p.wrong(`write "deploy NAME on NODE"`, "%q stands where on should", words[1])
	case !nameForm.MatchString(d.Name), d.Name == You, d.Name == Operator, strings.HasPrefix(d.Name, "agent"):
		return p.wrong(nameRemedy+"; you, operator and agent are others in the drawing", "%q cannot be a workload", d.Name)
	case twice:
		return p.wrong("give it another name", "workload %q is deployed twice", d.Name)
	case len(p.killed) > 0:
		return p.wrong("deploy above, or start the agent first", "an agent is killed: nothing can be deployed")
	case len(p.nodes) == maxWorkloads:
		return p.wrong("split the scenario", "there are more than %d workloads", maxWorkloads)
	case p.service(d.Name):
		return p.wrong("rename one of them", "%q is a Service of a file, too", d.Name)
	}
	if !p.node(d.Node) {
		return nil
	}
	p.nodes[d.Name] = d.Node
	return d
}

func (p *parser) node(name string) bool {
	if slices.Contains(Nodes(), name) {
		return true
	}
	p.wrong("write "+strings.Join(Nodes(), " or "), "there is no node %q", name)
	return false
}

// deployed reports whether a workload is there by this line.
func (p *parser) deployed(name string) bool {
	if _, ok := p.nodes[name]; ok {
		return true
	}
	p.wrong(fmt.Sprintf(`write "deploy %s on n1" above`, name), "there is no workload %q", name)
	return false
}

// service reports whether a file has a Service of the name.
func (p *parser) service(name string) bool {
	for _, f := range p.files {
		if slices.ContainsFunc(f.Objects, func(o Object) bool { return o.Kind == "Service" && o.Name == name }) {
			return true
		}
	}
	return false
}

func (p *parser) readEnroll(in bool, names []string) Step {
	for i, name := range names {
		if !p.deployed(name) {
			return nil
		}
		if slices.Contains(names[:i], name) {
			return p.wrong("write it once", "workload %q is named twice", name)
		}
	}
	return &Enroll{in, names}
}

func (p *parser) readApply(remove bool, words []string) Step {
	if len(words) != 1 {
		return p.wrong(`write the name of one file, which stands below as "-- strict.yaml --"`, "want one file")
	}
	file, ok := p.files[words[0]]
	switch {
	case !ok:
		return p.wrong(fmt.Sprintf(`write it below, after a line "-- %s --"`, words[0]), "there is no file %q", words[0])
	case remove && !p.applied[file.Name]:
		return p.wrong("apply it above", "file %q is not applied here", file.Name)
	}
	p.applied[file.Name], p.used[file.Name] = !remove, true
	return &Apply{file, remove}
}

// readPair reads CLIENT TARGET:PORT.
func (p *parser) readPair(words []string) (rest []string, found Pair, ok bool) {
	if len(words) < 2 {
		p.wrong("write CLIENT SERVER:PORT", "who connects to whom is missing")
		return nil, Pair{}, false
	}
	target, text, _ := strings.Cut(words[1], ":")
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		p.wrong("write SERVER:PORT, such as server:7000", "%q names no port from 1 to 65535", words[1])
		return nil, Pair{}, false
	}
	if !p.deployed(words[0]) || !p.service(target) && !p.deployed(target) {
		return nil, Pair{}, false
	}
	return words[2:], Pair{words[0], target, uint16(port)}, true
}

func (p *parser) readConnect(words []string) Step {
	words, s, ok := p.readSpan(words)
	if !ok {
		return nil
	}
	words, who, ok := p.readPair(words)
	if !ok {
		return nil
	}
	c := &Connect{Pair: who, Span: s}
	switch {
	case len(words) == 1 && words[0] == "echo":
		c.Echo = true
	case len(words) == 1 && words[0] == "refused":
	case len(words) == 2 && words[0] == "refused":
		if _, err := mesh.ParseReason(words[1]); err != nil {
			return p.wrong("write a reason of docs/cli.md, such as PolicyDeny", "%v", err)
		}
		c.Reason = words[1]
	default:
		return p.wrong(`write "echo", "refused" or "refused REASON", then "within" or "for" and a time`, "what to expect is %q", strings.Join(words, " "))
	}
	return c
}

func (p *parser) readHold(words []string) Step {
	if len(words) != 3 {
		return p.wrong(`write "hold NAME CLIENT SERVER:PORT"`, "want a name for the connection, and who connects to whom")
	}
	_, who, ok := p.readPair(words[1:])
	switch {
	case !ok:
		return nil
	case !nameForm.MatchString(words[0]):
		return p.wrong(nameRemedy, "%q cannot be a connection's name", words[0])
	case p.held[words[0]]:
		return p.wrong("give it another name", "a connection %q is held already", words[0])
	}
	p.held[words[0]] = true
	return &Hold{words[0], who}
}

// readHeld reads the name of a held connection and a span.
func (p *parser) readHeld(words []string) (id string, s Span, ok bool) {
	words, s, ok = p.readSpan(words)
	switch {
	case !ok:
		return "", s, false
	case len(words) != 1:
		p.wrong("write the name of a held connection, and perhaps a time", "want one connection")
		return "", s, false
	case !p.held[words[0]]:
		p.wrong(fmt.Sprintf(`write "hold %s CLIENT SERVER:PORT" above`, words[0]), "no connection %q is held", words[0])
		return "", s, false
	}
	return words[0], s, true
}

func (p *parser) readAlive(words []string) Step {
	id, s, ok := p.readHeld(words)
	switch {
	case !ok:
		return nil
	case s.Within > 0:
		return p.wrong(`write "for": a connection that is alive later was alive all the time`, "alive takes no within")
	}
	return &Alive{id, s}
}

func (p *parser) readEnded(words []string) Step {
	id, s, ok := p.readHeld(words)
	switch {
	case !ok:
		return nil
	case s.Throughout > 0:
		return p.wrong(`write "within": a connection that has ended does not come back`, "ended takes no for")
	}
	return &Ended{id, s}
}

func (p *parser) readFlow(words []string) Step {
	words, s, ok := p.readSpan(words)
	if !ok {
		return nil
	}
	if s.Throughout > 0 {
		return p.wrong(`write "within": a flow that was recorded stays recorded`, "flow takes no for")
	}
	words, who, ok := p.readPair(words)
	if !ok {
		return nil
	}
	e := &Flow{Pair: who, Fields: map[string]string{}, Span: s}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if _, twice := e.Fields[key]; twice {
			return p.wrong("keep one of them", "%s is given twice", key)
		}
		if !p.flowField(key, value) {
			return nil
		}
		e.Fields[key] = value
	}
	if len(e.Fields) == 0 {
		return p.wrong("write at least one such as verdict=deny", "the flow is not described")
	}
	return e
}

// flowField reports whether a flow can have the value.
func (p *parser) flowField(key, value string) bool {
	var err error
	switch key {
	case "verdict":
		_, err = flow.ParseVerdict(value)
	case "reason":
		_, err = mesh.ParseReason(value)
	case "direction":
		_, err = flow.ParseDirection(value)
	case "transport":
		_, err = flow.ParseTransport(value)
	case "node":
		return p.node(value)
	case "source", "destination":
		return value == Nobody || p.deployed(value)
	case "policy":
		if !nameForm.MatchString(value) {
			err = fmt.Errorf("%q is not the name of a policy", value)
		}
	default:
		p.wrong("write one of "+strings.Join(flowFields(), ", "), "a flow has no %q", key)
		return false
	}
	if err != nil {
		p.wrong("docs/scenarios.md lists what a flow can have", "%s: %v", key, err)
	}
	return err == nil
}

// Nobody is the value of source and destination for an end that proved no identity.
const Nobody = "none"

func (p *parser) readCapture(words []string) Step {
	switch {
	case len(words) > 0:
		return p.wrong("write it alone", "capture takes no words")
	case p.capturing > 0:
		return p.wrong(`write "wire VERDICT WORKLOAD" in between`, "the capture of line %d goes on", p.capturing)
	}
	p.capturing = p.number
	return &Capture{}
}

func (p *parser) readWire(words []string) Step {
	switch {
	case len(words) != 2 || !slices.Contains(WireVerdicts(), words[0]):
		return p.wrong(`write "wire encrypted WORKLOAD", or mixed, or plaintext`, "want a verdict and a workload")
	case !p.deployed(words[1]):
		return nil
	case p.capturing == 0:
		return p.wrong(`write "capture" above`, "nothing is captured")
	}
	p.capturing = 0
	return &Wire{words[0], words[1]}
}

func (p *parser) readAgent(start bool, words []string) Step {
	if len(words) != 3 || words[0] != "agent" || words[1] != "on" {
		return p.wrong(`write "kill agent on n1" or "start agent on n1"`, "want an agent and its node")
	}
	node := words[2]
	switch killed := p.killed[node] > 0; {
	case !p.node(node):
		return nil
	case start && !killed:
		return p.wrong(`write "kill agent on `+node+`" above`, "the agent of %s runs", node)
	case !start && killed:
		return p.wrong(`write "start agent on `+node+`" in between`, "the agent of %s is killed already", node)
	}
	p.killed[node] = p.number
	if start {
		delete(p.killed, node)
	}
	return &Agent{node, start}
}

// atEnd looks for what is missing from the whole.
func (p *parser) atEnd() {
	for node, line := range p.killed {
		p.problem(line, `write "start agent on `+node+`" below: other scenarios need it`, "the agent of %s stays away", node)
	}
	if p.capturing > 0 {
		p.problem(p.capturing, `write "wire VERDICT WORKLOAD" below`, "the capture is never judged")
	}
	for _, f := range p.where {
		if _, read := p.files[f.name]; read && !p.used[f.name] {
			p.problem(f.line, "apply it, or take it out", "file %q is never applied", f.name)
		}
	}
	if len(p.problems) == 0 && !slices.ContainsFunc(p.script.Lines, func(l Line) bool { return l.Step.expects() }) {
		p.problem(1, "write at least one connect, alive, ended, flow or wire", "the scenario expects nothing, and could not fail")
	}
}
