package http2_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/corpus"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

func corpusCases(t testing.TB) []corpus.Case {
	t.Helper()
	cases, err := corpus.Downgrades()
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 120 {
		t.Fatalf("%d cases", len(cases))
	}
	return cases
}

// TestCorpus: what a client says in HTTP/2 is one request to a backend of HTTP/1.1, or none, as the corpus has it, however it is cut; what is
// refused is told so with its reason, and the next stream works.
func TestCorpus(t *testing.T) {
	names := map[string]bool{}
	for _, c := range corpusCases(t) {
		if names[c.Name] || c.Source == "" || len(c.Want) == 0 {
			t.Errorf("%s: twice, without a source, or without a reading", c.Name)
		}
		names[c.Name] = true
		wire := slices.Concat(c.Send, newTalk().get(3).Bytes())
		for _, size := range []int{1, 3, 7, len(wire)} {
			if got, s := readCase(t, c, wire, size); !slices.Equal(got, c.Want) {
				t.Errorf("%s, in pieces of %d: read %q, want %q\nsteps %q", c.Name, size, got, c.Want, s.steps)
				break
			}
		}
	}
}

// readCase is how the engine reads a case, and what it has told the client.
func readCase(t *testing.T, c corpus.Case, wire []byte, size int) (lines []string, s *side) {
	t.Helper()
	s = server(http2.Defaults())
	all := downgrade(t, s, wire, func() int { return size })
	if s.err != nil {
		t.Fatalf("%s: %v", c.Name, s.err)
	}
	wrong := refusedFor(s.steps)
	for _, d := range all {
		if d.id == 1 {
			lines = d.read(t, c.Shown...)
		}
	}
	told := corpus.ReadTold(s.out)
	switch {
	case !slices.Contains(s.steps, "3 end"):
		t.Fatalf("%s: the next stream is %q", c.Name, s.steps)
	case wrong == 0:
		return lines, s
	case wrong.Status() != 0 && (told.Status != fmt.Sprint(wrong.Status()) || told.Reason != wrong.String()):
		t.Fatalf("%s: the client is told %+v of %v", c.Name, told, wrong)
	case told.Reset == xhttp2.ErrCodeProtocol.String():
		return append(lines, "malformed "+wrong.String()), s
	}
	return append(lines, "refused "+wrong.String()), s
}

// refusedFor is why stream 1 was refused, or reset; 0 for not.
func refusedFor(steps []string) reason.Reason {
	for _, step := range steps {
		name, refused := strings.CutPrefix(step, "1 refused ")
		if !refused {
			if name, refused = strings.CutPrefix(step, "1 reset "); !refused {
				continue
			}
			name, _, _ = strings.Cut(name, " ")
		}
		return reason.All()[slices.IndexFunc(reason.All(), func(r reason.Reason) bool { return r.String() == name })]
	}
	return 0
}
