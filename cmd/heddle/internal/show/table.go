package show

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Paint is a colour of the terminal (ECMA-48, SGR).
type Paint string

// The colours. Plain is the terminal's own.
const (
	Plain  Paint = ""
	Bold   Paint = "\x1b[1m"
	Dim    Paint = "\x1b[2m"
	Red    Paint = "\x1b[31m"
	Green  Paint = "\x1b[32m"
	Yellow Paint = "\x1b[33m"
	reset        = "\x1b[0m"
)

// Cell is one value of a Table.
type Cell struct {
	Text  string
	Paint Paint
}

// Text is a Cell without a colour.
func Text(s string) Cell { return Cell{Text: s} }

// In is a Cell in a colour.
func In(s string, p Paint) Cell { return Cell{Text: s, Paint: p} }

// Table prints aligned columns. Rows are held back until Flush, when every
// column is as wide as it needs to be; columns of later rows only grow.
type Table struct {
	out    io.Writer
	color  bool
	header []string
	widths []int
	rows   [][]Cell
	begun  bool
}

// NewTable returns a Table with a column for each of the header's words. Color
// says whether out understands colours.
func NewTable(out io.Writer, color bool, header ...string) *Table {
	t := &Table{out: out, color: color, header: header, widths: make([]int, len(header))}
	for i, h := range header {
		t.widths[i] = len(h)
	}
	return t
}

// Add keeps a row for Flush. An empty text is shown as "-".
func (t *Table) Add(cells ...Cell) {
	for i := range cells {
		if cells[i].Text == "" {
			cells[i] = Cell{"-", Dim}
		}
		cells[i].Text = Printable(cells[i].Text)
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cells[i].Text))
	}
	t.rows = append(t.rows, cells)
}

// Printable is a text of others, of one line, without what a terminal would obey, or what ends a line to whoever reads
// it: of YAML that is more than a newline.
func Printable(text string) string { return strings.Map(printable, text) }

// Lines is Printable of a text of several lines.
func Lines(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return printable(r)
	}, text)
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return utf8.RuneError
}

// Flush prints the header, once, and the rows so far.
func (t *Table) Flush() error {
	if !t.begun {
		t.begun = true
		cells := make([]Cell, len(t.header))
		for i, h := range t.header {
			cells[i] = Cell{h, Bold}
		}
		if err := t.print(cells); err != nil {
			return err
		}
	}
	rows := t.rows
	t.rows = nil
	for _, row := range rows {
		if err := t.print(row); err != nil {
			return err
		}
	}
	return nil
}

// Widen makes the first columns at least as wide, so that live columns seldom
// move.
func (t *Table) Widen(widths ...int) {
	for i, w := range widths {
		t.widths[i] = max(t.widths[i], w)
	}
}

func (t *Table) print(row []Cell) error {
	var b strings.Builder
	for i, c := range row {
		b.WriteString(Painted(c.Text, c.Paint, t.color))
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c.Text)+2))
		}
	}
	_, err := fmt.Fprintln(t.out, b.String())
	return err
}

// Painted puts s in a colour, if color is set.
func Painted(s string, p Paint, color bool) string {
	if !color || p == Plain {
		return s
	}
	return string(p) + s + reset
}

// Bytes shows a size with three digits or so: "1.4 MB".
func Bytes(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 999.5 && unit < 5 {
		v, unit = v/1000, unit+1
	}
	digits := 0
	if v < 9.95 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, v, " kMGTP"[unit])
}

// Packets shows a number of packets.
func Packets(n uint64) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}

// Duration shows a duration with three digits or so; "" for 0.
func Duration(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}

// Moment is a time in RFC 3339, of nanoseconds since 1970; "" for 0.
func Moment(ns int64) string {
	if ns == 0 {
		return ""
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339)
}

// Document prints v as indented JSON.
func Document(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
