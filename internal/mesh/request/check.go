package request

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// text is b as a string, for as long as b stays as it is.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// checkPattern returns what a pattern wants.
func checkPattern(pattern string, most int) (text string, err error) {
	switch text, _, _ = Pattern(pattern).parts(); {
	case pattern == "":
		return "", errors.New("is empty")
	case len(pattern) > most:
		return "", fmt.Errorf("has %d octets, more than %d", len(pattern), most)
	case strings.Contains(text, "*"):
		return "", errors.New(`has "*" in the middle, or twice: it stands for the rest, at the beginning or at the end`)
	}
	return text, nil
}

// CheckHost says what is wrong with the pattern of a host, in any case, or nil.
func CheckHost(pattern string) error {
	text, err := checkPattern(pattern, MaxHost)
	if err != nil || text == "" {
		return err
	}
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		return checkAddress(text)
	}
	for i := range len(text) {
		if c := lower(text[i]); (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return fmt.Errorf("%q is not in the name of a host: it has no port, and no scheme", c)
		}
	}
	if !strings.HasSuffix(pattern, "*") && strings.HasSuffix(text, ".") {
		return errors.New("ends with a dot, without which hosts are compared")
	}
	return nil
}

// checkAddress is CheckHost for an address of IPv6 in brackets.
func checkAddress(text string) error {
	address, err := netip.ParseAddr(text[1 : len(text)-1])
	if err != nil || !address.Is6() || address.Zone() != "" {
		return errors.New("is no address of IPv6 in brackets")
	}
	if want := "[" + address.String() + "]"; want != strings.ToLower(text) {
		return fmt.Errorf("is compared as %q: write it so", want)
	}
	return nil
}

// CheckMethod says what is wrong with a method, or nil (RFC 9110, section 9.1). It has no "*",
// though a method could.
func CheckMethod(method string) error {
	if method == "" || len(method) > MaxMethod {
		return fmt.Errorf("has %d octets, want 1 to %d", len(method), MaxMethod)
	}
	for i := range len(method) {
		if c := method[i]; (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return errors.New("is not in capital letters, as methods are")
		}
	}
	return nil
}

// CheckPath says what is wrong with the pattern of a path, or nil: its text is in the form in
// which paths are compared, as far as that can be said of a part of one.
func CheckPath(pattern string) error {
	text, err := checkPattern(pattern, MaxText)
	if err != nil || text == "" {
		return err
	}
	_, prefix, suffix := Pattern(pattern).parts()
	whole := text
	switch {
	case suffix && text[0] != '/':
		whole = "/" + text
	case text[0] != '/':
		return errors.New(`does not begin with "/"`)
	}
	if prefix && (strings.HasSuffix(text, "/.") || strings.HasSuffix(text, "/..")) {
		whole += "x" // the segment goes on
	}
	merged, _ := uri.MergedPath(whole)
	switch normal, ok := uri.NormalPath(whole); {
	case !ok:
		return errors.New("is no path: it has no query, fragment, blank or backslash")
	case normal != whole:
		return fmt.Errorf("is compared as %q: write it so", normal)
	case merged != whole:
		return fmt.Errorf("is the same as %q to some servers, and would match nothing, or not all that you mean", merged)
	}
	return nil
}

// Upgrade is the one value that the header "upgrade" has: other upgrades are not handed on.
const Upgrade = "websocket"

// hop are headers about one connection only, or which waypoints write themselves, so that they are not judged.
var hop = [...]string{"connection", "content-length", "expect", "http2-settings", "keep-alive", "proxy-connection", "sec-websocket-accept", "sec-websocket-key", "te", "trailer",
	"transfer-encoding", "via", "x-heddle-reason"}

// CheckHeader says what is wrong with the name of a header, or nil.
func CheckHeader(name string) error {
	switch {
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("the name of a header has %d octets, want 1 to %d", len(name), MaxName)
	case name == "host":
		return errors.New(`header "host": write hosts`)
	case slices.ContainsFunc(hop[:], func(known string) bool { return alike(known, name) }):
		return fmt.Errorf("header %q: no waypoint hands it on, so that no request would have it; of upgrades, there is \"upgrade: websocket\"", name)
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return fmt.Errorf("header %q: is not the name of one, in lower case", name)
		}
	}
	return nil
}

// CheckValue says what is wrong with the pattern of a header's value, or nil.
func CheckValue(pattern string) error {
	text, err := checkPattern(pattern, MaxText)
	if err != nil {
		return err
	}
	if strings.Trim(pattern, " \t") != pattern {
		return errors.New("begins or ends with a blank, which no value does")
	}
	for i := range len(text) {
		if c := text[i]; c < ' ' && c != '\t' || c == 0x7f {
			return errors.New("has a control character, which no value has")
		}
	}
	return nil
}
