// Package corpus has the cases of smuggling and ambiguity that docs/http.md is about:
// what a client or a backend sends, where the case comes from, and how it is to be read. Tests run them
// through waypoint/http1 and through other proxies; no program imports it.
package corpus

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strings"
)

//go:embed requests.txt
var requests string

//go:embed responses.txt
var responses string

// Case is one of them.
type Case struct {
	// Name is unique among requests, and among responses. Source is where it comes from.
	Name, Source string
	// Asked is what a response answers: GET, HEAD, CONNECT or websocket.
	Asked string
	// Send comes first; Answer is what a backend says to a request, as soon as it has
	// read the head, and Then what the client sends after it.
	Send, Answer, Then []byte
	// EOF says that the backend closes after Send.
	EOF bool
	// Want is how it is to be read.
	Want []string
	// Shown are fields whose values are part of that, by their names in lower case.
	Shown []string

	frames frames // of HTTP/2
}

// Requests are the cases of what a client sends.
func Requests() ([]Case, error) { return parse("requests.txt", requests) }

// Responses are those of what a backend sends.
func Responses() ([]Case, error) { return parse("responses.txt", responses) }

func parse(file, text string) (cases []Case, err error) {
	for number, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "== "):
			cases = append(cases, Case{Name: line[3:], Asked: "GET"})
		case len(cases) == 0:
			err = errors.New("a line before the first case")
		default:
			err = cases[len(cases)-1].set(name, value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, number+1, err)
		}
	}
	return cases, nil
}

func (c *Case) set(name, value string) (err error) {
	if framed, err := c.frames.set(name, value); framed || err != nil {
		return err
	}
	switch name {
	case "source":
		c.Source = value
	case "asked":
		c.Asked = value
	case "send":
		c.Send, err = unquote(value)
	case "answer":
		c.Answer, err = unquote(value)
	case "then":
		c.Then, err = unquote(value)
	case "eof":
		c.EOF = value == "yes"
	case "want":
		c.Want = append(c.Want, value)
	case "shown":
		c.Shown = append(c.Shown, value)
	default:
		err = fmt.Errorf("no such line: %q", name)
	}
	return err
}

// Request is the request that a response case answers.
func (c *Case) Request() []byte {
	switch c.Asked {
	case "websocket":
		return []byte("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	case "CONNECT":
		return []byte("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n")
	}
	return []byte(c.Asked + " / HTTP/1.1\r\nHost: h\r\n\r\n")
}

// ReadRequests is what net/http's server reads: a line for each whole message, and
// the beginning of one that does not end. Fields that are shown are part of a line, also those that came as trailers.
func ReadRequests(raw []byte, shown ...string) (whole []string, begun string, err error) {
	r := bufio.NewReader(bytes.NewReader(raw))
	for {
		if _, err := r.Peek(1); err != nil {
			return whole, "", nil
		}
		q, err := http.ReadRequest(r)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return whole, "a head", nil
		} else if err != nil {
			return whole, "", err
		}
		head := fmt.Sprintf("%s %s %s", q.Method, q.RequestURI, q.Host)
		body, err := io.ReadAll(q.Body)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return whole, head, nil
		} else if err != nil {
			return whole, "", err
		}
		line := fmt.Sprintf("%s %q", head, body)
		for _, name := range shown {
			key := textproto.CanonicalMIMEHeaderKey(name)
			for _, value := range append(q.Header[key], q.Trailer[key]...) {
				line += fmt.Sprintf(" %s=%q", name, value)
			}
		}
		whole = append(whole, line)
	}
}

// ReadResponses is what net/http's client reads of a connection that was closed after raw, a line for each
// response to one request.
func ReadResponses(raw []byte, asked string) (lines []string) {
	r := bufio.NewReader(bytes.NewReader(raw))
	q := &http.Request{Method: asked}
	if asked == "websocket" {
		q.Method = http.MethodGet
	}
	for {
		if _, err := r.Peek(1); err != nil {
			return lines
		}
		a, err := http.ReadResponse(r, q)
		if err != nil {
			return append(lines, "unreadable")
		}
		if a.StatusCode == 101 || asked == "CONNECT" && a.StatusCode/100 == 2 {
			rest, _ := io.ReadAll(r) // of a slice of bytes
			return append(lines, fmt.Sprintf("%d tunnel %q", a.StatusCode, rest))
		}
		body, err := io.ReadAll(a.Body)
		switch reason := a.Header.Get("X-Heddle-Reason"); {
		case reason != "" && a.StatusCode >= 400:
			return append(lines, "refused "+reason)
		case err != nil:
			return append(lines, fmt.Sprintf("%d reset", a.StatusCode))
		}
		lines = append(lines, fmt.Sprintf("%d %q", a.StatusCode, body))
		if a.StatusCode >= 200 {
			return lines
		}
	}
}
