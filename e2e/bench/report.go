package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/flame"
	"github.com/heddle-mesh/heddle/e2e/bench/machine"
	"github.com/heddle-mesh/heddle/e2e/bench/measure"
	"github.com/heddle-mesh/heddle/e2e/bench/result"
	"github.com/heddle-mesh/heddle/e2e/bench/world"
)

// flamesFolder has the flame graphs, beside the document.
const flamesFolder = "flames"

// write writes the document, bench.json and the flame graphs. Without flame
// graphs it writes the others all the same. Under a congestion control that is not the
// machine's the document is one of its own, beside the other, and has no flame graphs.
func (b *bench) write(ctx context.Context, scratch string) error {
	r := result.Report{Kind: result.Mesh(b.congestion), Facts: b.facts(), Congestion: b.wentBy(), Subjects: b.subjects, All: world.Subjects(), Rows: b.measured}
	var profileErr error
	document, figures := fileNames(b.congestion)
	if w := b.worlds["heddle"]; w != nil && b.congestion == "" {
		b.say("profiling the agents")
		profiles, err := measure.Profiles(ctx, w, b.sizes, scratch)
		if err == nil {
			r.Sections = append(r.Sections, result.Section{Title: "Where the agents' CPU time goes, and what bounds it", Text: limits(profiles)})
			err = b.drawFlames(profiles)
		}
		profileErr = err
	}
	err := errors.Join(
		writeFile(filepath.Join(b.docs, document), r.Document),
		writeFile(filepath.Join(b.docs, figures), r.JSON),
		profileErr,
	)
	if err == nil {
		b.say("written in %s: %s, %s and the flame graphs that were drawn, in %s", b.docs, document, figures, flamesFolder)
	}
	return err
}

// fileNames are of the document and its figures.
func fileNames(congestion string) (document, figures string) {
	if congestion != "" {
		congestion = "-" + congestion
	}
	return "benchmarks" + congestion + ".md", "bench" + congestion + ".json"
}

// wentBy is the congestion control of all namespaces.
func (b *bench) wentBy() string {
	if b.congestion != "" {
		return b.congestion
	}
	return machine.CongestionControl()
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func (b *bench) drawFlames(profiles []measure.Profile) error {
	folder := filepath.Join(b.docs, flamesFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, p := range profiles {
		err := writeFile(filepath.Join(folder, p.Name+".svg"), func(out io.Writer) error { return flame.Draw(out, p.Title, p.Root) })
		if err != nil {
			return err
		}
	}
	return nil
}

// limits says what share of the agents' time is whose. What cryptography costs
// is the most that a null cipher could win.
func limits(profiles []measure.Profile) string {
	if len(profiles) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("Shares of the CPU time of one profile each, by the function that spent it. The share of the system calls is the floor of any proxy\n" +
		"in user space that moves the bytes by reading and writing; that of cryptography is the most that a null cipher, or an offload, could win.\n\n| profile |")
	for _, s := range flame.Shares(profiles[0].Root) {
		fmt.Fprintf(&b, " %s |", s.Of)
	}
	b.WriteString(" flame graph |\n|---|" + strings.Repeat("---|", len(flame.Shares(profiles[0].Root))+1) + "\n")
	for _, p := range profiles {
		fmt.Fprintf(&b, "| %s |", p.Title)
		for _, s := range flame.Shares(p.Root) {
			fmt.Fprintf(&b, " %.0f %% |", 100*s.Part)
		}
		fmt.Fprintf(&b, " [%s](%s/%s.svg) |\n", p.Name, flamesFolder, p.Name)
	}
	return b.String()
}

// facts are of the machine and the run, without what names the machine.
func (b *bench) facts() []result.Fact {
	repeats := fmt.Sprintf("%d repeats", b.repeats)
	if n := b.repeatsOf("lat"); n > b.repeats {
		repeats += fmt.Sprintf(", %d of the latency,", n)
	}
	facts := []result.Fact{{Name: "measured", Value: fmt.Sprintf("%s, %s in %v", b.started.UTC().Format(time.DateOnly), repeats, time.Since(b.started).Round(time.Second))}}
	facts = append(facts, machine.Facts(b.root)...)
	if slices.Contains(b.subjects, "envoy") {
		value := "unknown"
		if binary, err := world.EnvoyBinary(b.root); err == nil {
			value = machine.Said(".", `\d+\.\d+\.\d+`, binary, "--version")
		}
		facts = append(facts, result.Fact{Name: "Envoy", Value: value})
	}
	return append(facts,
		result.Fact{Name: "wrk, iperf3, nginx", Value: strings.Join([]string{
			machine.Said(".", `\d+\.\d+\.\d+`, "wrk", "-v"), machine.Said(".", `\d+\.\d+`, "iperf3", "--version"), machine.Said(".", `\d+\.\d+\.\d+`, "nginx", "-v")}, ", ")},
		result.Fact{Name: "congestion control", Value: b.wentBy()},
		result.Fact{Name: "load of the machine at the start, 1 minute", Value: b.loadAtStart},
		result.Fact{Name: "taken by the hypervisor", Value: b.steadied.String()},
	)
}
