package jwtauthority

import (
	"os"
	"regexp"
	"testing"
	"time"
)

// TestTheValidityIsDocumented: wherever the pages say for how long a JWT-SVID is valid, they say DefaultTTL.
func TestTheValidityIsDocumented(t *testing.T) {
	for page, places := range map[string][]string{
		"workload-api.md": {`to one audience, for (\d+ \w+):`, `\| valid for \| (\d+ \w+);`},
		"certificates.md": {`\[JWT-SVIDs\]\(workload-api\.md#jwt-svids\) live for (\d+ \w+) `},
	} {
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, place := range places {
			said := regexp.MustCompile(place).FindSubmatch(text)
			if want := minutes(DefaultTTL); said == nil || string(said[1]) != want {
				t.Errorf("%s says %q where it has %s, want %s", page, said, place, want)
			}
		}
	}
}

// minutes is a duration as the pages have it.
func minutes(d time.Duration) string {
	return regexp.MustCompile(`m0s$`).ReplaceAllString(d.String(), " minutes")
}
