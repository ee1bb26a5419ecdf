package trace

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/http1"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	theTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	theSpan  = "00f067aa0ba902b7"
)

// fields are a head's, "name: value" each.
func fields(texts ...string) (all []http1.Field) {
	for _, text := range texts {
		name, value, _ := strings.Cut(text, ": ")
		all = append(all, http1.NewField(name, value))
	}
	return all
}

// passed is what a workload gets of fields, with the span's ID as SPAN, and a new trace's as TRACE.
func passed(t *testing.T, rules string, came ...string) (out []string, c *Context) {
	t.Helper()
	r, err := sample.Parse([]string{rules})
	if err != nil {
		t.Fatal(err)
	}
	c = &Context{}
	c.Read(fields(came...))
	c.Begin(r, "shop/cart:80", "/")
	if c.Trace == (ID{}) || c.Span == (SpanID{}) {
		t.Errorf("%q: no IDs", came)
	}
	remove, add := c.Write(nil, nil, NewNames())
	for _, text := range came {
		name, _, _ := strings.Cut(text, ": ")
		if !slices.Contains(remove, strings.ToLower(name)) {
			out = append(out, text)
		}
	}
	replace := strings.NewReplacer(fmt.Sprintf("%x", c.Span[:]), "SPAN", theTrace, "THE", theSpan, "PARENT", fmt.Sprintf("%x", c.Trace[:]), "TRACE")
	for _, f := range add {
		out = append(out, replace.Replace(string(f.Name)+": "+string(f.Value)))
	}
	return out, c
}

func TestPropagation(t *testing.T) {
	const short = "a3ce929d0e0e4736"
	parent := "traceparent: 00-" + theTrace + "-" + theSpan + "-01"
	for _, tc := range []struct {
		name, rules string
		came, want  []string
		sampled     bool
	}{
		{"nothing, and nobody samples", "0", nil, []string{"traceparent: 00-TRACE-SPAN-00"}, false},
		{"nothing, and all are sampled", "1", nil, []string{"traceparent: 00-TRACE-SPAN-01"}, true},
		{"W3C, sampled", "0", []string{parent, "tracestate: a=b"}, []string{"tracestate: a=b", "traceparent: 00-THE-SPAN-01"}, true},
		{"W3C, not sampled", "1", []string{"Traceparent: 00-" + theTrace + "-" + theSpan + "-00"}, []string{"traceparent: 00-THE-SPAN-00"}, false},
		{"a later version", "0", []string{"traceparent: 42-" + theTrace + "-" + theSpan + "-03-more"}, []string{"traceparent: 00-THE-SPAN-01"}, true},
		{"W3C before B3", "0", []string{parent, "b3: 0"}, []string{"b3: 0", "traceparent: 00-THE-SPAN-01"}, true},
		{"B3 in one field", "0", []string{"b3: " + theTrace + "-" + theSpan + "-1-05e3ac9a4f6e3b90"}, []string{"traceparent: 00-THE-SPAN-01", "b3: THE-SPAN-1-PARENT"}, true},
		{"B3, the rules decide", "1", []string{"b3: " + theTrace + "-" + theSpan}, []string{"traceparent: 00-THE-SPAN-01", "b3: THE-SPAN-1-PARENT"}, true},
		{"B3, debug", "0", []string{"B3: " + theTrace + "-" + theSpan + "-d"}, []string{"traceparent: 00-THE-SPAN-01", "b3: THE-SPAN-1-PARENT"}, true},
		{"B3, a short trace", "0", []string{"b3: " + short + "-" + theSpan + "-0"}, []string{"traceparent: 00-TRACE-SPAN-00", "b3: TRACE-SPAN-0-PARENT"}, false},
		{"B3, a decision alone", "1", []string{"b3: 0"}, []string{"traceparent: 00-TRACE-SPAN-00", "b3: TRACE-SPAN-0"}, false},
		{"B3 in several fields", "0", []string{"X-B3-TraceId: " + theTrace, "X-B3-SpanId: " + theSpan, "X-B3-Sampled: 1", "X-B3-ParentSpanId: 05e3ac9a4f6e3b90"},
			[]string{"traceparent: 00-THE-SPAN-01", "x-b3-traceid: THE", "x-b3-spanid: SPAN", "x-b3-sampled: 1", "x-b3-parentspanid: PARENT"}, true},
		{"B3 in several, debug", "0", []string{"x-b3-traceid: " + theTrace, "x-b3-spanid: " + theSpan, "x-b3-flags: 1"},
			[]string{"traceparent: 00-THE-SPAN-01", "x-b3-traceid: THE", "x-b3-spanid: SPAN", "x-b3-sampled: 1", "x-b3-parentspanid: PARENT"}, true},
		{"B3 in several, a decision alone", "1", []string{"x-b3-sampled: 0"}, []string{"traceparent: 00-TRACE-SPAN-00", "x-b3-traceid: TRACE", "x-b3-spanid: SPAN", "x-b3-sampled: 0"}, false},
	} {
		got, c := passed(t, tc.rules, tc.came...)
		if fmt.Sprint(got) != fmt.Sprint(tc.want) || c.Sampled != tc.sampled {
			t.Errorf("%s: %q, sampled %v\nwant %q", tc.name, got, c.Sampled, tc.want)
		}
	}
}

// TestBroken: what is not as it has to be begins a new trace, and its state goes with it.
func TestBroken(t *testing.T) {
	good := "00-" + theTrace + "-" + theSpan + "-01"
	for _, v := range []string{"", "00", good[:54], good + "-x", "ff" + good[2:], strings.ToUpper(good), strings.Replace(good, "-", "_", 1), "0g" + good[2:],
		"00-" + strings.Repeat("0", 32) + "-" + theSpan + "-01", "00-" + theTrace + "-" + strings.Repeat("0", 16) + "-01", "00-" + theTrace + "-" + theSpan + "-0x", "01-" + good[3:] + "x"} {
		got, c := passed(t, "0", "traceparent: "+v, "tracestate: a=b")
		if fmt.Sprint(got) != "[traceparent: 00-TRACE-SPAN-00]" || c.Parent != (SpanID{}) {
			t.Errorf("%q: %q", v, got)
		}
	}
	if got, _ := passed(t, "0", "traceparent: "+good, "traceparent: "+good); fmt.Sprint(got) != "[traceparent: 00-TRACE-SPAN-00]" {
		t.Errorf("two of them: %q", got)
	}
	for _, v := range []string{"x", "-", theTrace, theTrace + "-", theTrace + "-x-1", strings.Repeat("0", 32) + "-" + theSpan + "-1"} {
		if got, _ := passed(t, "0", "b3: "+v); !slices.Contains(got, "traceparent: 00-TRACE-SPAN-00") {
			t.Errorf("b3 %q: %q", v, got)
		}
	}
}

// TestContextAllocates nothing.
func TestContextAllocates(t *testing.T) {
	rules, err := sample.Parse([]string{"0.5"})
	if err != nil {
		t.Fatal(err)
	}
	names, c := NewNames(), &Context{}
	remove, add := make([]string, 0, 16), make([]http1.Field, 0, 16)
	for _, came := range [][]http1.Field{nil, fields("traceparent: 00-" + theTrace + "-" + theSpan + "-01"), fields("b3: " + theTrace + "-" + theSpan + "-1"),
		fields("x-b3-traceid: "+theTrace, "x-b3-spanid: "+theSpan)} {
		n := testing.AllocsPerRun(100, func() {
			c.Read(came)
			c.Begin(rules, "shop/cart:80", "/")
			c.Write(remove, add, names)
		})
		if n > 0 {
			t.Errorf("%d fields: %v allocations", len(came), n)
		}
	}
}

// FuzzContext: whatever comes, what goes on is as it has to be.
func FuzzContext(f *testing.F) {
	f.Add("00-"+theTrace+"-"+theSpan+"-01", theTrace+"-"+theSpan+"-1", theTrace, theSpan)
	f.Add("", "0", "", "")
	f.Fuzz(func(t *testing.T, parent, one, trace, span string) {
		var c Context
		c.Read([]http1.Field{http1.NewField("traceparent", parent), http1.NewField("b3", one), http1.NewField("x-b3-traceid", trace), http1.NewField("x-b3-spanid", span)})
		c.Begin(nil, "", "")
		_, add := c.Write(nil, nil, NewNames())
		var again Context
		again.Read(add[:1])
		if again.came != w3c || again.Trace != c.Trace || again.Parent != c.Span || (again.wants == keep) != c.Sampled {
			t.Fatalf("%q is read as %+v, and was written of %+v", add[0].Value, again, c)
		}
		if len(add) > 1 {
			again = Context{}
			again.Read(add[1:])
			if again.came != c.came || again.Trace != c.Trace || again.Parent != c.Span || (again.wants == keep) != c.Sampled {
				t.Fatalf("B3 %q is read as %+v, and was written of %+v", add[1:], again, c)
			}
		}
	})
}
