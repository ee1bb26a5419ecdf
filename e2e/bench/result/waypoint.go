package result

// WaypointMetrics are those of the waypoint beside Envoy as the same proxy, in the order in
// which they are shown.
func WaypointMetrics() []Metric {
	return []Metric{
		{ID: "way_h1", Unit: "1/s", Title: "requests/s, HTTP/1.1, 32 kept-alive connections", Floor: 1.3, Stretch: 2},
		{ID: "way_h1_cpu", Unit: "µs", Title: "CPU per request, HTTP/1.1", LessIsBetter: true},
		{ID: "way_h2", Unit: "1/s", Title: "requests/s, HTTP/2, 8 connections of 10 streams", Floor: 1, Stretch: 1.3},
		{ID: "way_h2_cpu", Unit: "µs", Title: "CPU per request, HTTP/2", LessIsBetter: true},
		{ID: "way_grpc", Unit: "1/s", Title: "calls/s, gRPC unary, 8 connections of 10 streams", Floor: 1, Stretch: 1.3},
		{ID: "way_grpc_cpu", Unit: "µs", Title: "CPU per call, gRPC unary", LessIsBetter: true},
		{ID: "way_down", Unit: "1/s", Title: "requests/s, HTTP/2 to a workload of HTTP/1.1"},
		{ID: "way_down_cpu", Unit: "µs", Title: "CPU per request, HTTP/2 to a workload of HTTP/1.1", LessIsBetter: true},
		{ID: "way_p50", Unit: "µs", Title: "latency at half of the slower one's requests/s, p50", LessIsBetter: true},
		{ID: "way_p99", Unit: "µs", Title: "latency at half of the slower one's requests/s, p99", LessIsBetter: true, Floor: 1, Stretch: 0.8},
		{ID: "way_own_p99", Unit: "µs", Title: "latency at half of its own requests/s, p99", LessIsBetter: true, Floor: 1, Stretch: 0.8},
		{ID: "way_grpc_p99", Unit: "µs", Title: "latency of gRPC unary at half of the slower one's calls/s, p99", LessIsBetter: true, Floor: 1, Stretch: 0.8},
		{ID: "way_grpc_own_p99", Unit: "µs", Title: "latency of gRPC unary at half of its own calls/s, p99", LessIsBetter: true, Floor: 1, Stretch: 0.8},
		{ID: "way_good_h1_1", Unit: "share", Title: "served in time of as much as it has room for, HTTP/1.1", Least: 0.5},
		{ID: "way_good_h1_2", Unit: "share", Title: "goodput at 2 × of that, as a share of what it was, HTTP/1.1", Least: 0.7},
		{ID: "way_good_h1_3", Unit: "share", Title: "goodput at 3 × of that, as a share of what it was, HTTP/1.1", Least: 0.7},
		{ID: "way_good_h2_1", Unit: "share", Title: "served in time of as much as it has room for, HTTP/2", Least: 0.5},
		{ID: "way_good_h2_2", Unit: "share", Title: "goodput at 2 × of that, as a share of what it was, HTTP/2", Least: 0.7},
		{ID: "way_good_h2_3", Unit: "share", Title: "goodput at 3 × of that, as a share of what it was, HTTP/2", Least: 0.7},
		{ID: "way_rss", Unit: "MB", Title: "resident memory, fresh", LessIsBetter: true},
		{ID: "way_rss_8000", Unit: "MB", Title: "resident memory, with idle connections", LessIsBetter: true, Floor: 0.4, Stretch: 0.2},
		{ID: "way_conn_kib", Unit: "KiB", Title: "memory per idle connection", LessIsBetter: true},
		{ID: "way_route", Unit: "ms", Title: "from a change of a route's file to its effect", LessIsBetter: true, Most: 1000},
	}
}

// Waypoint is the benchmark of the waypoint.
func Waypoint() Kind { return Kind{WaypointMetrics(), waypointPreamble, waypointMethod} }

const waypointPreamble = `# Benchmarks of the waypoint

Written by ` + "`make bench-waypoint`" + `, as measured; not edited. Ratios are what to look at: the figures themselves are of one machine on one day. A
ratio is taken within each repeat, in which the subjects follow each other closely, and its median over the repeats is shown.

- **heddle**: ` + "`heddle-waypoint`" + `, as many loops as cores.
- **envoy**: Envoy as the same proxy, as many workers as cores.

Both have the same twelve routes, metrics by route and backend, and a line of JSON in the access log, with the same fields, for each request.

Verdicts: **stretch** and **holds** reach a floor that the project set itself; **better** is better than Envoy where there is no floor;
**unsure** does so by the median, but not with all of the interval; **MISSED** is better than Envoy, but not by the floor; **LOST** is worse
than Envoy, or beyond a bound; **ERRORS** had failed requests or runs, and cannot win.
`

const waypointMethod = `
## Method

All over loopback, of one machine: the load, the proxy and the server share its cores. The subjects of one metric run one after the other,
forwards in one repeat and backwards in the next; who is not measured sleeps. An interval goes from the k-th smallest to the k-th largest value,
for the largest k that covers the median with 90 % at least; with fewer than five values it is their range. A good verdict is of the whole
interval: the worse end of it (of the ratio to Envoy, or of the value where the floor is a value) has to reach the floor, too, and the stretch
goal for **stretch**; otherwise the row is **unsure**. A bad one is of the median alone.

- Server: nginx, one worker: an answer of 64 bytes by HTTP/1.1 and by HTTP/2 with prior knowledge, and a message of gRPC with its trailers. Before
  anything is measured, a call by grpc-go has to get that message, and each kind of request its answer.
- HTTP/1.1: wrk, one thread. HTTP/2 and gRPC: h2load, one thread; they go on by HTTP/2, but for those to a workload of HTTP/1.1. Each request matches
  the last of the routes for its path.
- CPU: user and system time of the proxy, by the kernel's clock ticks of 10 ms. What the kernel does for it in interrupts is nobody's.
- Latency: a generator of this repository, 32 connections of HTTP/1.1, timed from when a request was due to its answer's last byte, whether or not
  the ones before it were answered. The rate is half of what wrk had in the same repeat: of the slower subject, for both; and of each its own.
- Latency of gRPC: h2load, 64 connections that send on their own every 10 ms what is due of half of what it had in the same repeat, up to 100 calls at a time each; timed
  from when a call was sent, which is up to 10 ms after it was due, to the end of its answer.
- Goodput: proxies of their own, which may have 32 requests under way (` + "`--max-requests`" + `, and Envoy's circuit breakers: as many connections, requests, and requests that wait),
  and a server that takes 50 ms over each: they have room for 640 requests/s, and the machine for more. One, two and three times that are sent, each request at its time whether or not
  the ones before it were answered: of HTTP/1.1 by the generator of this repository on 256 connections, of HTTP/2 by h2load on 16. Answers of 200 within a second count. A 503 is a
  request that was shed, and no error. What is served of the first is shown as a share of 640/s, and what is served of the other two as shares of that.
- Memory: VmRSS of fresh proxies, after a request and 7 s of rest; the idle connections have had an answer each, and as much rest.
- A change of a route: from renaming a file of configuration into its place to the first answer that goes by it, asked for every 2 ms. Heddle reads a folder of
  YAML; Envoy has its routes from a file (RDS) in a watched folder. In a cluster the operator streams the routes; what that adds is not in it.
- heddle-waypoint is run with ` + "`--direct`" + `, so that neither is told who its client is by a PROXY header. No policy is asked but PeerAuthentication, and Envoy has none.
`
