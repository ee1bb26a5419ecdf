package bpf

import (
	_ "embed"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

//go:embed instructions.txt
var recordedInstructions string

// TestInstructions keeps the size of each program, and what the verifier walks
// through to accept it, near what instructions.txt records, so that growth
// shows in review. HEDDLE_RECORD=1 writes the file anew.
func TestInstructions(t *testing.T) {
	p := lonePod(t)
	if _, err := p.digestOf(1); err != nil { // loads what it takes
		t.Fatal(err)
	}
	var now []string
	size, walked := map[string]int{}, map[string]int{}
	for _, coll := range []*ebpf.Collection{p.gate, p.redirect, p.look} {
		for name, prog := range coll.Programs {
			info, err := prog.Info()
			if err != nil {
				t.Fatal(err)
			}
			verified, ok := info.VerifiedInstructions()
			if !ok {
				t.Fatalf("%s: this kernel does not say what it verified", name)
			}
			walked[name] = int(verified)
		}
	}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadGate, loadRedirect, loadEnroll, loadStamp, loadLook} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, prog := range spec.Programs {
			size[name] = len(prog.Instructions)
			now = append(now, fmt.Sprintf("%-16s %6d %8d", name, size[name], walked[name]))
		}
	}
	slices.Sort(now)
	table := "# program, instructions in the object, instructions the verifier walked (0: not measured)\n" + strings.Join(now, "\n") + "\n"
	if os.Getenv("HEDDLE_RECORD") != "" {
		if err := os.WriteFile("instructions.txt", []byte(table), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	seen := 0
	for line := range strings.Lines(recordedInstructions) {
		var name string
		var wantSize, wantWalked int
		if _, err := fmt.Sscan(line, &name, &wantSize, &wantWalked); err != nil {
			continue // the heading
		}
		seen++
		if grew(size[name], wantSize, 10) {
			t.Errorf("%s has %d instructions, recorded are %d", name, size[name], wantSize)
		}
		// Verifiers differ: a bound on growth, for every kernel.
		if wantWalked > 0 && walked[name] > 3*wantWalked {
			t.Errorf("%s: the verifier walks %d instructions, recorded are %d", name, walked[name], wantWalked)
		}
	}
	if seen != len(size) {
		t.Errorf("%d programs are recorded, there are %d: run with HEDDLE_RECORD=1", seen, len(size))
	}
	t.Log("\n" + table)
}

func grew(have, want, percent int) bool {
	return have*100 > want*(100+percent) || have*100 < want*(100-percent)
}
