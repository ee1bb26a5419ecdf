package past

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func day() time.Time { return time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC) }

// carried is a connection as its server's agent has it.
func carried(from, to string, port uint16, count uint64) Summary {
	s := Summary{Hour: day(), First: day(), Last: day().Add(time.Minute), Node: "n1", Direction: "inbound", Verdict: "allow", Reason: "NoPolicy", Transport: "tunnel",
		Source: End{Address: from}, Destination: End{Workload: to}, Port: port, Count: count}
	if strings.Contains(from, "/") {
		s.Source = End{Workload: from, Identity: "spiffe://m.test/ns/shop/sa/web"}
	}
	return s
}

// TestReadNothing: a node that knows of nothing says so, and a file without a line is none of ours.
func TestReadNothing(t *testing.T) {
	for text, good := range map[string]bool{"": false, "\n\n": false, `{"coverage":{"node":"n1"}}`: true} {
		if _, err := Read(strings.NewReader(text)); (err == nil) != good || !good && !strings.Contains(err.Error(), "is empty") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestReadIsWrite: what is written is read.
func TestReadIsWrite(t *testing.T) {
	since := day()
	rule := int32(2)
	one := carried("shop/web", "shop/db", 3306, 3)
	one.Rule, one.Policy, one.Service = &rule, "shop/db", "shop/db"
	h := &History{Summaries: []Summary{one, carried("192.0.2.1", "bank/till", 80, 1)}, Nodes: []Coverage{{Node: "n1", Since: &since, LeftOut: 3, Damaged: []string{"x"}}}}
	var b bytes.Buffer
	if err := h.Write(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	again, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	var c bytes.Buffer
	if err := again.Write(&c); err != nil || c.String() != text || len(again.Nodes) != 1 {
		t.Errorf("%v:\n%s\nwas\n%s", err, c.String(), text)
	}
	again.Only("bank", time.Time{})
	if len(again.Summaries) != 1 || again.Summaries[0].Source.Address != "192.0.2.1" {
		t.Errorf("%+v", again.Summaries)
	}
	if again.Only("", day().Add(time.Hour)); len(again.Summaries) != 0 {
		t.Errorf("%+v", again.Summaries)
	}
	for _, tc := range [][2]string{
		{`{"direction":"sideways"}`, `line 1: direction: "sideways"`}, {"\n" + `{`, "line 2"}, {`{"port":70000}`, "port"},
		{strings.Replace(text, `"spiffe://`, `"http://`, 1), "source.identity"}, {strings.Replace(text, `"shop/db"}`, `"db"}`, 1), "destination.workload"},
		{strings.Repeat("x", maxLine+1), "heddle history -o json"},
	} {
		if _, err := Read(strings.NewReader(tc[0])); err == nil || !strings.Contains(err.Error(), tc[1]) {
			t.Errorf("%.60q: %v, want %s", tc[0], err, tc[1])
		}
	}
}

// TestReadTellsOfCuts: a file that ends at a line's end, and not at its own, is read, and told
// of; so is what a version before wrote, where it can be known.
func TestReadTellsOfCuts(t *testing.T) {
	other := carried("192.0.2.1", "bank/till", 80, 1)
	other.Node = "n2"
	h := &History{Summaries: []Summary{carried("shop/web", "shop/db", 3306, 3), other}, Nodes: []Coverage{{Node: "n1"}, {Node: "n2"}}}
	var b bytes.Buffer
	if err := h.Write(&b); err != nil {
		t.Fatal(err)
	}
	whole := strings.SplitAfter(strings.TrimSpace(b.String())+"\n", "\n")
	whole = whole[:len(whole)-1]
	older := strings.Split(strings.ReplaceAll(b.String(), `,"lines":2`, ""), "\n")
	all := func(lines ...string) string { return strings.Join(lines, "\n") }
	read := func(what, text, want string) {
		t.Helper()
		h, err := Read(strings.NewReader(text))
		if err != nil || (h.Cut == "") != (want == "") || !strings.Contains(h.Cut, want) {
			t.Errorf("%s: %v, cut %q, want %q", what, err, h.Cut, want)
		}
	}
	for n := 1; n < len(whole); n++ {
		read("cut", all(whole[:n]...), "may be cut")
	}
	read("whole", all(whole...), "")
	read("two, one behind the other", all(append(whole, whole...)...), "")
	read("two, the first with one node more", all(append(whole, `{"coverage":{"node":"n1","lines":1}}`)...), "")
	read("two, the second cut", all(append(whole, whole[:3]...)...), "coverage of 3 nodes, and says that it is of 2")
	read("of a version before", all(older...), "")
	read("of a version before, cut before coverage", all(older[:2]...), "its last line")
	read("of a version before, cut in coverage", all(older[:3]...), `connections of node "n2"`)
	read("of a node that knows of nothing", `{"coverage":{"node":"n1","lines":1}}`, "")
}

// TestServicesOfAWaypoint: what went to a waypoint is one for each service; what went to a
// workload itself is one, by whichever of its services, of which its agent does not know.
func TestServicesOfAWaypoint(t *testing.T) {
	line := func(direction, to, service, reason string, count uint64) Summary {
		s := carried("shop/web", to, 80, count)
		s.Direction, s.Service, s.Reason = direction, service, reason
		return s
	}
	scraped := line("inbound", "shop/waypoint", "", "NoPolicy", 9)
	scraped.Port = 9090
	h := &History{Summaries: []Summary{
		line("outbound", "shop/waypoint", "shop/db", "NoPolicy", 1), line("inbound", "shop/waypoint", "shop/db", "Waypoint", 2),
		line("inbound", "shop/waypoint", "shop/api", "Waypoint", 3), line("outbound", "shop/waypoint", "shop/api", "NoPolicy", 3), scraped,
		line("outbound", "shop/db", "shop/db", "NoPolicy", 4), line("outbound", "shop/db", "shop/both", "NoPolicy", 5), line("inbound", "shop/db", "", "NoPolicy", 9),
		line("local", "shop/near", "shop/db", "Waypoint", 6), line("local", "shop/near", "shop/api", "Waypoint", 7),
		line("outbound", "shop/unasked", "shop/db", "NoPolicy", 1), line("outbound", "shop/unasked", "shop/api", "NoPolicy", 2),
	}}
	all, err := h.Connections()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range all {
		got = append(got, fmt.Sprintf("%s:%d %s %d", c.Destination.Workload, c.Port, c.Service.Name, c.Carried()))
	}
	want := []string{"shop/waypoint:80 db 2", "shop/waypoint:80 api 3", "shop/waypoint:9090  9", "shop/db:80 db 9", "shop/near:80 db 6", "shop/near:80 api 7", "shop/unasked:80 db 1", "shop/unasked:80 api 2"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	if err := (&History{Summaries: []Summary{carried("shop/web", "shop/db", 3306, 3)}, Nodes: []Coverage{{Node: "n1"}}}).Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		if _, err := h.Connections(); err != nil { // Read has looked at each
			t.Error(err)
		}
	})
}
