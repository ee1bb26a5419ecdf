package fast_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
)

// recorded is a frozen connection as version 1 wrote it. It is read for ever: an
// agent of that version may be the one that gives.
type recorded struct {
	State json.RawMessage
	Data  []byte
	Files int
}

// TestGoldenStates: what was written once is read with nothing lost. A file is
// made only when it is missing and HEDDLE_RECORD is set.
func TestGoldenStates(t *testing.T) {
	for _, name := range []string{"client", "server"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("frozen", "testdata", "v1-"+name+".json")
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) && os.Getenv("HEDDLE_RECORD") != "" {
				text = record(t, name)
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
			var then recorded
			if err := json.Unmarshal(text, &then); err != nil {
				t.Fatal(err)
			}
			z, err := frozen.Decode(then.State, then.Data, then.Files)
			if err != nil {
				t.Fatal(err)
			}
			if z.Server != (name == "server") || len(z.Streams) != 1 || z.Peer == "" || len(z.Chain) == 0 {
				t.Errorf("%+v", z)
			}
			state, data, err := z.Encode()
			if err != nil {
				t.Fatal(err)
			}
			var before, after map[string]any
			if err := errors.Join(json.Unmarshal(then.State, &before), json.Unmarshal(state, &after)); err != nil {
				t.Fatal(err)
			}
			for field, value := range before {
				if field != "Version" && !reflect.DeepEqual(after[field], value) {
					t.Errorf("%s is %v, and was %v", field, after[field], value)
				}
			}
			if string(data) != string(then.Data) {
				t.Errorf("%d bytes of data, and there were %d", len(data), len(then.Data))
			}
		})
	}
}

// TestGoldenForward: what a later version adds is passed over, unless it says that it
// must not be.
func TestGoldenForward(t *testing.T) {
	for _, name := range []string{"client", "server"} {
		text, err := os.ReadFile(filepath.Join("frozen", "testdata", "v1-"+name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var then recorded
		var fields map[string]any
		if err := errors.Join(json.Unmarshal(text, &then), json.Unmarshal(then.State, &fields)); err != nil {
			t.Fatal(err)
		}
		for least, readable := range map[int]bool{frozen.Version: true, frozen.Version + 1: false} {
			fields["Version"], fields["Least"], fields["Colour"] = frozen.Version+1, least, map[string]any{"of": []any{1, "two"}}
			later, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			z, err := frozen.Decode(later, then.Data, then.Files)
			if (err == nil) != readable {
				t.Errorf("%s of a version that %d can read: %v", name, least, err)
			}
			if err == nil && (len(z.Streams) != 1 || z.Session.Out.Sequence == 0 || z.Peer == "") {
				t.Errorf("%s: not all of it was read: %+v", name, z)
			}
		}
	}
}

// record freezes a connection with a stream.
func record(t *testing.T, end string) (text []byte) {
	w := newWorld(t, newFastEngine, newFastEngine)
	f := w.mustOpen()
	if err := f.echo("recorded"); err != nil {
		t.Fatal(err)
	}
	s := map[string]*site{"client": w.client, "server": w.server}[end]
	s.mustMove(func(f *hbone.Frozen) {
		var err error
		if text, err = json.MarshalIndent(recorded{f.State, f.Data, len(f.Files)}, "", "\t"); err != nil {
			t.Error(err)
		}
	})
	if err := f.finish(); err != nil {
		t.Error(err)
	}
	return append(text, '\n')
}
