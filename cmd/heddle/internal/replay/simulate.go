// Package replay asks of recorded connections what would become of them: under a
// changed configuration, and which policies would admit those and no others. It decides by
// the model that agents decide by. It opens no connection and changes nothing.
//
// Its functions may be called from any goroutine.
package replay

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Change is connections, or datagrams, of which another thing would become.
type Change struct {
	Source      Who    `json:"source"`
	Destination Who    `json:"destination"`
	Port        uint16 `json:"port"`
	// Protocol is "UDP" of datagrams; "" of connections.
	Protocol string `json:"protocol,omitempty"`
	// Count is how many there were: of those that break, the ones that were carried. Of
	// datagrams it is their flows, each of ten seconds at most.
	Count  uint64    `json:"count"`
	Last   time.Time `json:"last"`
	Before Decision  `json:"before"`
	After  Decision  `json:"after"`
}

// Who is an end of connections: Name is for people, the rest is of one of them.
type Who struct {
	Name     string `json:"name"`
	Workload string `json:"workload,omitempty"`
	Identity string `json:"identity,omitempty"`
	Address  string `json:"address,omitempty"`
	Service  string `json:"service,omitempty"`
}

// Unjudged is connections of which nobody knows what would become.
type Unjudged struct {
	Source      Who       `json:"source"`
	Destination Who       `json:"destination"`
	Port        uint16    `json:"port"`
	Protocol    string    `json:"protocol,omitempty"`
	Count       uint64    `json:"count"`
	Last        time.Time `json:"last"`
	Why         string    `json:"why"`
}

// Result is what a change would come to.
type Result struct {
	// Breaks were carried, are allowed now, and would be refused: behind a waypoint, by some of the
	// workloads at least that let them in now.
	Breaks []Change `json:"breaks"`
	// Opens are refused now, by some at least, and would be allowed.
	Opens    []Change   `json:"opens"`
	Unjudged []Unjudged `json:"unjudged"`
	// Warnings are of objects that the change leaves valid, but unlikely to do what is meant,
	// such as a policy that selects nobody, and of what was not judged as it is not in the history, or
	// passed over.
	Warnings []string `json:"warnings"`
	// Judged, Connections and Datagrams are how many kinds were judged, how many
	// connections those were, and how many flows of datagrams.
	Judged      int    `json:"judged"`
	Connections uint64 `json:"connections"`
	Datagrams   uint64 `json:"datagrams,omitempty"`
	// PassedOver are flows of datagrams that passed, and were not judged: the objects were
	// read as those of a mesh in which policies are not about UDP.
	PassedOver uint64 `json:"passedOver,omitempty"`
	// Since and Until are of the first and the last of the history; nil when it is
	// empty.
	Since *time.Time      `json:"since,omitempty"`
	Until *time.Time      `json:"until,omitempty"`
	Nodes []past.Coverage `json:"nodes"`
}

// nothingRecorded is said of a history without any connection.
const nothingRecorded = "no connection is recorded: where there were some, `heddle check` says why agents did not keep them"

// Simulate asks of every connection of the history, and of datagrams where policies may be
// about them, what becomes of it now, and what would after a change.
func Simulate(before, after *explain.Model, h *past.History) (*Result, error) {
	if err := edit.Refused(before, after); err != nil {
		return nil, err
	}
	all, err := h.Connections()
	if err != nil {
		return nil, err
	}
	r := &Result{Breaks: []Change{}, Opens: []Change{}, Unjudged: []Unjudged{}, Nodes: append([]past.Coverage{}, h.Nodes...), Warnings: append([]string{}, edit.Warnings(before, after)...)}
	r.Warnings = append(r.Warnings, h.Gaps()...)
	if len(all) == 0 {
		r.Warnings = append(r.Warnings, nothingRecorded)
	}
	r.cover(h)
	now, then := newJudge(before, before), newJudge(after, before)
	r.Warnings = append(r.Warnings, now.others(all)...)
	for _, c := range all {
		if c.UDP && !before.UDP() && !after.UDP() {
			r.PassedOver += c.Carried()
			continue
		}
		r.judge(now, then, c)
	}
	if r.PassedOver > 0 {
		r.Warnings = append(r.Warnings, counted(r.PassedOver, "flow")+" over UDP passed, and are not judged: give --udp-by-identity, as the mesh's operator has it")
	}
	r.Breaks, r.Opens = group(r.Breaks), group(r.Opens)
	r.Unjudged = fold(r.Unjudged)
	return r, nil
}

func (r *Result) cover(h *past.History) {
	for i := range h.Summaries {
		first, last := h.Summaries[i].First, h.Summaries[i].Last
		if r.Since == nil || first.Before(*r.Since) {
			r.Since = &first
		}
		if r.Until == nil || last.After(*r.Until) {
			r.Until = &last
		}
	}
}

func (r *Result) judge(now, then *judge, c *past.Connection) {
	count := max(c.Carried(), c.Refused())
	before, unclear := now.decide(c)
	var after Decision
	switch unclear {
	case judged, partly, byRequest, byRouting:
		decided, still := then.afterwards(c)
		if after = decided; unclear == judged || unclear == partly || still == judged && after.denied() { // whatever its requests are
			unclear = still
		}
	}
	if unclear == judged && !after.denied() && !c.UDP && c.Destination.Workload != (mesh.Key{}) && now.model.Redirects(then.model, c.Service) {
		unclear = redirected
	}
	if unclear != judged {
		u := Unjudged{who(&c.Source, c), who(&c.Destination, c), c.Port, protocolOf(c), count, c.Last, string(unclear)}
		if c.UDP && c.Carried() == 0 {
			u.Port = 0
		}
		r.Unjudged = append(r.Unjudged, u)
		return
	}
	r.Judged++
	if c.UDP {
		r.Datagrams += c.Carried() + c.Refused()
	} else {
		r.Connections += c.Carried() + c.Refused()
	}
	change := Change{who(&c.Source, c), who(&c.Destination, c), c.Port, protocolOf(c), count, c.Last, before, after}
	switch {
	case after.less(before) && c.Carried() > 0:
		change.Count = c.Carried()
		r.Breaks = append(r.Breaks, change)
	case before.less(after):
		r.Opens = append(r.Opens, change)
	}
}

// afterwards is decide of a model that a change has made: who is not there is gone by that.
func (j *judge) afterwards(c *past.Connection) (Decision, why) {
	switch d, unclear := j.decide(c); unclear {
	case goneServer:
		return Decision{Verdict: "deny", Reason: mesh.ReasonUnknownDestination.String(), Rule: -1}, judged
	case partly, nobodyBehind:
		return d, judged
	default:
		return d, unclear
	}
}

func who(p *past.Peer, c *past.Connection) Who {
	w := Who{Name: nameOf(p)}
	if p == &c.Destination {
		w.Name = placeOf(c)
		if c.Service != (mesh.Key{}) {
			w.Service = c.Service.String()
			if c.UDP && c.Destination.Workload == (mesh.Key{}) {
				w.Name = "service " + w.Service
			}
		}
	}
	if p.Workload != (mesh.Key{}) {
		w.Workload = p.Workload.String()
	}
	if !p.Identity.IsZero() {
		w.Identity = p.Identity.String()
	}
	if p.Address.IsValid() {
		w.Address = p.Address.String()
	}
	return w
}

// group makes one of changes that differ in nothing but the pods of one owner, and
// sorts them.
func group(changes []Change) []Change {
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(strings.Compare(a.Destination.Name, b.Destination.Name), cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Source.Name, b.Source.Name),
			compareDecisions(a.Before, b.Before), compareDecisions(a.After, b.After), strings.Compare(a.Source.Workload, b.Source.Workload),
			strings.Compare(a.Destination.Workload, b.Destination.Workload))
	})
	return mergeNeighbours(changes, func(a, b *Change) bool {
		return a.Destination.Name == b.Destination.Name && a.Port == b.Port && a.Protocol == b.Protocol && a.Source.Name == b.Source.Name && a.Before == b.Before && a.After == b.After
	}, func(c *Change) (*uint64, *time.Time) { return &c.Count, &c.Last })
}

// mergeNeighbours makes one, the first, of each run of those that are alike, with the sum of their counts
// and the latest of their times.
func mergeNeighbours[T any](sorted []T, alike func(a, b *T) bool, tally func(*T) (count *uint64, last *time.Time)) []T {
	merged := sorted[:0]
	for _, one := range sorted {
		n := len(merged)
		if n == 0 || !alike(&merged[n-1], &one) {
			merged = append(merged, one)
			continue
		}
		count, last := tally(&merged[n-1])
		more, later := tally(&one)
		*count += *more
		if later.After(*last) {
			*last = *later
		}
	}
	return merged
}

func compareDecisions(a, b Decision) int {
	return cmp.Or(strings.Compare(a.Verdict, b.Verdict), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule), strings.Compare(a.Endpoint, b.Endpoint))
}
