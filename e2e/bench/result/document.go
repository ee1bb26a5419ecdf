package result

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Fact is something about the machine or the run.
type Fact struct{ Name, Value string }

// Section is a part of the document that the run wrote itself.
type Section struct{ Title, Text string }

// Kind is what a run is about: its metrics, and what is said before and after its figures.
type Kind struct {
	Metrics          []Metric
	Preamble, Method string
}

// Mesh is the benchmark of two nodes, under the congestion control that was asked for; empty for the machine's.
func Mesh(congestion string) Kind {
	k := Kind{Metrics(), preamble, method}
	if congestion != "" {
		k.Preamble = strings.NewReplacer("# Benchmarks\n", "# Benchmarks with "+congestion+"\n", "`make bench`", "`make bench CONGESTION="+congestion+"`").Replace(k.Preamble)
	}
	return k
}

// Report is everything that a run has to say.
type Report struct {
	Kind
	Facts []Fact
	// Congestion is the congestion control that all figures are of; empty if it was not looked at.
	Congestion string
	// Subjects were measured, of All that there are.
	Subjects, All []string
	Rows          []Row
	Sections      []Section
}

const preamble = `# Benchmarks

Written by ` + "`make bench`" + `, as measured; not edited. Ratios are what to look at: the figures themselves are of one machine on one day. A
ratio is taken within each repeat, in which the subjects follow each other closely, and its median over the repeats is shown.

- **none**: the same pods and links, and nothing that carries connections.
- **heddle**: two agents with the loop engine, each pod with an identity and a policy, with metrics and flow records.
- **reference**: the same with the reference engine.
- **envoy**: two Envoys, one per node, each pod with an identity: ` + "`tcp_proxy`" + ` that tunnels over CONNECT with mutual TLS 1.3 and
  multiplexed HTTP/2, and its other end. Without policy, access log or discovery.

Verdicts: **stretch** and **holds** reach a floor that the project set itself; **better** is better than Envoy where there is no floor;
**unsure** does so by the median, but not with all of the interval; **MISSED** is better than Envoy, but not by the floor; **LOST** is worse
than Envoy, or more than a bound; **ERRORS** had failed requests or runs, and cannot win.
`

const method = `
## Method

Two network namespaces are the nodes, joined by a bridge in a third; 20 pods with clients on one, 10 with servers on the other, each in a
namespace of its own behind a veth. Every subject has such a world, all are up at once, and those that are not measured sleep. The subjects
of one metric run one after the other, forwards in one repeat and backwards in the next. An interval goes from the k-th smallest to the k-th
largest value, for the largest k that covers the median with 90 % at least; with fewer than five values it is their range. A good verdict is
of the whole interval: the worse end of it (of the ratio to Envoy, or of the value where the floor is a value) has to reach the floor, too, and
the stretch goal for **stretch**; otherwise the row is **unsure**. A bad one is of the median alone.

- Requests and connections: wrk, one thread, nginx with one worker, an answer of 64 bytes. A new connection carries one request.
- Throughput: iperf3.
- Latency: a generator of this repository, 32 connections, timed from when a request was due to its answer's last byte.
- A machine that is a guest loses its cores for moments of 10 to 50 ms, which is what a p99 shows then. A measurement of seconds is made again, twice at most, where
  the hypervisor took more than 1 % of it, and the one counts of which it took least: what was measured has no say. One with errors counts as it is.
- CPU: user and system time of both proxies, by the kernel's clock ticks of 10 ms. What the kernel does for them in interrupts is nobody's.
- Memory: VmRSS of fresh proxies, after 7 s of rest; the idle connections are of eight pods, have echoed a byte, and have had 7 s of rest, too.
  Heddle gives back what it does not need after three quiet seconds ([ADR 40](decisions/0040-memory-at-rest.md)); right after a load it has more.
- 50 ms: each way is held back 25 ms by a process between two TUN devices, which takes single segments of 1,500 bytes and loses at random
  those that go from client to server. Its own limit is the figure of "none". Fresh proxies; the first two seconds do not count.
- Noise: a quiet pod asks 400 times per second, without and with a neighbour that sends four bulk streams and opens connections, 16 at a
  time. With two cores for all, the noise takes CPU from everybody; "none" shows how much. And with a neighbour that is held to four streams of
  500 Mbit/s and a connection every 33 ms of each of 16, which leaves the machine room.
- Envoy is given each easy way out: the servers' addresses are its listeners', so that nothing is redirected; it connects from the node's
  namespace, a link less than Heddle; windows of 4 and 16 MiB; as many workers as cores; no policy, access log or flow records.
- Congestion control: all namespaces go by the one that is named above. Where that is BBR, Heddle does not: it takes Reno within pods, at the
  programs' ends too, and CUBIC for tunnels of less than a millisecond ([ADR 31](decisions/0031-what-is-near-is-not-paced.md)), while the sockets of "none", of Envoy and of
  its programs stay with BBR, as they come. Much of what Heddle is ahead by on such a node is this choice. With BBR everywhere (` + "`--system-congestion`" + `) ADR 31 has, on
  another machine, 1.23 × Envoy in place of 1.88 × for one stream, 1.05 × for 1.34 × with eight, 1.12 × for 1.20 × in requests/s, 0.68 × for 0.73 × in p50, and
  CPU per GB of 0.79 × for 0.51 × and 0.83 × for 0.63 ×. Where the default is another, as Linux's own, CUBIC, Heddle changes nothing: ` + "`make bench CONGESTION=cubic`" + `
  measures requests, throughput, connections, latency and CPU so, into ` + "`benchmarks-cubic.md`" + `.
- The load, the servers and the subject share the cores.
`

// Document writes the report as Markdown.
func (r Report) Document(out io.Writer) error {
	var b strings.Builder
	b.WriteString(r.Preamble)
	all := Summarise(r.Rows, r.Subjects)
	fmt.Fprintf(&b, "\n%s", Markdown(all))
	b.WriteString(lost(all))
	b.WriteString(r.leftOut())
	b.WriteString("\n## Machine\n\n")
	for _, f := range r.Facts {
		fmt.Fprintf(&b, "- %s: %s\n", f.Name, f.Value)
	}
	b.WriteString(r.Method)
	for _, s := range r.Sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s", s.Title, s.Text)
	}
	b.WriteString("\n## Rows\n\nEach repeat's value, in order; `!` marks one with errors.\n\n| metric | subject | values |\n|---|---|---|\n")
	for _, s := range all {
		var values []string
		for _, row := range r.Rows {
			if row.Metric == s.Metric && row.Subject == s.Subject {
				values = append(values, number(row.Value)+strings.Repeat("!", min(row.Errors, 1)))
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", s.Metric, s.Subject, strings.Join(values, ", "))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// lost lists what Heddle does not win, or not for sure.
func lost(all []Summary) string {
	var b strings.Builder
	for _, s := range all {
		m := metric(s.Metric)
		verdict := Judge(m, s)
		if s.Subject != "heddle" || !slices.Contains([]Verdict{Unsure, Missed, Lost, Failed}, verdict) {
			continue
		}
		fmt.Fprintf(&b, "- **%s** %s: %s %s", verdict, m.Title, number(s.Median), m.Unit)
		if s.ToEnvoy != nil {
			fmt.Fprintf(&b, ", %.2f × Envoy", *s.ToEnvoy)
		}
		if s.ToEnvoyBetween != nil && verdict == Unsure {
			fmt.Fprintf(&b, " (%.2f–%.2f)", s.ToEnvoyBetween[0], s.ToEnvoyBetween[1])
		}
		if f := floor(m); f != "" {
			fmt.Fprintf(&b, ", wanted %s", f)
		}
		if s.Errors > 0 {
			fmt.Fprintf(&b, ", %d errors", s.Errors)
		}
		b.WriteString("\n")
	}
	if b.Len() == 0 {
		return ""
	}
	return "\n## What Heddle does not win, or not for sure\n\n" + b.String()
}

// leftOut lists what a run of some metrics or subjects has no figures of, so that a part is not read as the whole.
func (r Report) leftOut() string {
	var metrics, subjects []string
	for _, m := range r.Metrics {
		if !slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Metric == m.ID }) {
			metrics = append(metrics, m.Title)
		}
	}
	for _, subject := range r.All {
		if !slices.Contains(r.Subjects, subject) {
			subjects = append(subjects, subject)
		}
	}
	if len(metrics)+len(subjects) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n## Not in this run\n\nA part of the benchmark was run. There are no figures of:\n\n")
	for _, name := range append(subjects, metrics...) {
		fmt.Fprintf(&b, "- %s\n", name)
	}
	return b.String()
}

// JSON writes the summaries.
func (r Report) JSON(out io.Writer) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	all := Summarise(r.Rows, r.Subjects)
	for i := range all {
		all[i].Congestion = r.Congestion
	}
	return encoder.Encode(all)
}
