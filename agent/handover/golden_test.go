package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorded is a message as some version of the protocol sent it: the file of its
// name holds the bytes. They are decoded for ever, also when this version would
// say it otherwise, for as long as an agent of that version may be at the other
// end; a file is written only when it is missing and HEDDLE_RECORD is set.
type recorded struct {
	name  string
	kind  kind
	batch uint32
	// said is the message's content, a pointer; bytes that are no JSON are []byte.
	said  any
	files int
}

var (
	goldenSelf = Self{Node: "n1", Program: "v1.2.3", Layout: "v1, mark 0x0 of 0x0", Engine: "loop", Moves: true, PID: 4711}
	goldenPod  = Pod{Name: "shop_web", Listeners: []Listener{{Port: 15001}, {Port: 15008, IPv6: true}}}
	goldenDNS  = Pod{Name: "shop_web", Listeners: []Listener{{Port: 15053}, {Port: 15053, IPv6: true, Datagram: true}}}
	goldenRest = int64(1234567890123)
)

func goldenBatch() []*Connection {
	return []*Connection{
		{Kind: "tunnel", Pod: "shop/web", State: []byte(`{"Version":1}`), Data: []byte("held"), Files: []int{0, 0}},
		{Kind: "pair", State: []byte(`{"version":1}`), Data: []byte{}, Files: []int{0, 0}},
	}
}

// goldenMessages are those of both versions, but the hello, which says which.
func goldenMessages(version int) []recorded {
	batch, _ := encodeBatch(goldenBatch(), goldenRest)
	records, _ := encodeRecords([][]byte{[]byte("first"), []byte("second")}, maxBody)
	all := []recorded{
		{"hello", kindHello, 0, &hello{Versions: Versions{1, version}, Self: goldenSelf, Drain: true}, 0},
		{"welcome", kindWelcome, 0, &welcome{Version: version, Self: goldenSelf, Moves: true, Pods: 1}, 0},
		{"refused", kindRefused, 0, &Refused{Reason: "why", Remedy: "what to do"}, 0},
		{"listeners-pod", kindListeners, 0, &estatePart{Pod: &goldenPod}, 2},
		{"listeners-metrics", kindListeners, 0, &estatePart{Metrics: ":15020"}, 1},
		{"standby", kindStandby, 0, &struct{}{}, 0},
		{"ready", kindReady, 0, &struct{}{}, 0},
		{"failed", kindFailed, 0, &failed{Reason: "not fit"}, 0},
		{"moving", kindMoving, 0, &struct{}{}, 0},
		{"accepting", kindAccepting, 0, &struct{}{}, 0},
		{"batch", kindBatch, 3, batch, 4},
		{"prepared", kindPrepared, 3, []byte{}, 0},
		{"rejected", kindRejected, 3, []byte("cannot be read"), 0},
		{"abort", kindAbort, 3, []byte{}, 0},
		{"commit", kindCommit, 3, []byte{}, 0},
		{"done", kindDone, 0, &doneMessage{Left: 2}, 0},
		{"taken", kindTaken, 0, &struct{}{}, 0},
	}
	if version >= recordsSince {
		all = append(all, recorded{"records", kindRecords, 0, records, 0}, recorded{"listeners-dns", kindListeners, 0, &estatePart{Pod: &goldenDNS}, 2})
	}
	return all
}

func (r *recorded) body(t *testing.T) []byte {
	t.Helper()
	if b, ok := r.said.([]byte); ok {
		return b
	}
	b, err := json.Marshal(r.said)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wire is the message as this version sends it.
func (r *recorded) wire(t *testing.T) []byte {
	t.Helper()
	far, near := pipe(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var files []int
	for range r.files {
		files = append(files, int(null.Fd()))
	}
	if err := (channel{unixConn(t, far)}).send(r.kind, r.batch, r.body(t), files, time.Second); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<16)
	n, _, _, _, err := unix.Recvmsg(near, got, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n == headerBytes && len(r.body(t)) > 0 { // a message with descriptors ends there
		more, err := unix.Read(near, got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += more
	}
	unix.Close(near)
	return got[:n]
}

// hear receives recorded bytes as this version does.
func (r *recorded) hear(t *testing.T, wire []byte) *message {
	t.Helper()
	far, near := pipe(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var rights []byte
	if r.files > 0 {
		var files []int
		for range r.files {
			files = append(files, int(null.Fd()))
		}
		rights = unix.UnixRights(files...)
	}
	if err := unix.Sendmsg(near, wire, rights, nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(near)
	m, err := channel{unixConn(t, far)}.receive(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.closeFiles)
	return m
}

// TestGolden: every message of every version that an agent may have spoken is
// understood as it was meant, and what is said today has all that was said then.
func TestGolden(t *testing.T) {
	for version := Oldest; version <= Newest; version++ {
		for _, r := range goldenMessages(version) {
			t.Run(fmt.Sprintf("v%d/%s", version, r.name), func(t *testing.T) {
				path := filepath.Join("testdata", fmt.Sprintf("v%d", version), r.name+".bin")
				then, err := os.ReadFile(path)
				if errors.Is(err, fs.ErrNotExist) && os.Getenv("HEDDLE_RECORD") != "" {
					then = r.wire(t)
					err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, then, 0o644))
				}
				if err != nil {
					t.Fatal(err)
				}
				m := r.hear(t, then)
				if m.kind != r.kind || m.batch != r.batch || len(m.files) != r.files {
					t.Fatalf("kind %d of batch %d with %d files", m.kind, m.batch, len(m.files))
				}
				r.understood(t, m)
				r.saidStill(t, then, r.wire(t))
			})
		}
	}
}

// understood reads the message by the code that reads it in life.
func (r *recorded) understood(t *testing.T, m *message) {
	t.Helper()
	var got any
	var err error
	want := r.said
	switch r.kind {
	case kindBatch:
		var all []*Connection
		var rest int64
		all, rest, err = decodeBatch(m.body, m.files)
		for _, c := range all {
			c.Files = make([]int, len(c.Files)) // any numbers
		}
		got, want = []any{all, rest}, []any{goldenBatch(), goldenRest}
	case kindRecords:
		got, err = decodeRecords(m.body)
		want = [][]byte{[]byte("first"), []byte("second")}
	case kindPrepared, kindRejected, kindAbort, kindCommit:
		got = m.body
	default:
		got = reflect.New(reflect.TypeOf(r.said).Elem()).Interface()
		err = unmarshal(m, r.kind, got)
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("understood %+v (%v), want %+v", got, err, want)
	}
	if r.kind == kindListeners && err == nil {
		if err := (&Estate{}).add(*got.(*estatePart), m.files); err != nil {
			t.Error(err)
		}
	}
}

// saidStill wants the header's meaning and every field of old in new, as one
// that reads only those relies on them.
func (r *recorded) saidStill(t *testing.T, then, now []byte) {
	t.Helper()
	if _, text := r.said.([]byte); text {
		if string(then) != string(now) {
			t.Errorf("it is said as %q, and was as %q", now, then)
		}
		return
	}
	var before, after map[string]any
	if err := errors.Join(json.Unmarshal(then[headerBytes:], &before), json.Unmarshal(now[headerBytes:], &after)); err != nil {
		t.Fatal(err)
	}
	if then[0] != now[0] || !contains(after, before) {
		t.Errorf("it is said as %s, and was as %s", now[headerBytes:], then[headerBytes:])
	}
}

// contains reports whether an object has every field of another, all the way
// down.
func contains(has, wants any) bool {
	want, ok := wants.(map[string]any)
	if !ok {
		return reflect.DeepEqual(has, wants)
	}
	have, ok := has.(map[string]any)
	if !ok {
		return false
	}
	for field, value := range want {
		got, ok := have[field]
		if !ok || !contains(got, value) {
			return false
		}
	}
	return true
}
