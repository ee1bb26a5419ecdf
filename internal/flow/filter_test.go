package flow

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"google.golang.org/protobuf/proto"
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestFilterMatch(t *testing.T) {
	now := time.Unix(1700000060, 0)
	for _, tc := range []struct {
		key, value string
		want       bool
	}{
		{"namespace", "shop", true},
		{"namespace", "other,data", true},
		{"namespace", "other", false},
		{"workload", "db-0", true},
		{"workload", "data/db-0", true},
		{"workload", "shop/db-0", false},
		{"identity", "spiffe://mesh.local/ns/shop/sa/web", true},
		{"identity", "spiffe://mesh.local/ns/shop/*", true},
		{"identity", "spiffe://mesh.local/ns/none/*", false},
		{"peer", "10.1.0.0/16", true},
		{"peer", "fd00::5", true},
		{"peer", "10.2.0.0/16", false},
		{"port", "3306", true},
		{"port", "40000", false},
		{"verdict", "Allow", true},
		{"verdict", "deny,audit", false},
		{"reason", "policyallow", true},
		{"reason", "StrictPlaintext", false},
		{"direction", "outbound", true},
		{"direction", "kernel", false},
		{"transport", "tunnel", true},
		{"transport", "plaintext", false},
		{"since", "2m", true},
		{"since", "10s", false},
		{"since", "1d12h", true},
		{"since", "1w", true},
	} {
		var f Filter
		if err := f.Set(tc.key, tc.value, now); err != nil {
			t.Errorf("%s=%s: %v", tc.key, tc.value, err)
			continue
		}
		rec := sample()
		if got := f.Match(&rec); got != tc.want {
			t.Errorf("%s=%s: match is %v", tc.key, tc.value, got)
		}
		back, err := FilterFromProto(f.ToProto())
		if err != nil {
			t.Errorf("%s=%s: over the wire: %v", tc.key, tc.value, err)
		}
		if got := back.Match(&rec); got != tc.want {
			t.Errorf("%s=%s: over the wire, match is %v", tc.key, tc.value, got)
		}
	}
}

func TestFilterRefusals(t *testing.T) {
	for key, cases := range map[string]map[string]string{
		"reason":    {"Strict": "did you mean StrictPlaintext", "zebra": "unknown reason"},
		"port":      {"65536": "not a port", "http": "not a port"},
		"peer":      {"10.0.0": "neither an address nor a prefix"},
		"since":     {"yesterday": "neither a duration", "-3s": "future"},
		"verdict":   {"maybe": "use allow, deny or audit"},
		"direction": {"up": "use outbound"},
		"transport": {"pigeon": "use tunnel"},
		"colour":    {"red": "unknown filter"},
		"namespace": {"a,,b": "empty value"},
	} {
		for value, want := range cases {
			var f Filter
			if err := f.Set(key, value, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s=%s: got %v, want %q", key, value, err, want)
			}
		}
	}
	many := make([]string, maxFilterValues+1)
	for _, p := range []*meshpb.FlowFilter{{Namespaces: many}, {Ports: make([]uint32, maxFilterValues+1)}, {Ports: []uint32{70000}}} {
		if _, err := FilterFromProto(p); err == nil {
			t.Errorf("%v was accepted", p)
		}
	}
}

func FuzzFilterSet(f *testing.F) {
	for _, k := range FilterKeys() {
		f.Add(k[0], "10.0.0.0/8,a/b,5m,StrictPlaintext")
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		var filter Filter
		if filter.Set(key, value, time.Unix(1700000000, 0)) != nil {
			return
		}
		rec := sample()
		filter.Match(&rec)
	})
}

func FuzzFromProto(f *testing.F) {
	rec := sample()
	seed, err := proto.Marshal(rec.ToProto())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var p meshpb.Flow
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		rec, err := FromProto(&p)
		if err != nil {
			return
		}
		again, err := FromProto(rec.ToProto())
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if again.Direction != rec.Direction || again.Source.Identity != rec.Source.Identity || again.Start != rec.Start {
			t.Fatalf("changed on the way: %+v, %+v", rec, again)
		}
	})
}

func TestRecordOverTheWire(t *testing.T) {
	compare := cmp.Options{cmpopts.EquateComparable(spiffeid.ID{}, netip.AddrPort{})}
	for _, rec := range []Record{sample(), {Rule: -1}} {
		back, err := FromProto(rec.ToProto())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rec, back, compare); diff != "" {
			t.Errorf("changed on the way (-sent +got):\n%s", diff)
		}
	}
	if _, err := FromProto(&meshpb.Flow{Direction: "sideways"}); err == nil {
		t.Error("an unknown direction was accepted")
	}
}

func TestRuleIsAbsentWithoutPolicy(t *testing.T) {
	rec := Record{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonNoPolicy}
	if p := rec.ToProto(); p.Rule != nil {
		t.Errorf("rule %d of no policy", p.GetRule())
	}
}
