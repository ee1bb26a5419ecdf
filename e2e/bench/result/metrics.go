package result

// Metric is something measured.
type Metric struct {
	ID, Unit, Title string
	// LessIsBetter is of times, CPU and memory.
	LessIsBetter bool
	// Floor is what Heddle's ratio to Envoy must reach, Stretch what it should; 0
	// for none. Most is what Heddle's own value must not exceed, Least what it must reach; 0 for none.
	Floor, Stretch, Most, Least float64
}

// Metrics are all metrics, in the order in which they are shown. The floors are
// those that the project set itself.
func Metrics() []Metric {
	return []Metric{
		{ID: "rps", Unit: "1/s", Title: "requests/s, 32 kept-alive connections", Floor: 1.4, Stretch: 2},
		{ID: "bulk1", Unit: "Gbit/s", Title: "throughput, 1 stream", Floor: 1.15, Stretch: 1.4},
		{ID: "bulk8", Unit: "Gbit/s", Title: "throughput, 8 streams", Floor: 1.3, Stretch: 1.6},
		{ID: "conn", Unit: "1/s", Title: "new connections/s, a request on each, 16 at a time", Floor: 1.3, Stretch: 2},
		{ID: "p50", Unit: "µs", Title: "latency at 1,600 requests/s, p50", LessIsBetter: true, Floor: 0.8, Stretch: 0.65},
		{ID: "p99", Unit: "µs", Title: "latency at 1,600 requests/s, p99", LessIsBetter: true, Floor: 0.8, Stretch: 0.6},
		{ID: "cpu_request", Unit: "µs", Title: "CPU of both proxies per request", LessIsBetter: true, Floor: 0.6, Stretch: 0.45},
		{ID: "cpu_conn", Unit: "µs", Title: "CPU of both proxies per connection with a request", LessIsBetter: true},
		{ID: "cpu_gb1", Unit: "s", Title: "CPU of both proxies per GB, 1 stream", LessIsBetter: true, Floor: 0.85, Stretch: 0.65},
		{ID: "cpu_gb8", Unit: "s", Title: "CPU of both proxies per GB, 8 streams", LessIsBetter: true, Floor: 0.85, Stretch: 0.65},
		{ID: "rss_idle", Unit: "MB", Title: "resident memory, idle, 10 pods on the node", LessIsBetter: true, Most: 40},
		{ID: "rss_idle_both", Unit: "MB", Title: "resident memory of both nodes, idle, 10 and 20 pods", LessIsBetter: true},
		{ID: "rss_1000", Unit: "MB", Title: "resident memory of both, 1,000 idle connections", LessIsBetter: true},
		{ID: "rss_8000", Unit: "MB", Title: "resident memory of both, 8,000 idle connections", LessIsBetter: true, Floor: 0.2, Stretch: 0.1},
		{ID: "conn_kib_out", Unit: "KiB", Title: "memory per idle connection, client's node, of 8,000", LessIsBetter: true, Most: 12},
		{ID: "conn_kib_in", Unit: "KiB", Title: "memory per idle connection, server's node, of 8,000", LessIsBetter: true, Most: 12},
		{ID: "wan0_1", Unit: "Mbit/s", Title: "throughput over 50 ms, 1 stream", Floor: 0.9},
		{ID: "wan0_100", Unit: "Mbit/s", Title: "throughput over 50 ms, 100 streams", Floor: 0.9},
		{ID: "wan1_1", Unit: "Mbit/s", Title: "throughput over 50 ms with 1 % loss, 1 stream", Floor: 0.9},
		{ID: "wan1_100", Unit: "Mbit/s", Title: "throughput over 50 ms with 1 % loss, 100 streams", Floor: 0.9},
		{ID: "pods_rps", Unit: "1/s", Title: "requests/s, 20 pods to 5", Floor: 0},
		{ID: "noise", Unit: "×", Title: "p99 of a quiet pod beside a loud one, to its own without", LessIsBetter: true, Most: 1.3},
		{ID: "noise_p99", Unit: "µs", Title: "p99 of a quiet pod beside a loud one", LessIsBetter: true},
		{ID: "some_noise", Unit: "×", Title: "p99 of a quiet pod beside 2 Gbit/s and 450 connections/s of another, to its own without", LessIsBetter: true, Most: 1.3},
		{ID: "some_noise_p99", Unit: "µs", Title: "p99 of a quiet pod beside 2 Gbit/s and 450 connections/s of another", LessIsBetter: true},
	}
}
