package fast_test

import (
	"cmp"
	"crypto/tls"
	"encoding"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// recorded is a frozen connection as version 1 wrote it. It is read for ever: an
// agent of that version may be the one that gives.
type recorded struct {
	State json.RawMessage
	Data  []byte
	Files int
}

// recordings are the frozen connections of testdata. What cannot be at one time is in
// several: "busy" is in the middle of everything, "opening" in the header of a stream
// that is the only one.
func recordings() map[string]func(*frozen.Conn) {
	return map[string]func(*frozen.Conn){
		"client": nil, "client-busy": busy, "client-opening": opening,
		"server": nil, "server-busy": busy, "server-opening": opening,
	}
}

func recordingPath(name string) string {
	return filepath.Join("frozen", "testdata", "v1-"+name+".json")
}

func readRecording(t *testing.T, name string) (then recorded) {
	t.Helper()
	text, err := os.ReadFile(recordingPath(name))
	if err == nil {
		err = json.Unmarshal(text, &then)
	}
	if err != nil {
		t.Fatal(err)
	}
	return then
}

func (r *recorded) decode(t *testing.T) *frozen.Conn {
	t.Helper()
	z, err := frozen.Decode(r.State, r.Data, r.Files)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestGoldenStates: what was written once is read with nothing lost. A file is
// made only when it is missing and HEDDLE_RECORD is set.
func TestGoldenStates(t *testing.T) {
	for name, change := range recordings() {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat(recordingPath(name)); errors.Is(err, fs.ErrNotExist) && os.Getenv("HEDDLE_RECORD") != "" {
				if err := os.WriteFile(recordingPath(name), record(t, name, change), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			then := readRecording(t, name)
			z := then.decode(t)
			if z.Server != strings.HasPrefix(name, "server") || 1+len(z.Streams) != then.Files || z.Peer == "" || len(z.Chain) == 0 {
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

// TestGoldenThaws: the parts of a recorded connection live, and know what it says.
func TestGoldenThaws(t *testing.T) {
	for name := range recordings() {
		then := readRecording(t, name)
		want, z := then.decode(t), then.decode(t)
		live, err := z.Thaw(nil, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		session, parser := live.Session.State(), live.Parser.State()
		if updates := &session.Updates; updates.Spent != want.Session.Updates.Spent || updates.Age < want.Session.Updates.Age {
			t.Errorf("%s: %+v of KeyUpdates, and there were %+v", name, *updates, want.Session.Updates)
		}
		session.Updates = want.Session.Updates // it ages
		for _, part := range [][2]any{{session, want.Session}, {parser, want.Parser}} {
			got, err1 := json.Marshal(part[0])
			was, err2 := json.Marshal(part[1])
			if err := errors.Join(err1, err2); err != nil || string(got) != string(was) {
				t.Errorf("%s: %s, and was %s (%v)", name, got, was, err)
			}
		}
		live.Session.Wipe()
	}
}

// TestGoldenFields: there is no field that the recordings of a role do not set. One that
// gets another name would be passed over by a reader of either version; one that is
// new needs a recording.
func TestGoldenFields(t *testing.T) {
	others := map[string][]string{
		"client": {"Conn.Server", "Conn.Serving", "Serving.Remote", "Serving.Local", "Serving.Handshake", "ParserState.Server", "ParserState.Preface", "Stream.Placed"},
		"server": {"Conn.Pool", "Pool.Endpoint", "Stream.Parting", "Stream.Timing", "Timing.Dial", "Timing.Handshake", "Timing.Connect", "Timing.Pooled"},
	}
	for role, other := range others {
		want, set := map[string]bool{}, map[string]bool{}
		fieldsOf(reflect.TypeFor[frozen.Conn](), want)
		for name := range recordings() {
			if strings.HasPrefix(name, role) {
				var value any
				if err := json.Unmarshal(readRecording(t, name).State, &value); err != nil {
					t.Fatal(err)
				}
				fieldsSet(reflect.TypeFor[frozen.Conn](), value, set)
			}
		}
		for field := range want {
			if !set[field] && !slices.Contains(other, field) {
				t.Errorf("%s: no recording sets %s", role, field)
			}
		}
		for _, field := range other {
			if !want[field] || set[field] {
				t.Errorf("%s: %s is not of the other role alone", role, field)
			}
		}
	}
}

// fieldsOf collects the fields of a type as "Type.Name", with the names of JSON, and of all types in it.
func fieldsOf(t reflect.Type, all map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		fieldsOf(t.Elem(), all)
	case reflect.Struct:
		for name, f := range jsonFields(t) {
			all[t.Name()+"."+name] = true
			fieldsOf(f.Type, all)
		}
	}
}

// fieldsSet collects those of a value that are there and not zero.
func fieldsSet(t reflect.Type, value any, set map[string]bool) {
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			fieldsSet(t.Elem(), one, set)
		}
	case map[string]any:
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		fields := jsonFields(t)
		for name, one := range v {
			f, known := fields[name]
			if zero := one == nil || one == false || one == 0.0 || one == ""; known && !zero {
				set[t.Name()+"."+name] = true
				fieldsSet(f.Type, one, set)
			}
		}
	}
}

// jsonFields are a type's fields by the names that they have in JSON; those that it
// embeds are its own. Types that write themselves have none.
func jsonFields(t reflect.Type) map[string]reflect.StructField {
	all := map[string]reflect.StructField{}
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return all
	}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && !f.Anonymous && name != "-" {
			all[cmp.Or(name, f.Name)] = f
		}
	}
	return all
}

// TestGoldenForward: what a later version adds is passed over, unless it says that it
// must not be, or it is bytes on their way.
func TestGoldenForward(t *testing.T) {
	for name := range recordings() {
		then := readRecording(t, name)
		var fields map[string]any
		if err := json.Unmarshal(then.State, &fields); err != nil {
			t.Fatal(err)
		}
		later := func(least int, data []byte) error {
			fields["Version"], fields["Least"], fields["Colour"] = frozen.Version+1, least, map[string]any{"At": len(then.Data), "N": len(data) - len(then.Data)}
			state, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			z, err := frozen.Decode(state, data, then.Files)
			if err == nil && (1+len(z.Streams) != then.Files || z.Session.Out.Sequence == 0 || z.Peer == "") {
				t.Errorf("%s: not all of it was read: %+v", name, z)
			}
			return err
		}
		if err := later(frozen.Version, then.Data); err != nil {
			t.Errorf("%s of a version that this one can read: %v", name, err)
		}
		if later(frozen.Version+1, then.Data) == nil {
			t.Errorf("%s of a version that this one cannot read was read", name)
		}
		if later(frozen.Version, append(slices.Clone(then.Data), "on their way"...)) == nil {
			t.Errorf("%s: bytes of a field that this version does not know were passed over", name)
		}
	}
}

// busy is a connection in the middle of everything: of a record each way, of a message
// of TLS, of a padded frame of DATA, and of a drain, with streams in all the states
// that they move in.
func busy(z *frozen.Conn) {
	z.Partial = z.Put(func(b []byte) []byte { return append(b, 23, 3, 3, 0x40, 0x11, 1, 2, 3) })
	z.Out = z.Put(func(b []byte) []byte { return append(append(b, 23, 3, 3, 0, 40), make([]byte, 40)...) })
	z.Group = tls.X25519MLKEM768
	z.Session.Fragment = map[bool][]byte{false: {4, 0, 1, 0, 7}, true: {24, 0, 0}}[z.Server] // a ticket; a KeyUpdate
	z.Session.Useless, z.Session.UpdateDue = 3, true
	z.Session.Updates = flood.Bucket{Spent: 5.5, Age: 7 * time.Second}
	z.Parser.Head, z.Parser.Left, z.Parser.Padding = []byte{0, 0, 100, 0, 8, 0, 0, 0, 1}, 60, 9
	z.Parser.Table = []h2.Field{{Name: []byte("baggage"), Value: []byte("a=1\xff")}, {Name: []byte("forwarded"), Value: []byte("for=10.0.0.1")}}
	z.Guard[flood.Other] = flood.Bucket{Spent: 12, Age: time.Minute}
	z.DataID, z.DataLen, z.LastID = 1, 100, 13
	z.Flow.Acked, z.Flow.Late = true, 4096
	z.Flow.Initial, z.Flow.Sent = 65535, 4
	z.Life = frozen.Life{Asked: true, Announced: true, Left: true, GoAway: frozen.GoAwayAnnounced, FrameAge: 3 * time.Second, RecordAge: 2 * time.Second}
	pending := func(s *frozen.Stream, text string) {
		s.Pending = z.Put(func(b []byte) []byte { return append(b, text...) })
	}
	first := z.Streams[0]
	first.Timing.Pooled = !z.Server
	all := []frozen.Stream{first, first, first, first, first}
	for i := range all {
		all[i].ID = uint32(2*i + 1)
	}
	pending(&all[0], "what the application has not taken")
	all[0].Placed = z.Server
	all[1].RecvEnd = true
	pending(&all[1], "the last of it")
	all[2].SentEnd, all[2].SendWindow = true, -100
	all[3].RecvEnd, all[3].FinSent, all[3].SentEnd, all[3].Finishing = true, true, true, true
	all[4].Parting, all[4].RecvEnd, all[4].FinSent = !z.Server, true, true
	z.Streams = all
}

// opening is a connection without a stream, whose next one, or its last one's end, has begun
// with a header that goes on.
func opening(z *frozen.Conn) {
	z.Streams, z.DataID, z.DataLen = nil, 0, 0
	z.Life = frozen.Life{Heard: true, GoAway: frozen.GoAwayFinal, IdleLeft: 41 * time.Second, FrameAge: time.Second}
	z.Parser.Head, z.Parser.Left, z.Parser.Payload = []byte{0, 0, 10, 9, 4, 0, 0, 0, 3}, 6, []byte{0x40, 1, 'x', 1}
	z.Parser.Block = &h2.BlockState{ID: 3, End: true, Bytes: []byte{0x83}, Frames: 2}
	z.LastID = 3
}

// record freezes a connection with a stream, and makes of it what change does.
func record(t *testing.T, name string, change func(*frozen.Conn)) (text []byte) {
	w := newWorld(t, newFastEngine, newFastEngine)
	f := w.mustOpen()
	if err := f.echo("recorded"); err != nil {
		t.Fatal(err)
	}
	s := w.client
	if strings.HasPrefix(name, "server") {
		s = w.server
	}
	s.mustMove(func(f *hbone.Frozen) {
		then := recorded{f.State, f.Data, len(f.Files)}
		var err error
		if change != nil {
			z := then.decode(t)
			change(z)
			then.State, then.Data, err = z.Encode()
			then.Files = 1 + len(z.Streams)
		}
		if err == nil {
			text, err = json.MarshalIndent(then, "", "\t")
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := f.finish(); err != nil {
		t.Error(err)
	}
	return append(text, '\n')
}
