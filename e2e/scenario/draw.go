package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// Draw draws what happened, from top to bottom: a line for each actor, an arrow for
// each thing that went from one to another, a cross where it did not arrive, a dot
// for what became so; in front the seconds since the start, behind the words. Each
// step stands above what it did, with its line; the one that failed is marked.
func (t *Trace) Draw() string {
	rows := t.rows()
	c := newCanvas(t.actors(rows))
	outcome := "all " + fmt.Sprint(len(t.script.Lines)) + " steps held"
	if t.failed != nil {
		outcome = fmt.Sprintf("line %d failed after %s s", t.script.Lines[t.failed.step].Number, seconds(t.failed.at.Sub(t.began)))
	}
	fmt.Fprintf(&c.out, "scenario %s in %s: %s\n\n", t.script.Name, t.world, outcome)
	c.header()
	marked := false
	for _, row := range rows {
		if t.failed != nil && !marked && row.step > t.failed.step {
			marked = true
			t.drawFailure(c)
		}
		t.drawRow(c, row)
	}
	if t.failed != nil && !marked {
		t.drawFailure(c)
	}
	return c.out.String()
}

func (t *Trace) drawRow(c *canvas, row event) {
	if row.from == "" { // a step begins
		l := t.script.Lines[row.step]
		mark := ""
		if t.failed != nil && t.failed.step == row.step {
			mark = failing
		}
		c.row(mark, row.at.Sub(t.began), c.lifelines(), fmt.Sprintf("%3d: %s", l.Number, l.Step))
		return
	}
	text := "     " + row.text
	if row.count > 1 {
		text += fmt.Sprintf(" (%d times, the last at %s)", row.count, seconds(row.last.Sub(t.began)))
	}
	c.row("", row.at.Sub(t.began), c.arrow(row), text)
}

const failing = "✗▶"

func (t *Trace) drawFailure(c *canvas) {
	var text strings.Builder
	for l := range strings.Lines(t.failed.err.Error()) {
		text.WriteString(strings.TrimRight(l, "\n") + " ")
	}
	c.row(failing, t.failed.at.Sub(t.began), c.lifelines(), "     FAILED: "+strings.TrimSpace(text.String()))
}

// actors are those of the script and of what happened, from left to right: who runs
// the steps, then for each node its workloads and its agent, the agents side by
// side, then the operator.
func (t *Trace) actors(rows []event) []string {
	met := map[string]bool{script.You: true, script.Operator: true}
	for _, e := range rows {
		met[e.from], met[e.to] = true, true
	}
	on := map[string][]string{}
	for _, w := range t.script.Workloads() {
		on[w.Node] = append(on[w.Node], w.Name)
		met[agentOf(w.Node)] = true
	}
	first, second := script.Nodes()[0], script.Nodes()[1]
	order := slices.Concat([]string{script.You}, on[first], []string{agentOf(first), agentOf(second)}, on[second], []string{script.Operator})
	return slices.DeleteFunc(order, func(name string) bool { return !met[name] })
}

// canvas draws rows of lifelines. Positions are columns of characters.
type canvas struct {
	out    strings.Builder
	actors []string
	center []int
	width  int
}

const gap = 2 // between two names

func newCanvas(actors []string) *canvas {
	c := &canvas{actors: actors}
	for _, name := range actors {
		own := max(utf8.RuneCountInString(name), 6)
		c.center = append(c.center, c.width+own/2)
		c.width += own + gap
	}
	return c
}

func (c *canvas) header() {
	cells := blank(c.width)
	for i, name := range c.actors {
		runes := []rune(name)
		copy(cells[max(0, c.center[i]-len(runes)/2):], runes)
	}
	c.line("", "seconds", cells, "")
}

func blank(width int) []rune { return []rune(strings.Repeat(" ", width)) }

// lifelines are the row in which nothing happens.
func (c *canvas) lifelines() []rune {
	cells := blank(c.width)
	for _, at := range c.center {
		cells[at] = '│'
	}
	return cells
}

// at is the column of an actor, or -1.
func (c *canvas) at(name string) int {
	i := slices.Index(c.actors, name)
	if i < 0 {
		return -1
	}
	return c.center[i]
}

// arrow draws what goes from one actor to another, or is so at one.
func (c *canvas) arrow(e event) []rune {
	cells := c.lifelines()
	from, to := c.at(e.from), c.at(e.to)
	switch {
	case from < 0 || to < 0:
		return cells
	case from == to && e.cut:
		cells[to] = '✗'
	case from == to:
		cells[to] = '●'
	default:
		step, start, head := 1, '├', '▶'
		if to < from {
			step, start, head = -1, '┤', '◀'
		}
		if e.cut {
			head = '✗'
		}
		cells[from] = start
		for i := from + step; i != to; i += step {
			cells[i] = '─'
		}
		cells[to-step] = head
	}
	return cells
}

func (c *canvas) row(mark string, at time.Duration, cells []rune, text string) {
	c.line(mark, seconds(at), cells, text)
}

func (c *canvas) line(mark, when string, cells []rune, text string) {
	row := fmt.Sprintf("%-2s %8s  %s%s", mark, when, string(cells), text)
	c.out.WriteString(strings.TrimRight(row, " ") + "\n")
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
