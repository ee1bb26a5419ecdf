package ledger

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestStore(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.Load("shop_web"); ok || err != nil {
		t.Errorf("state of nobody: %t %v", ok, err)
	}
	want := Pod{
		Version: version, Name: "shop_web", ID: 7, Path: "/run/netns/x", Namespace: netns.ID{Dev: 4, Inode: 5},
		Addresses: []netip.Addr{netip.MustParseAddr("10.66.1.2"), netip.MustParseAddr("fd66:1::2")}, PodLink: "eth0", PodIndex: 2, HostIndex: 9, Table: 100, Enrolled: true,
	}
	for range 2 {
		if err := s.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := s.Load("shop_web")
	if err != nil || !ok {
		t.Fatalf("load: %t %v", ok, err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
	if names, err := s.Names(); err != nil || len(names) != 1 || names[0] != "shop_web" {
		t.Errorf("names %v %v", names, err)
	}
	if id, err := s.FreeID("other"); err != nil || id == 0 || id == 7 {
		t.Errorf("free id %d: %v", id, err)
	}
	left := want
	left.Name, left.ID, left.Of = "retired-1", 8, "shop_api"
	if err := s.Save(left); err != nil {
		t.Fatal(err)
	}
	if ids, err := s.IDs(); err != nil || len(ids) != 2 || ids[7] != "shop_web" || ids[8] != "shop_api" {
		t.Errorf("ids %v %v", ids, err)
	}
	if err := errors.Join(s.Remove("shop_web"), s.Remove("shop_web")); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Name":"p","ID":1,"Path":"/x","Addresses":["10.0.0.1"]}`))
	f.Add([]byte(`{"Version":1,"Name":"p","ID":4294967296}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := decode(data, "p")
		if err == nil && (st.Name != "p" || st.Path == "" || st.ID == 0) {
			t.Errorf("accepted %+v", st)
		}
	})
}
