package discovery

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// lastGoodBytes returns the file that a node of a small mesh keeps.
func lastGoodBytes(t testing.TB, node string, key byte) []byte {
	t.Helper()
	s, err := NewSnapshot(viewOf(t, shape{workloads: 6, services: 2, policies: 2, nodes: twoNodes}), 5, testKey(key))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	set := s.forNode(told{node: node, newer: true}, nil)
	if err := resources.WriteTo(&b, resources.Listed(set.All()), &set.commit); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAgentBootsFromLastGoodWithoutOperator(t *testing.T) {
	dir := t.TempDir()
	o := startOperator(t, nil)
	view := viewOf(t, shape{workloads: 6, services: 2, policies: 2, nodes: twoNodes})
	o.Publish(snapshotOf(t, view, 5))
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	a.awaitEpoch(t, 5)
	a.stop()
	b := startAgent(t, nil, "n1", lastGoodIn(dir))
	testenv.Eventually(t, time.Minute, "booted", func() bool { return b.store.View().Synced() })
	if diff := diffForNode("n1", view, b.store.View()); diff != "" {
		t.Error(diff)
	}
	if s := b.Status(); !s.FromLastGood || s.Connected || s.Current || s.Epoch != 5 {
		t.Errorf("status %+v", s)
	}
	info, err := os.Stat(filepath.Join(dir, "last-good"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files left behind: %v %v", entries, err)
	}
}

func TestBadLastGoodIsRefusedAndKeptAside(t *testing.T) {
	good := lastGoodBytes(t, "n1", 1)
	changed := bytes.Clone(good)
	changed[len(changed)-20] ^= 1
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"empty":         {nil, "not a last good configuration"},
		"text":          {[]byte("hello"), "not a last good configuration"},
		"other version": {bytes.Replace(good, []byte("configuration 2"), []byte("configuration 1"), 1), "not a last good configuration"},
		"cut":           {good[:len(good)-10], "read resource"},
		"cut at end":    {good[:len(good)-lastRecord(t, good)], "hash of the set"},
		"changed":       {changed, "decode"},
		"appended":      {append(bytes.Clone(good), good[len(good)-lastRecord(t, good):]...), "hash of the set"},
		"other node":    {lastGoodBytes(t, "n2", 1), `is for node "n2"`},
		"foreign key":   {lastGoodBytes(t, "n1", 2), "signature"},
		"endless":       {append([]byte("heddle last good configuration 2\n"), bytes.Repeat([]byte{0xff}, 100)...), "read commit"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "last-good")
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			o := startOperator(t, nil)
			a := startAgent(t, o, "n1", lastGoodIn(dir))
			testenv.Eventually(t, time.Minute, "refused and gone on to the operator", func() bool { return a.Status().LastGoodRefused == 1 && a.Status().Connected })
			if s := a.Status(); !strings.Contains(s.LastError, c.says) || !strings.Contains(s.LastError, path) {
				t.Errorf("refused with %q, want the path and %q", s.LastError, c.says)
			}
			if s := a.Status(); s.LastGoodError != s.LastError {
				t.Errorf("LastGoodError %q", s.LastGoodError)
			}
			if a.store.View().Synced() {
				t.Error("a View was applied")
			}
			if kept, err := os.ReadFile(path + ".refused"); err != nil || !bytes.Equal(kept, c.content) {
				t.Errorf("not kept aside: %v", err)
			}
			o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 1, nodes: twoNodes}), 1))
			a.awaitEpoch(t, 1) // goes on
			if s := a.Status(); s.LastGoodError != "" {
				t.Errorf("LastGoodError %q with a configuration applied", s.LastGoodError)
			}
		})
	}
}

// lastRecord returns the length of a file's last record.
func lastRecord(t *testing.T, file []byte) int {
	t.Helper()
	s, err := NewSnapshot(viewOf(t, shape{workloads: 6, services: 2, policies: 2, nodes: twoNodes}), 5, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	set := s.forNode(told{node: "n1", newer: true}, nil)
	var short bytes.Buffer
	if err := resources.WriteTo(&short, resources.Listed(set.All()[:len(set.All())-1]), &set.commit); err != nil {
		t.Fatal(err)
	}
	return len(file) - short.Len()
}

func TestOlderThanLastGoodIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "last-good"), lastGoodBytes(t, "n1", 1), 0o600); err != nil {
		t.Fatal(err)
	}
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, viewOf(t, shape{nodes: twoNodes}), 4))
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	testenv.Eventually(t, time.Minute, "refused", func() bool { return strings.Contains(a.Status().LastError, "epoch 4 is older than the applied 5") })
	if got := len(a.store.View().Workloads()); got != 6 {
		t.Errorf("%d workloads, want the 6 of the last good configuration", got)
	}
}

// TestUnsavableLastGoodIsTriedAgain: what could not be written is counted, said, and
// on disk as soon as it can be, though nothing changes.
func TestUnsavableLastGoodIsTriedAgain(t *testing.T) {
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 1, nodes: twoNodes}), 1))
	dir := filepath.Join(t.TempDir(), "absent")
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	testenv.Eventually(t, time.Minute, "counted more than once, and the configuration applied", func() bool {
		s := a.Status()
		return s.LastGoodUnsaved > 1 && strings.Contains(s.UnsavedError, dir) && s.Epoch == 1 && s.Current && s.LastError == ""
	})
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "it is on disk", func() bool {
		_, err := os.Stat(filepath.Join(dir, "last-good"))
		return err == nil && a.Status().UnsavedError == ""
	})
}

func TestOperatorKeepsTheWholeView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last-good")
	if view, _, err := LoadView(path, publicOf(testKey(1))); view != nil || err != nil {
		t.Fatalf("no file: got %v, %v", view, err)
	}
	want := viewOf(t, shape{workloads: 9, services: 2, policies: 12, nodes: twoNodes})
	if err := snapshotOf(t, want, 5).Save(path); err != nil {
		t.Fatal(err)
	}
	got, _, err := LoadView(path, publicOf(testKey(1)))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Policies()) != 12 || len(got.Workloads()) != 9 || got.Workloads()[0].NetNS == "" || got.Revision() != want.Revision() {
		t.Errorf("%d policies, %d workloads, revision %s", len(got.Policies()), len(got.Workloads()), got.Revision())
	}
	if _, _, err := LoadView(path, publicOf(testKey(2))); err == nil {
		t.Error("a file of another key was taken")
	}
}

func FuzzLastGood(f *testing.F) {
	f.Add(lastGoodBytes(f, "n1", 1))
	f.Add([]byte("heddle last good configuration 2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := resources.ReadFrom(bytes.NewReader(data), "n1", keysOf(1)())
		if err != nil {
			return
		}
		if _, err := h.View(); err != nil {
			t.Fatalf("a signed set is no view: %v", err)
		}
		if h.Commit.Epoch != 5 {
			t.Fatalf("forged: %+v", h.Commit)
		}
	})
}
