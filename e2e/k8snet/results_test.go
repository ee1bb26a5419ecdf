package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestResults: what was run is not run again, in the next process too; what differs
// is confirmed alone; what is asked for again is run again.
func TestResults(t *testing.T) {
	const a, b, c = "[sig-network] Services should a", "[sig-network] DNS should b", "[sig-network] Netpol should c"
	names := []string{a, b, c}
	file := filepath.Join(t.TempDir(), "results.jsonl")
	open := func(heddle string) *results {
		r, err := openResults(file, heddle)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.close() })
		return r
	}
	add := func(r *results, side, test, state string, alone bool) {
		if err := r.add(side, test, outcome{state: state, message: "said\nmore"}, alone); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, got []job, want ...job) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	r := open("one")
	want("nothing was run", r.todo(names, ""), job{outside, a}, job{inside, a}, job{outside, b}, job{inside, b}, job{outside, c}, job{inside, c})
	add(r, outside, a, passed, false)
	add(r, inside, a, "failed", false)
	add(r, outside, b, passed, false)
	add(r, inside, b, notRun, false)
	add(r, outside, c, "failed", false)
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	// The process was killed while it wrote a line.
	half, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.WriteString(`{"test":"half`); err != nil {
		t.Fatal(err)
	}
	if err := half.Close(); err != nil {
		t.Fatal(err)
	}
	r = open("two")
	want("gone on with", r.todo(names, ""), job{inside, b}, job{inside, c})
	want("to confirm", r.unconfirmed(names, false), job{inside, b}, job{inside, a})
	add(r, inside, a, "failed", true)
	add(r, inside, b, passed, false)
	want("confirmed", r.unconfirmed(names, false))
	want("differing again", r.todo(names, againDiffering), job{inside, a}, job{inside, c})
	if got := r.todo(names, againAll); len(got) != 6 {
		t.Errorf("all again: %v", got)
	}
	if got := r.names(); !slices.Equal(got, []string{b, a}) {
		t.Errorf("with results on both sides: %v", got)
	}
	all := r.compare(names)
	if len(all.outside) != 2 || len(all.inside) != 2 || all.inside[a].state != "failed" || all.inside[a].message != "said\nmore" {
		t.Errorf("compared: %+v", all)
	}
	if got := r.versions(names); got != "two (2 tests)" {
		t.Errorf("versions %q", got)
	}
	if _, err := openResults(file, "beside"); err == nil || !strings.Contains(err.Error(), "-results") {
		t.Errorf("a second process adds to the results: %v", err)
	}
	shown, err := showResults(file)
	if err != nil || len(shown.names()) != 2 {
		t.Errorf("shown beside a run: %v", err)
	}
	if err := shown.close(); err != nil {
		t.Error(err)
	}
	r.close()
	again := open("three")
	want("read once more", again.todo(names, ""), job{inside, c})

	again.close()
	for name, text := range map[string]string{"no JSON": "x\n", "another side": `{"test":"a","side":"above","state":"passed"}` + "\n", "no state": `{"test":"a","side":"inside"}` + "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openResults(file, "four"); err == nil || !strings.Contains(err.Error(), "line 1") || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOptions(t *testing.T) {
	good := options{mode: "PERMISSIVE", probe: plain, parallel: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*options){
		"-mode": func(o *options) { o.mode = "LAX" }, "-probe": func(o *options) { o.probe = "x" }, "-again": func(o *options) { o.again = "some" },
		"-parallel": func(o *options) { o.parallel = 0 }, "-show": func(o *options) { o.show, o.again = true, againAll },
	} {
		bad := good
		spoil(&bad)
		if err := bad.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
