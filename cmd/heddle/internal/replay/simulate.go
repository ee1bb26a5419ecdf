package replay

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Change is connections of which another thing would become.
type Change struct {
	Source      Who    `json:"source"`
	Destination Who    `json:"destination"`
	Port        uint16 `json:"port"`
	// Count is how many there were: of those that break, the ones that were carried.
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
	Count       uint64    `json:"count"`
	Last        time.Time `json:"last"`
	Why         string    `json:"why"`
}

// Result is what a change would come to.
type Result struct {
	// Breaks were carried, are allowed now, and would be refused.
	Breaks []Change `json:"breaks"`
	// Opens are refused now, and would be allowed.
	Opens    []Change   `json:"opens"`
	Unjudged []Unjudged `json:"unjudged"`
	// Judged and Connections are how many kinds of connections were judged, and how
	// many connections those were.
	Judged      int    `json:"judged"`
	Connections uint64 `json:"connections"`
	// Since and Until are of the first and the last of the history; nil when it is
	// empty.
	Since *time.Time `json:"since,omitempty"`
	Until *time.Time `json:"until,omitempty"`
	Nodes []Coverage `json:"nodes"`
}

// Simulate asks of every connection of the history what becomes of it now, and what
// would after a change.
func Simulate(before, after *explain.Model, h *History) (*Result, error) {
	if err := problemsOf(before, after); err != nil {
		return nil, err
	}
	all, err := h.connections()
	if err != nil {
		return nil, err
	}
	r := &Result{Breaks: []Change{}, Opens: []Change{}, Unjudged: []Unjudged{}, Nodes: append([]Coverage{}, h.Nodes...)}
	r.cover(h)
	now, then := newJudge(before), newJudge(after)
	for _, c := range all {
		r.judge(now, then, c)
	}
	r.Breaks, r.Opens = group(r.Breaks), group(r.Opens)
	slices.SortFunc(r.Unjudged, func(a, b Unjudged) int {
		return cmp.Or(strings.Compare(a.Source.Name, b.Source.Name), strings.Compare(a.Destination.Name, b.Destination.Name), cmp.Compare(a.Port, b.Port))
	})
	return r, nil
}

func (r *Result) cover(h *History) {
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

func (r *Result) judge(now, then *judge, c *connection) {
	count := max(c.carried(), c.refused())
	before, unclear := now.decide(c)
	var after Decision
	if unclear == judged || unclear == byRequest {
		decided, still := then.decide(c)
		if still == goneServer { // the change takes it away
			decided, still = Decision{Verdict: "deny", Reason: mesh.ReasonUnknownDestination.String(), Rule: -1}, judged
		}
		if after = decided; unclear == judged || still == judged && after.denied() { // whatever its requests are
			unclear = still
		}
	}
	if unclear != judged {
		r.Unjudged = append(r.Unjudged, Unjudged{who(&c.source, c), who(&c.destination, c), c.port, count, c.last, string(unclear)})
		return
	}
	r.Judged++
	r.Connections += c.carried() + c.refused()
	change := Change{who(&c.source, c), who(&c.destination, c), c.port, count, c.last, before, after}
	switch {
	case !before.denied() && after.denied() && c.carried() > 0:
		change.Count = c.carried()
		r.Breaks = append(r.Breaks, change)
	case before.denied() && !after.denied():
		r.Opens = append(r.Opens, change)
	}
}

func who(p *peer, c *connection) Who {
	w := Who{Name: p.name()}
	if p == &c.destination {
		w.Name = c.to()
		if c.service != (mesh.Key{}) {
			w.Service = c.service.String()
		}
	}
	if p.workload != (mesh.Key{}) {
		w.Workload = p.workload.String()
	}
	if !p.identity.IsZero() {
		w.Identity = p.identity.String()
	}
	if p.address.IsValid() {
		w.Address = p.address.String()
	}
	return w
}

// group makes one of changes that differ in nothing but the pods of one owner, and
// sorts them.
func group(changes []Change) []Change {
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(strings.Compare(a.Destination.Name, b.Destination.Name), cmp.Compare(a.Port, b.Port), strings.Compare(a.Source.Name, b.Source.Name),
			compareDecisions(a.Before, b.Before), compareDecisions(a.After, b.After), strings.Compare(a.Source.Workload, b.Source.Workload),
			strings.Compare(a.Destination.Workload, b.Destination.Workload))
	})
	grouped := changes[:0]
	for _, c := range changes {
		if len(grouped) > 0 {
			last := &grouped[len(grouped)-1]
			if last.Destination.Name == c.Destination.Name && last.Port == c.Port && last.Source.Name == c.Source.Name && last.Before == c.Before && last.After == c.After {
				last.Count += c.Count
				if c.Last.After(last.Last) {
					last.Last = c.Last
				}
				continue
			}
		}
		grouped = append(grouped, c)
	}
	return grouped
}

func compareDecisions(a, b Decision) int {
	return cmp.Or(strings.Compare(a.Verdict, b.Verdict), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule))
}
