package publish

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestLastGoodOfWhenPoliciesNamedUDP: where they may no more, the folder is refused for
// one that does, and what is served of before it says nothing about UDP.
func TestLastGoodOfWhenPoliciesNamedUDP(t *testing.T) {
	archive, err := txtar.ParseFile("../../internal/kube/testdata/good/udp.txtar")
	if err != nil {
		t.Fatal(err)
	}
	folder, kept := t.TempDir(), filepath.Join(t.TempDir(), "state")
	for _, f := range archive.Files {
		if filepath.Ext(f.Name) == ".yaml" {
			if err := os.WriteFile(filepath.Join(folder, f.Name), f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	begin := func(udp bool) (*mesh.View, Status) {
		t.Helper()
		state, err := OpenState(kept)
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		server, err := discovery.NewServer(discovery.ServerConfig{
			Authenticate: func(context.Context) (discovery.Caller, error) { return discovery.Caller{}, os.ErrPermission }, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		store := mesh.NewStore()
		p := New(Config{Folder: folder, UDPByIdentity: udp, State: state, Key: key, Store: store, Server: server, Logger: slog.New(slog.DiscardHandler)})
		if err := p.Begin(Load(folder, udp)); err != nil {
			t.Fatal(err)
		}
		return store.View(), p.Status()
	}
	view, on := begin(true)
	if len(view.Receivers()) == 0 {
		t.Fatal("no policy of the folder is about UDP")
	}
	workloads := len(view.Workloads())
	view, off := begin(false)
	if !off.FromLastGood || len(view.Workloads()) != workloads {
		t.Errorf("served: %+v, want the last good configuration", off)
	}
	if len(view.Receivers()) > 0 {
		t.Error("what policies say about UDP is served where they may not name it")
	}
	for _, s := range view.Services() {
		if len(s.UDPPorts) > 0 {
			t.Errorf("service %s has ports over UDP", s.Key)
		}
	}
	if off.Epoch <= on.Epoch || off.Revision == on.Revision {
		t.Errorf("other content under the epoch and revision of before: %+v, then %+v", on, off)
	}
}
