package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// span is where a plugin is in a configuration's text.
type span struct{ begin, end int }

// list is a parsed configuration list (*.conflist): what it says, and where.
type list struct {
	name, version string
	plugins       []span
	types         []string // of the plugins
}

// parseList reads a configuration list. It keeps offsets, because a text that is
// spliced can be made what it was, byte for byte, and one that is written anew
// cannot.
func parseList(text []byte) (*list, error) {
	if !json.Valid(text) {
		var any json.RawMessage
		return nil, fmt.Errorf("not JSON: %w", json.Unmarshal(text, &any))
	}
	var l list
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := expect(dec, '{'); err != nil {
		return nil, err
	}
	found := 0
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		switch key {
		case "name":
			err = dec.Decode(&l.name)
		case "cniVersion":
			err = dec.Decode(&l.version)
		case "plugins":
			found++
			err = l.parsePlugins(dec, text)
		default:
			var skipped json.RawMessage
			err = dec.Decode(&skipped)
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", key, err)
		}
	}
	switch {
	case found > 1:
		return nil, errors.New("plugins: given twice")
	case len(l.plugins) == 0:
		return nil, errors.New("plugins: there is none")
	}
	return &l, nil
}

func expect(dec *json.Decoder, want json.Delim) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("begins with %v, not with %v", token, want)
	}
	return nil
}

func (l *list) parsePlugins(dec *json.Decoder, text []byte) error {
	if err := expect(dec, '['); err != nil {
		return err
	}
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		var plugin struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &plugin); err != nil {
			return err
		}
		end := int(dec.InputOffset())
		if !bytes.Equal(text[end-len(raw):end], raw) {
			return fmt.Errorf("plugin %d is not where it was read", len(l.plugins))
		}
		l.plugins = append(l.plugins, span{end - len(raw), end})
		l.types = append(l.types, plugin.Type)
	}
	_, err := dec.Token() // the end of the array
	return err
}

// withPlugin returns a configuration list with the plugin as its last, and the
// text as it is when it is there already, exactly so.
func withPlugin(text, plugin []byte) ([]byte, error) {
	text, _, err := withoutPlugin(text)
	if err != nil {
		return nil, err
	}
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	if err := chainable(l.version); err != nil {
		return nil, err
	}
	at := l.plugins[len(l.plugins)-1].end
	out := make([]byte, 0, len(text)+len(plugin)+1)
	out = append(append(append(out, text[:at]...), ','), plugin...)
	return append(out, text[at:]...), nil
}

// withoutPlugin takes the plugin out, wherever it is, and reports whether it was
// there: the inverse of withPlugin.
func withoutPlugin(text []byte) (out []byte, was bool, err error) {
	l, err := parseList(text)
	if err != nil {
		return nil, false, err
	}
	out = text
	for i := len(l.plugins) - 1; i >= 0; i-- {
		if l.types[i] != cniwire.PluginType {
			continue
		}
		was = true
		cut := span{0, l.plugins[i].end}
		switch {
		case i > 0: // with the comma before it
			cut.begin = l.plugins[i-1].end
		case len(l.plugins) > 1: // with the comma after it
			cut = span{l.plugins[0].begin, l.plugins[1].begin}
		default:
			return nil, true, fmt.Errorf("plugins: %s is the only one: the cluster's own is missing", cniwire.PluginType)
		}
		out = append(bytes.Clone(out[:cut.begin]), out[cut.end:]...)
		if l, err = parseList(out); err != nil {
			return nil, true, err
		}
		i = len(l.plugins) // what is before it is looked at again: offsets are new
	}
	return out, was, nil
}

// single is a parsed configuration of one plugin (*.conf).
type single struct {
	Name    string `json:"name"`
	Version string `json:"cniVersion"`
	Type    string `json:"type"`
}

func parseSingle(text []byte) (s single, err error) {
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("not a CNI configuration: %w", err)
	}
	if s.Type == "" {
		return s, errors.New("type: is missing: no runtime takes this configuration")
	}
	return s, nil
}

// listOf makes a configuration list of a single configuration, as libcni does
// (ConfListFromConf), with the plugin as its last.
func listOf(conf, plugin []byte) ([]byte, error) {
	s, err := parseSingle(conf)
	if err != nil {
		return nil, err
	}
	if err := chainable(s.Version); err != nil {
		return nil, err
	}
	head, err := json.Marshal(map[string]string{"cniVersion": s.Version, "name": s.Name})
	if err != nil {
		return nil, err
	}
	out := append(head[:len(head)-1], `,"plugins":[`...)
	out = append(append(append(out, bytes.TrimSpace(conf)...), ','), plugin...)
	return append(out, "]}\n"...), nil
}

// chainable refuses versions of the specification in which a plugin does not see
// the results of those before it, or sees them in a form that names no addresses.
func chainable(version string) error {
	var have [3]int
	parts := strings.Split(version, ".")
	for i := 0; i < len(parts) && i < len(have); i++ {
		have[i], _ = strconv.Atoi(parts[i]) // what is no number is 0: too old
	}
	switch {
	case len(parts) != 3, have[0] == 0 && (have[1] < 3 || have[1] == 3 && have[2] < 1):
		return fmt.Errorf("cniVersion: %q cannot be chained: raise it to 0.3.1 or newer in the cluster's CNI", version)
	case have[0] > 1 || have[0] == 1 && have[1] > 1:
		return fmt.Errorf("cniVersion: %q is newer than %s, which knows 0.3.1 to 1.1.0: upgrade Heddle", version, cniwire.PluginType)
	}
	return nil
}
