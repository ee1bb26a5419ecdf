package main

import (
	"fmt"
	"os"
	"strings"
)

// colour is on for a terminal, unless NO_COLOR says otherwise (no-color.org).
func colour() bool {
	if _, off := os.LookupEnv("NO_COLOR"); off {
		return false
	}
	info, err := os.Stdout.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func paint(code, text string) string {
	if !colour() {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func bold(text string) string  { return paint("1", text) }
func dim(text string) string   { return paint("2", text) }
func red(text string) string   { return paint("31;1", text) }
func green(text string) string { return paint("32;1", text) }

func heading(n, of int, title string) {
	fmt.Printf("\n%s %s\n", paint("36;1", fmt.Sprintf("[%d/%d]", n, of)), bold(title))
}

func say(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

// held prints one thing that was claimed and is so.
func held(format string, args ...any) {
	fmt.Printf("  %s %s\n", green("ok"), fmt.Sprintf(format, args...))
}

// shown prints a command and what it printed, at most limit lines.
func shown(command, output string, limit int) {
	fmt.Printf("  %s\n", dim("$ "+command))
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	for i, line := range lines {
		if i == limit {
			fmt.Printf("    %s\n", dim(fmt.Sprintf("... %d lines more", len(lines)-limit)))
			break
		}
		fmt.Printf("    %s\n", line)
	}
}
