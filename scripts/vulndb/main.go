// Command vulndb lays the Go vulnerability database out as govulncheck reads it from a
// folder (https://go.dev/doc/security/vuln/database, API v1), from the OSV entries that
// the module golang.org/x/vulndb has in data/osv; and tells what govulncheck finds that
// is not known yet. It fetches nothing.
//
//	vulndb -osv DIR -out DIR
//	govulncheck ... | vulndb -known FILE
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of what is read: an entry's bytes, and how many there are. The database has
// 5,000 of at most 30 kB.
const maxEntry, maxEntries = 1 << 20, 100_000

// entry is what the indexes need of an OSV entry (https://ossf.github.io/osv-schema).
type entry struct {
	ID        string    `json:"id"`
	Modified  time.Time `json:"modified"` // of the module's entries it is year 1
	Published time.Time `json:"published"`
	Aliases   []string  `json:"aliases,omitempty"`
	Affected  []struct {
		Package struct {
			Name string `json:"name"`
		} `json:"package"`
	} `json:"affected"`
}

// module and its vulnerabilities are what index/modules.json has, vulnerability, with
// aliases, index/vulns.json.
type (
	module struct {
		Path  string          `json:"path"`
		Vulns []vulnerability `json:"vulns"`
	}
	vulnerability struct {
		ID       string    `json:"id"`
		Modified time.Time `json:"modified"`
		Aliases  []string  `json:"aliases,omitempty"`
	}
)

func main() {
	osv, out := flag.String("osv", "", "folder of OSV entries, GO-YYYY-NNNN.json"), flag.String("out", "", "folder to write; what is there is written over")
	known := flag.String("known", "", "file of vulnerabilities that are known, each a line with the reason; standard input is what govulncheck prints")
	flag.Parse()
	if *known != "" {
		if err := judge(os.Stdin, *known, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "vulndb:", err)
			os.Exit(1)
		}
		return
	}
	n, err := layOut(*osv, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vulndb:", err)
		os.Exit(1)
	}
	fmt.Printf("vulndb: %d entries in %s\n", n, *out)
}

// layOut writes the database, and returns how many entries it has.
func layOut(osv, out string) (int, error) {
	if osv == "" || out == "" {
		return 0, errors.New("-osv and -out are needed")
	}
	files, err := filepath.Glob(filepath.Join(osv, "GO-*.json"))
	if err != nil {
		return 0, err
	}
	if len(files) == 0 || len(files) > maxEntries {
		return 0, fmt.Errorf("%d entries in %s: between 1 and %d are expected", len(files), osv, maxEntries)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(out, "ID"), 0o755), os.MkdirAll(filepath.Join(out, "index"), 0o755)); err != nil {
		return 0, err
	}
	var all []vulnerability
	modules := map[string][]vulnerability{}
	var newest time.Time
	for _, file := range files {
		e, err := take(file, filepath.Join(out, "ID"))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		if e.Modified.After(newest) {
			newest = e.Modified
		}
		all = append(all, vulnerability{e.ID, e.Modified, e.Aliases})
		for _, path := range e.modules() {
			modules[path] = append(modules[path], vulnerability{ID: e.ID, Modified: e.Modified})
		}
	}
	if len(modules["stdlib"]) == 0 {
		return 0, fmt.Errorf("nothing in %s is of the standard library: it is no whole database, and would find nothing", osv)
	}
	var index []module
	for path, vulns := range modules {
		index = append(index, module{path, vulns})
	}
	slices.SortFunc(index, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	// The index of the whole last: a folder without it is no database.
	return len(all), errors.Join(write(out, "vulns", all), write(out, "modules", index), write(out, "db", map[string]time.Time{"modified": newest}))
}

// take copies one entry into a folder, and reads it.
func take(file, folder string) (*entry, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxEntry {
		return nil, fmt.Errorf("%d bytes, more than %d", info.Size(), maxEntry)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	e := &entry{}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, err
	}
	if e.Modified.IsZero() {
		e.Modified = e.Published
	}
	if e.ID+".json" != filepath.Base(file) {
		return nil, fmt.Errorf("is of %q", e.ID)
	}
	return e, os.WriteFile(filepath.Join(folder, e.ID+".json"), text, 0o644)
}

// modules are the affected ones, each once.
func (e *entry) modules() (paths []string) {
	for _, a := range e.Affected {
		if !slices.Contains(paths, a.Package.Name) {
			paths = append(paths, a.Package.Name)
		}
	}
	return paths
}

func write(out, name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "index", name+".json"), text, 0o644)
}
