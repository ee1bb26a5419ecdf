package programtext

import (
	"os"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// own is what of the program's clean mappings is resident, in KiB.
func own(t *testing.T) (resident int) {
	t.Helper()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := parse(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.clean(exe) {
			resident += m.resident
		}
	}
	return resident
}

// TestDrop: the program's pages are gone afterwards, and it runs on.
func TestDrop(t *testing.T) {
	before := own(t)
	whole, err := Resident()
	if err != nil || whole < before*1024 {
		t.Fatalf("%d bytes of files are resident, %d KiB of the program, %v", whole, before, err)
	}
	if before < 500 {
		t.Fatalf("%d KiB are resident: nothing was found", before)
	}
	if err := Drop(); err != nil {
		t.Fatal(err)
	}
	after := own(t)
	t.Logf("%d KiB, then %d KiB", before, after)
	if after > before*9/10 {
		t.Errorf("%d KiB are resident of %d before", after, before)
	}
}

const sample = `00400000-01400000 r-xp 00000000 fe:00 123                                /usr/bin/heddle agent (deleted)
Size:              16384 kB
Rss:                9792 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01400000-01401000 r--p 01000000 fe:00 123                                /usr/bin/heddle agent (deleted)
Rss:                   4 kB
Anonymous:             4 kB
01401000-01402000 rw-p 01001000 fe:00 123                                /usr/bin/heddle agent (deleted)
Rss:                   4 kB
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 124                        /usr/lib/other
Rss:                   4 kB
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0 
Rss:                 100 kB
Anonymous:           100 kB
`

// TestClean: only what is the program's file, and nothing else, is dropped.
func TestClean(t *testing.T) {
	all, err := parse(strings.NewReader(sample))
	if err != nil || len(all) != 5 {
		t.Fatalf("%d mappings, %v", len(all), err)
	}
	if m := all[0]; m.start != 0x400000 || m.end != 0x1400000 || m.resident != 9792 {
		t.Errorf("got %+v", m)
	}
	for i, want := range []bool{true, false, false, false, false} {
		if got := all[i].clean("/usr/bin/heddle agent (deleted)"); got != want {
			t.Errorf("mapping %d is clean: %v, want %v", i, got, want)
		}
	}
	for _, broken := range []string{"Rss: 4 kB\n", "00400000-01400000 r-xp\n", "x-y r-xp 0 0 0 /a\n", sample + "Rss: many\n"} {
		if _, err := parse(strings.NewReader(broken)); err == nil {
			t.Errorf("%q was understood", broken)
		}
	}
}
