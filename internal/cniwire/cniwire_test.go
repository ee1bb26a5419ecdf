package cniwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func add() Request {
	return Request{
		Version: Version, Op: OpAdd, ContainerID: "0a1b", NetNS: "/run/netns/cni-1", IfName: "eth0",
		Namespace: "shop", Name: "web-0.x", UID: "6f1c", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Timeout: time.Second,
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	var wire bytes.Buffer
	if err := Write(&wire, add()); err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := Read(&wire, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(add(), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if wire.Len() > 0 {
		t.Errorf("%d bytes were not read", wire.Len())
	}
}

func TestReadRefuses(t *testing.T) {
	frame := func(size uint32, body string) string {
		return string(binary.BigEndian.AppendUint32(nil, size)) + body
	}
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"nothing":        {"", io.EOF},
		"half a size":    {"\x00\x00", io.ErrUnexpectedEOF},
		"size only":      {frame(2, ""), io.ErrUnexpectedEOF},
		"half a message": {frame(9, `{"op`), io.ErrUnexpectedEOF},
		"empty":          {frame(0, ""), nil},
		"too large":      {frame(maxMessage+1, strings.Repeat(" ", maxMessage+1)), nil},
		"no JSON":        {frame(2, "xx"), nil},
		"another type":   {frame(11, `{"op":["x"]}`), nil},
	} {
		var r Request
		err := Read(strings.NewReader(c.wire), &r)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if err := Write(io.Discard, Response{Reason: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("a message that nobody would read was written")
	}
}

func TestValidate(t *testing.T) {
	ok := add()
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Request){
		"version":     func(r *Request) { r.Version = Version + 1 },
		"op":          func(r *Request) { r.Op = "steal" },
		"containerID": func(r *Request) { r.ContainerID = "../x" },
		"ifname":      func(r *Request) { r.IfName = "" },
		"netns":       func(r *Request) { r.NetNS = "/run/netns/../../proc/1/ns/net" },
		"namespace":   func(r *Request) { r.Namespace = strings.Repeat("x", 64) },
		"name":        func(r *Request) { r.Name = "-web" },
		"uid":         func(r *Request) { r.UID = "a b" },
		"addresses":   func(r *Request) { r.Addresses = make([]netip.Addr, maxAddresses+1) },
		"timeout":     func(r *Request) { r.Timeout = -1 },
	} {
		r := add()
		spoil(&r)
		if err := r.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v does not name it", field, err)
		}
	}
	long := add()
	long.Name = strings.Repeat("x", 253) // one part may have them all, in Kubernetes
	if err := long.Validate(); err != nil {
		t.Error(err)
	}
	for _, r := range []Request{{Version: 1, Op: OpGC}, {Version: 1, Op: OpDel, ContainerID: "x"}} {
		if err := r.Validate(); err != nil {
			t.Errorf("%s needs no more: %v", r.Op, err)
		}
	}
}

func TestNamespaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "namespaces.json")
	if _, err := LoadNamespaces(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no list: %v", err)
	}
	want := &Namespaces{Enrolled: []string{"a", "shop"}, NotEnrolled: []string{"default", "shop"}}
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := LoadNamespaces(path)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) {
		t.Error(cmp.Diff(want, got))
	}
	for namespace, want := range map[string]Standing{"a": Enrolled, "shop": Enrolled, "default": NotEnrolled, "new": Unknown} {
		if s := got.Standing(namespace); s != want {
			t.Errorf("%s: %v, want %v", namespace, s, want)
		}
	}
	for _, bad := range []string{"", "{}", `{"version":2}`, `{"version":1,"enrolled":3}`, `{"version":1}` + strings.Repeat(" ", maxList)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadNamespaces(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.30q: %v", bad, err)
		}
	}
}

// TestFullDiskKeepsTheListBefore fills a file system of its own.
func TestFullDiskKeepsTheListBefore(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("heddle-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "namespaces.json")
	before := &Namespaces{Enrolled: []string{"shop"}}
	if err := before.Save(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 52<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	after := &Namespaces{}
	for range 1000 {
		after.NotEnrolled = append(after.NotEnrolled, strings.Repeat("x", 63))
	}
	if err := after.Save(path); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("saving to a full disk: %v", err)
	}
	got, err := LoadNamespaces(path)
	if err != nil || !got.Equal(before) {
		t.Errorf("the list before is not there: %+v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".heddle*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzRead(f *testing.F) {
	var wire bytes.Buffer
	if err := Write(&wire, add()); err != nil {
		f.Fatal(err)
	}
	f.Add(wire.Bytes())
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		if Read(bytes.NewReader(data), &r) != nil || r.Validate() != nil {
			return
		}
		var again bytes.Buffer
		var back Request
		if err := errors.Join(Write(&again, r), Read(&again, &back)); err != nil {
			t.Fatalf("what was accepted cannot be sent on: %v", err)
		}
		if diff := cmp.Diff(r, back, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		if r.Op == OpAdd && (strings.Contains(r.NetNS, "..") && strings.Contains(r.NetNS, "/../") || strings.ContainsAny(r.ContainerID+r.UID, "/ \n")) {
			t.Errorf("accepted %+v", r)
		}
	})
}

func FuzzNamespaces(f *testing.F) {
	f.Add([]byte(`{"version":1,"enrolled":["b","a"],"notEnrolled":["c"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parseNamespaces(data)
		if err != nil {
			return
		}
		for _, name := range n.Enrolled {
			if n.Standing(name) != Enrolled {
				t.Errorf("%q is listed as enrolled and not found", name)
			}
		}
	})
}

func TestReplaceFileLeavesWhatAnotherProgramWrote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(path, []byte("read earlier"), []byte("ours"), 0o600); !errors.Is(err, ErrChanged) {
		t.Fatalf("got %v, want ErrChanged", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "theirs" {
		t.Errorf("now there is %q, %v", text, err)
	}
	if err := ReplaceFile(path, []byte("theirs"), []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "ours" {
		t.Errorf("now there is %q, %v", text, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
