// Package flame draws CPU profiles as flame graphs: SVG that any browser shows,
// without scripts. It reads what `go tool pprof -traces` prints.
package flame

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"html"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Frame is a function in its place in the stacks, with the time spent in it and
// in what it called.
type Frame struct {
	Name   string
	Total  time.Duration
	Called map[string]*Frame
}

func (f *Frame) call(name string) *Frame {
	if f.Called == nil {
		f.Called = map[string]*Frame{}
	}
	if f.Called[name] == nil {
		f.Called[name] = &Frame{Name: name}
	}
	return f.Called[name]
}

// Read reads traces: blocks between lines of dashes, each with its time before
// the innermost function, and then the function's callers.
func Read(traces io.Reader) (*Frame, error) {
	root := &Frame{Name: "all"}
	var stack []string
	var spent time.Duration
	add := func() {
		if len(stack) == 0 {
			return
		}
		root.Total += spent
		at := root
		for _, name := range slices.Backward(stack) {
			at = at.call(name)
			at.Total += spent
		}
		stack = nil
	}
	lines := bufio.NewScanner(traces)
	began := false
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "----") {
			add()
			began = true
			continue
		}
		text := strings.TrimSpace(line)
		if !began || text == "" {
			continue
		}
		if len(stack) == 0 {
			value, name, ok := strings.Cut(text, " ")
			d, err := time.ParseDuration(value)
			if err != nil || !ok {
				continue // a label of the sample
			}
			spent, text = d, strings.TrimSpace(name)
		}
		stack = append(stack, strings.TrimSuffix(text, " (inline)"))
	}
	add()
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if root.Total == 0 {
		return nil, fmt.Errorf("no samples in the profile")
	}
	return root, nil
}

const (
	width     = 1200.0
	rowHeight = 17
	// letter is the width of one letter; what is narrower than narrowest is not
	// drawn.
	letter, narrowest = 7.0, 0.5
)

// Draw writes the graph: the outermost functions at the top, the widths the
// times. Every box says by its title what it is and its share.
func Draw(out io.Writer, title string, root *Frame) error {
	var b strings.Builder
	depth := draw(&b, root, root.Total, 0, 1)
	height := (depth + 2) * rowHeight
	_, err := fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" font-family="monospace" font-size="12">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="4" y="13">%s: %v of CPU time</text>
%s</svg>
`, width, height, html.EscapeString(title), root.Total.Round(10*time.Millisecond), b.String())
	return err
}

// draw writes a frame and what it called, and returns the deepest row.
func draw(b *strings.Builder, f *Frame, all time.Duration, x float64, row int) int {
	w := width * float64(f.Total) / float64(all)
	if w < narrowest {
		return row
	}
	short := f.Name[strings.LastIndexByte(f.Name, '/')+1:]
	if fits := int(w / letter); len(short) > fits {
		short = short[:max(0, fits)]
	}
	y := row * rowHeight
	fmt.Fprintf(b, `<g><title>%s: %.1f %%</title><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text></g>`+"\n",
		html.EscapeString(f.Name), 100*float64(f.Total)/float64(all), x, y, max(w-0.5, 0.4), rowHeight-1, colour(f.Name), x+2, y+12, html.EscapeString(short))
	deepest := row
	for _, name := range slices.Sorted(maps.Keys(f.Called)) {
		called := f.Called[name]
		deepest = max(deepest, draw(b, called, all, x, row+1))
		x += width * float64(called.Total) / float64(all)
	}
	return deepest
}

// colour tells the kernel's work, cryptography, the runtime and the rest apart,
// and neighbours a little.
func colour(name string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	shade := int(h.Sum32() % 24)
	hue := [...]int{0, 200, 110, 30}[kind(name)]
	return fmt.Sprintf("hsl(%d,75%%,%d%%)", hue, 62+shade/2)
}

// Share is a part of a profile's time.
type Share struct {
	Of   string
	Part float64
}

// Shares says what the time was spent in itself, by kind.
func Shares(root *Frame) []Share {
	kinds := []Share{{Of: "system calls: the kernel's sockets, with copying"}, {Of: "cryptography"}, {Of: "Go's runtime, with copying in memory"}, {Of: "Heddle and other packages"}}
	var walk func(f *Frame)
	walk = func(f *Frame) {
		self := f.Total
		for _, called := range f.Called {
			self -= called.Total
			walk(called)
		}
		kinds[kind(f.Name)].Part += float64(self) / float64(root.Total)
	}
	walk(root)
	return kinds
}

func kind(name string) int {
	switch {
	case strings.Contains(name, "yscall"):
		return 0
	case isCryptography(name):
		return 1
	case strings.HasPrefix(name, "runtime."), strings.HasPrefix(name, "internal/runtime/"):
		return 2
	}
	return 3
}

// isCryptography also knows the cipher of our own (ADR 25), which records go by on most processors.
func isCryptography(name string) bool {
	return strings.HasPrefix(name, "crypto/") || strings.HasPrefix(name, "golang.org/x/crypto/") || strings.Contains(name, "/internal/hbone/aesgcm.")
}
