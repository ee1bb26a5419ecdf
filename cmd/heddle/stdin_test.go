package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// given has a file, or what a text says, be the standard input of this process until the test ends.
func given(t *testing.T, text string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = f
	t.Cleanup(func() {
		os.Stdin = before
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestStandardInput: whatever takes files of YAML takes - in their place, as kubectl does, and says of what is wrong there
// on which line.
func TestStandardInput(t *testing.T) {
	const dir = "testdata/simulate/udp/"
	read := func(file string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	change, mesh := read(dir+"change.yaml"), read(dir+"mesh/mesh.yaml")
	const simulate, against, flows = "simulate --udp-by-identity", " --against " + dir + "mesh", " --flows " + dir + "flows.json"
	for _, tc := range []struct {
		input, command string
		code           int
		says           string
	}{
		{change, simulate + against + flows + " -f -", exitBreaks, read(dir + "simulate.txt")},
		{mesh, simulate + flows + " --against - -f " + dir + "change.yaml", exitBreaks, read(dir + "simulate.txt")},
		{"# nothing\n", simulate + against + flows + " -f -", exitInvalid, "there is no object in standard input"},
		{"kind: [\n", simulate + against + flows + " -f -", exitInvalid, "standard input:1: is not YAML"},
		{strings.Repeat("#", 4<<20+1), simulate + against + flows + " -f -", exitInvalid, "standard input: is larger than 4194304 bytes"},
		{change, simulate + against + " -f - --flows -", exitUsage, "standard input is named 2 times"},
		{change, simulate + against + flows + " -f -,-", exitUsage, "standard input is named 2 times"},
		{mesh, "suggest shop --udp-by-identity --against -" + flows, exitOK, read(dir + "suggest.yaml")},
		{mesh, "suggest shop --udp-by-identity --against - --flows -", exitUsage, "standard input is named 2 times"},
		{mesh, "validate --udp-by-identity -", exitOK, "Valid:"},
		{"kind: [\n", "validate -", exitFailed, "standard input:1: is not YAML"},
		{mesh, "explain --udp-by-identity -f - shop/customer shop/web:443", exitFailed, "→ Service shop/web port 443"},
		{"apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n", "analyze -f -", exitOK, "Nothing is cut off."},
		{"kind: [\n", "analyze -f -", exitInvalid, "standard input: document 1"},
		{"", "analyze -f -", exitInvalid, "there is no object in standard input"},
		{"", "analyze -f - -f -", exitUsage, "standard input is named 2 times"},
	} {
		given(t, tc.input)
		code, out, log := heddle(t, append(split(tc.command), "--state-dir", t.TempDir())...)
		if code != tc.code || !strings.Contains(out+log, tc.says) {
			t.Errorf("%s: exit %d, want %d and %q:\n%.3000s%s", tc.command, code, tc.code, tc.says, out, log)
		}
	}
}
