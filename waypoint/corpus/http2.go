package corpus

import (
	"bytes"
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

//go:embed http2.txt
var downgrades string

// Downgrades are the cases of what a client sends in HTTP/2 to a proxy whose backend speaks HTTP/1.1.
// Send is all that the client says, on stream 1.
func Downgrades() ([]Case, error) {
	cases, err := parse("http2.txt", downgrades)
	for i := range cases {
		if err == nil {
			cases[i].Send, err = cases[i].frames.wire()
		}
	}
	return cases, err
}

// frames are those of a stream, in their order: heads, and DATA between and behind them.
type frames struct {
	all  []frame
	open bool // the last one does not end the stream
}

// frame is a head, or DATA.
type frame struct {
	head   bool
	fields []hpack.HeaderField
	data   []byte
}

// set takes a line of a case, and says whether it is about frames.
func (s *frames) set(name, value string) (bool, error) {
	switch name {
	case "open":
		first := frame{head: true}
		if value != "-" {
			for _, f := range [][2]string{{":method", value}, {":scheme", "http"}, {":authority", "h"}, {":path", "/"}} {
				first.fields = append(first.fields, hpack.HeaderField{Name: f[0], Value: f[1]})
			}
		}
		s.all = []frame{first}
	case "field", "replace":
		return true, s.field(value, name == "replace")
	case "data":
		data, err := unquote(value)
		s.all = append(s.all, frame{data: data})
		return true, err
	case "trailers":
		s.all = append(s.all, frame{head: true})
	case "unended":
		s.open = value == "yes"
	default:
		return false, nil
	}
	return true, nil
}

// field adds a field to the last head, or puts it in the place of one that is there. What parts its name from
// its value is a colon and a space as they are in the line: those of its own are written as escapes.
func (s *frames) field(line string, replace bool) error {
	if len(s.all) == 0 || !s.all[len(s.all)-1].head {
		return fmt.Errorf("a field without a head: %q", line)
	}
	head := &s.all[len(s.all)-1]
	rawName, rawValue, ok := strings.Cut(line, ": ")
	if !ok {
		rawName, ok = strings.CutSuffix(line, ":")
	}
	name, err := unquote(rawName)
	if err != nil || !ok {
		return fmt.Errorf("no field: %q", line)
	}
	value, err := unquote(rawValue)
	if err != nil {
		return fmt.Errorf("no field: %q", line)
	}
	if !replace {
		head.fields = append(head.fields, hpack.HeaderField{Name: string(name), Value: string(value)})
		return nil
	}
	for i := range head.fields {
		if head.fields[i].Name == string(name) {
			head.fields[i].Value = string(value)
			return nil
		}
	}
	return fmt.Errorf("no field to replace: %q", line)
}

// wire is what a client says: its preface, SETTINGS, and the stream, whose last frame ends it.
func (s *frames) wire() ([]byte, error) {
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer, encoder := http2.NewFramer(&out, nil), hpack.NewEncoder(&block)
	framer.AllowIllegalWrites = true
	if err := framer.WriteSettings(); err != nil {
		return nil, err
	}
	for i, f := range s.all {
		last := i == len(s.all)-1 && !s.open
		if !f.head {
			if err := framer.WriteData(1, last, f.data); err != nil {
				return nil, err
			}
			continue
		}
		block.Reset()
		for _, field := range f.fields {
			if err := encoder.WriteField(field); err != nil {
				return nil, err
			}
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: last}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// Told is what a proxy has said of stream 1: the final status, "" for none, and how the stream, or its
// connection, was ended before its time, "" for not.
type Told struct{ Status, Reason, Reset string }

// ReadTold reads what a proxy has said to a client, as far as it can be read.
func ReadTold(raw []byte) (told Told) {
	framer := http2.NewFramer(nil, bytes.NewReader(raw))
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return told
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if status := f.PseudoValue("status"); f.StreamID == 1 && status >= "200" {
				told.Status = status
				for _, field := range f.RegularFields() {
					if field.Name == "x-heddle-reason" {
						told.Reason = field.Value
					}
				}
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == 1 {
				told.Reset = f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo && told.Reset == "" {
				told.Reset = "connection " + f.ErrCode.String()
			}
		}
	}
}

func unquote(text string) ([]byte, error) {
	s, err := strconv.Unquote(`"` + text + `"`)
	return []byte(s), err
}
