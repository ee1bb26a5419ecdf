package nodeauth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// fullDisk is a folder on a file system that takes nothing more, until room is called.
func fullDisk(t *testing.T) (dir string, fill, room func()) {
	t.Helper()
	testenv.NeedRoot(t)
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	fill = func() {
		t.Helper()
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !noRoom(err) {
			t.Fatalf("the disk is not full: %v", err)
		}
	}
	return dir, fill, func() {
		t.Helper()
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
}

// TestJoinOnAFullDisk: a node joins by its account's token though its disk takes nothing, an agent that starts again has
// what it joined by, and one that finds room has it on disk.
func TestJoinOnAFullDisk(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{})
	dir, fill, room := fullDisk(t)
	mounted, spare := t.TempDir(), filepath.Join(t.TempDir(), "node")
	roots := filepath.Join(mounted, "roots.pem")
	var text bytes.Buffer
	for _, root := range o.Roots() {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}); err != nil {
			t.Fatal(err)
		}
	}
	for path, content := range map[string]string{roots: text.String(), filepath.Join(mounted, "token"): "t"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start := func(when string, joins int) string {
		t.Helper()
		n, err := JoinByAccount(t.Context(), AccountConfig{NodeConfig: NodeConfig{Dir: filepath.Join(dir, "node"), Operator: o.address},
			Node: "n1", TokenFile: filepath.Join(mounted, "token"), RootsFile: roots, Spare: spare})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		defer closeNode(t, n)
		if o.joins != joins {
			t.Errorf("%s: joined %d times, want %d", when, o.joins, joins)
		}
		return serial(t, n)
	}
	fill()
	first := start("with a full disk", 1)
	if again := start("again", 1); again != first {
		t.Errorf("started again, it has %s, and had %s", again, first)
	}
	room()
	if again := start("with room", 1); again != first {
		t.Errorf("with room, it has %s, and had %s", again, first)
	}
	if err := os.RemoveAll(spare); err != nil { // as a reboot does
		t.Fatal(err)
	}
	second := start("after a reboot", 2)
	if again := start("after it, again", 2); again != second {
		t.Errorf("what it joined by with room is not on disk: %s, then %s", second, again)
	}
	if _, err := os.Stat(spare); !os.IsNotExist(err) {
		t.Errorf("the spare is left: %v", err)
	}
}

// TestFullDiskKeepsNothingFromRenewal: new configuration keys are in force though the disk takes nothing, certificates go
// on being signed, and the keys are on disk with the first answer that finds room.
func TestFullDiskKeepsNothingFromRenewal(t *testing.T) {
	o := startOperator(t, identity.OperatorID(td), identity.AuthorityConfig{NodeTTL: time.Hour})
	disk, fill, room := fullDisk(t)
	dir := filepath.Join(disk, "node")
	n := mustJoin(t, joinConfig(dir, o.token(t, "n1")))
	o.Lock()
	o.keys = append(o.keys, bytes.Repeat([]byte{2}, ed25519.PublicKeySize))
	o.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key, n.ID())
	if err != nil {
		t.Fatal(err)
	}
	sign := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, _, err := n.Sign(ctx, n.ID(), csr); err != nil {
			t.Fatal(err)
		}
	}
	stored := func() int {
		t.Helper()
		again, err := OpenNode(t.Context(), NodeConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer closeNode(t, again)
		return len(again.ConfigurationKeys())
	}
	fill()
	sign()
	if keys := len(n.ConfigurationKeys()); keys != 2 || stored() != 1 {
		t.Errorf("with a full disk %d keys are in force, and %d are stored", keys, stored())
	}
	room()
	sign()
	if keys := stored(); keys != 2 {
		t.Errorf("with room %d keys are stored", keys)
	}
}
