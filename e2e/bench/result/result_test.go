package result

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMedianOf(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		median  float64
		between [2]float64
	}{
		{[]float64{3}, 3, [2]float64{3, 3}},
		{[]float64{4, 2}, 3, [2]float64{2, 4}},
		{[]float64{5, 1, 4, 2, 3}, 3, [2]float64{1, 5}},
		// Of eight, the second to the seventh cover the median with 93 %.
		{[]float64{8, 7, 6, 5, 4, 3, 2, 1}, 4.5, [2]float64{2, 7}},
		// Of seven they would with 87.5 %, which is too little.
		{[]float64{7, 6, 5, 4, 3, 2, 1}, 4, [2]float64{1, 7}},
	} {
		if median, between := medianOf(c.values); median != c.median || between != c.between {
			t.Errorf("%v: got %v in %v, want %v in %v", c.values, median, between, c.median, c.between)
		}
	}
}

func TestCoverage(t *testing.T) {
	for _, c := range []struct {
		n, k int
		want float64
	}{{5, 1, 0.9375}, {7, 2, 0.875}, {8, 2, 1 - 18.0/256}, {4, 3, 0}} {
		if got := coverage(c.n, c.k); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("coverage of %d, %d: got %v, want %v", c.n, c.k, got, c.want)
		}
	}
}

// rows are two repeats of two metrics; one run of the reference engine failed.
func rows() []Row {
	return []Row{
		{0, "none", "rps", 400, 0}, {0, "heddle", "rps", 150, 0}, {0, "reference", "rps", 90, 0}, {0, "envoy", "rps", 100, 0},
		{1, "none", "rps", 800, 0}, {1, "heddle", "rps", 340, 0}, {1, "reference", "rps", 0, 1}, {1, "envoy", "rps", 200, 0},
		{0, "heddle", "p99", 90, 0}, {0, "envoy", "p99", 100, 0},
	}
}

func TestRatiosArePaired(t *testing.T) {
	all := Summarise(rows(), []string{"none", "heddle", "reference", "envoy"})
	if len(all) != 6 {
		t.Fatalf("got %d summaries, want 6: %+v", len(all), all)
	}
	heddle := all[1]
	// Within the repeats 1.5 and 1.7; the medians' own ratio would be 1.63.
	if heddle.Median != 245 || math.Abs(*heddle.ToEnvoy-1.6) > 1e-9 || heddle.N != 2 || *heddle.ToEnvoyBetween != [2]float64{1.5, 1.7} {
		t.Errorf("heddle: %+v, ratio %v in %v", heddle, *heddle.ToEnvoy, *heddle.ToEnvoyBetween)
	}
	if reference := all[2]; reference.N != 1 || reference.Errors != 1 || *reference.ToEnvoy != 0.9 {
		t.Errorf("a failed run counts as an error and not as a value: %+v", reference)
	}
}

func TestVerdicts(t *testing.T) {
	of := func(v float64) *float64 { return &v }
	up := Metric{Floor: 1.4, Stretch: 2}
	down := Metric{LessIsBetter: true, Floor: 0.8, Stretch: 0.6}
	for _, c := range []struct {
		name string
		m    Metric
		s    Summary
		want Verdict
	}{
		{"stretch", up, Summary{ToEnvoy: of(2)}, Stretched},
		{"floor", up, Summary{ToEnvoy: of(1.5)}, Held},
		{"better, below the floor", up, Summary{ToEnvoy: of(1.1)}, Missed},
		{"worse", up, Summary{ToEnvoy: of(0.99)}, Lost},
		{"less is better", down, Summary{ToEnvoy: of(0.7)}, Held},
		{"more is worse", down, Summary{ToEnvoy: of(1.01)}, Lost},
		{"no floor", Metric{}, Summary{ToEnvoy: of(1.2)}, Better},
		{"errors do not win", up, Summary{ToEnvoy: of(3), Errors: 1}, Failed},
		{"stretch, and its interval is above the floor", up, Summary{ToEnvoy: of(2.1), ToEnvoyBetween: &[2]float64{1.5, 2.4}}, Held},
		{"stretch, with all of its interval", up, Summary{ToEnvoy: of(2.1), ToEnvoyBetween: &[2]float64{2, 2.4}}, Stretched},
		{"stretch, and its interval crosses the floor", up, Summary{ToEnvoy: of(2.1), ToEnvoyBetween: &[2]float64{1.3, 2.4}}, Unsure},
		{"less is better, and its interval crosses the floor", down, Summary{ToEnvoy: of(0.73), ToEnvoyBetween: &[2]float64{0.26, 1.2}}, Unsure},
		{"less is better, and its interval ends at the floor", down, Summary{ToEnvoy: of(0.7), ToEnvoyBetween: &[2]float64{0.53, 0.8}}, Held},
		{"missed, and its interval crosses the floor", up, Summary{ToEnvoy: of(1.1), ToEnvoyBetween: &[2]float64{0.9, 1.6}}, Missed},
		{"lost, and its interval crosses all", up, Summary{ToEnvoy: of(0.9), ToEnvoyBetween: &[2]float64{0.5, 3}}, Lost},
		{"no floor, and its interval has Envoy's", Metric{}, Summary{ToEnvoy: of(1.2), ToEnvoyBetween: &[2]float64{0.9, 1.4}}, Unsure},
		{"own bound within the interval", Metric{LessIsBetter: true, Most: 40}, Summary{Median: 39, Between: [2]float64{38, 41}}, Unsure},
		{"own bound below, within the interval", Metric{Least: 0.7}, Summary{Median: 0.8, Between: [2]float64{0.6, 0.9}}, Unsure},
		{"own bound", Metric{LessIsBetter: true, Most: 40}, Summary{Median: 39, Between: [2]float64{38, 40}}, Held},
		{"above its own bound, below Envoy", Metric{LessIsBetter: true, Most: 40}, Summary{Median: 41, ToEnvoy: of(0.5)}, Lost},
		{"own bound below", Metric{Least: 0.7}, Summary{Median: 0.7, Between: [2]float64{0.7, 0.8}, ToEnvoy: of(0.9)}, Held},
		{"below its own bound, above Envoy", Metric{Least: 0.7}, Summary{Median: 0.69, ToEnvoy: of(2)}, Lost},
		{"Envoy was not there", up, Summary{Median: 1}, Unknown},
		{"no judge of itself", up, Summary{Subject: "envoy", ToEnvoy: of(1)}, Unknown},
	} {
		if got := Judge(c.m, c.s); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestTables(t *testing.T) {
	all := Summarise(rows(), []string{"none", "heddle", "reference", "envoy"})
	text, markdown := Text(all), Markdown(all)
	for _, want := range []string{"requests/s, 32 kept-alive connections", "≥ 1.4 (2) × Envoy", "ERRORS", "MISSED"} {
		if !strings.Contains(text, want) || !strings.Contains(markdown, want) {
			t.Errorf("%q is not in both of\n%s\n%s", want, text, markdown)
		}
	}
	width := -1
	for line := range strings.Lines(strings.TrimSpace(markdown)) {
		if n := strings.Count(line, "|"); width >= 0 && n != width {
			t.Errorf("a line has %d bars, the first %d: %s", n, width, line)
		} else {
			width = n
		}
	}
}

func TestJSON(t *testing.T) {
	data, err := json.Marshal(Summarise(rows(), []string{"heddle", "envoy"})[0])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"subject":"heddle","metric":"rps","unit":"1/s","median":245,"interval":[150,340],"n":2,"ratio_to_envoy":1.6,` +
		`"ratio_to_envoy_interval":[1.5,1.7],"ratio_to_none":0.4,"errors":0}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
}

func TestDocument(t *testing.T) {
	r := Report{
		Kind: Mesh("cubic"), Congestion: "cubic", Facts: []Fact{{"cores", "2"}}, Subjects: []string{"none", "heddle", "envoy"}, All: []string{"none", "heddle", "reference", "envoy"},
		Rows:     append(rows(), Row{1, "heddle", "p99", 250, 3}, Row{1, "envoy", "p99", 200, 0}),
		Sections: []Section{{"Where the time goes", "Nowhere.\n"}},
	}
	var b, again strings.Builder
	if err := r.Document(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# Benchmarks with cubic\n\nWritten by `make bench CONGESTION=cubic`, as measured", "- cores: 2\n", "## Not in this run\n", "\n- reference\n", "\n- throughput, 8 streams\n", "## Where the time goes\n\nNowhere.\n", "| p99 | heddle | 90.0, 250! |\n", "| rps | envoy | 100, 200 |\n",
		"- **ERRORS** latency at 1,600 requests/s, p99: 170 µs, 1.07 × Envoy, wanted ≤ 0.8 (0.6) × Envoy, 3 errors\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in the document:\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "\n- requests/s, 32 kept-alive connections\n") {
		t.Error("a metric that was measured is listed as left out")
	}
	if strings.Contains(b.String(), "**MISSED** requests") {
		t.Error("a floor that holds is listed as missed")
	}
	if err := r.JSON(&again); err != nil {
		t.Fatal(err)
	}
	var all []Summary
	if err := json.Unmarshal([]byte(again.String()), &all); err != nil || len(all) != 5 || all[1].Median != 245 || all[1].Congestion != "cubic" {
		t.Errorf("bench.json: %v, %+v", err, all)
	}
}
