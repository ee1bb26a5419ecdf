package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// judge reads what govulncheck prints, and passes it on when it finds what is not
// known: then it is an error, as it is when the scan did not come to its end. What is
// known and not found any more is said.
func judge(report io.Reader, file string, out io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	known, err := parseKnown(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	found, whole, err := parseReport(report)
	if err != nil {
		return err
	}
	var unknown []string
	for _, id := range found {
		if _, ok := known[id]; !ok {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) > 0 {
		_, err := io.WriteString(out, whole)
		return errors.Join(err, fmt.Errorf("%d vulnerabilities are not known: %s; remedy: take the version in which they are fixed, or write them into %s with the reason",
			len(unknown), strings.Join(unknown, ", "), file))
	}
	for id := range known {
		if !slices.Contains(found, id) {
			fmt.Fprintf(out, "%s is not found any more: take it out of %s when no build has it\n", id, file)
		}
	}
	_, err = fmt.Fprintf(out, "vulncheck: nothing that is not known; %d known\n", len(found))
	return err
}

// parseKnown reads lines of an identifier and a reason; # begins a comment.
func parseKnown(text string) (map[string]string, error) {
	known := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		id, reason, _ := strings.Cut(line, " ")
		if reason = strings.TrimSpace(reason); !strings.HasPrefix(id, "GO-") || reason == "" {
			return nil, fmt.Errorf("%q: write GO-YYYY-NNNN and the reason", line)
		}
		known[id] = reason
	}
	return known, nil
}

// parseReport returns the vulnerabilities that govulncheck has found, and all of what
// it said. What does not say how it ended is no report.
func parseReport(r io.Reader) (found []string, whole string, err error) {
	heading := regexp.MustCompile(`^Vulnerability #[0-9]+: (GO-[0-9]+-[0-9]+)$`)
	var all strings.Builder
	ended := false
	lines := bufio.NewScanner(io.LimitReader(r, 64<<20))
	for lines.Scan() {
		line := lines.Text()
		all.WriteString(line + "\n")
		if m := heading.FindStringSubmatch(line); m != nil {
			found = append(found, m[1])
		}
		ended = ended || strings.HasPrefix(line, "No vulnerabilities found") || strings.HasPrefix(line, "Your code ")
	}
	if err := lines.Err(); err != nil {
		return nil, "", err
	}
	if !ended {
		return nil, "", fmt.Errorf("govulncheck did not come to its end:\n%s", all.String())
	}
	return found, all.String(), nil
}
