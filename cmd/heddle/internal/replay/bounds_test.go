package replay

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
)

const permissive = "---\napiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: p}\nspec: {mode: PERMISSIVE}\n"

// TestSuggestedIsWithinBounds: however many clients and ports there were, what is suggested is valid, breaks none of
// them and lets nobody else in.
func TestSuggestedIsWithinBounds(t *testing.T) {
	for name, tc := range map[string]struct {
		record   func(h *past.History)
		policies int // of db
	}{
		"sets of ports": {policies: 4, record: func(h *past.History) {
			for i := range 200 {
				h.Summaries = append(h.Summaries, carried(fmt.Sprintf("bank/c%d", i), "shop/db", 21, 1), carried(fmt.Sprintf("bank/c%d", i), "shop/db", uint16(40000+i), 2))
			}
		}},
		"sets of ports over UDP": {policies: 4, record: func(h *past.History) {
			for i := range 200 {
				h.Summaries = append(h.Summaries, sent(i, "c", 69), sent(i, "c", uint16(40000+i)))
			}
		}},
		"long names": {policies: 2, record: func(h *past.History) {
			for i := range 2500 {
				h.Summaries = append(h.Summaries, carried(fmt.Sprintf("bank/%s%d", strings.Repeat("long", 50), i), "shop/db", 80, 1))
			}
		}},
		"long names over UDP": {policies: 3, record: func(h *past.History) {
			for i := range 300 {
				h.Summaries = append(h.Summaries, sent(i, strings.Repeat("long", 50), 443))
			}
		}},
		"addresses": {policies: 1, record: func(h *past.History) {
			for i := range 2500 {
				h.Summaries = append(h.Summaries, carried(fmt.Sprintf("192.0.%d.%d", i/250, i%250), "shop/db", 80, 1))
			}
		}},
		"ports": {policies: 1, record: func(h *past.History) {
			for i := range 17_000 {
				h.Summaries = append(h.Summaries, carried("shop/web", "shop/db", uint16(30000+i), 1))
			}
		}},
		"ports over UDP": {policies: 1, record: func(h *past.History) {
			for i := range 3000 {
				h.Summaries = append(h.Summaries, sent(1, "c", uint16(30000+i)))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := &past.History{}
			tc.record(h)
			if n := withinBounds(t, h); n != tc.policies {
				t.Errorf("%d policies, want %d", n, tc.policies)
			}
		})
	}
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 2))
	for range 3 {
		h := &past.History{}
		for range r.IntN(3000) {
			from, port := r.IntN(1+r.IntN(300)), uint16(1+r.IntN(1+r.IntN(300)))
			s := carried(fmt.Sprintf("bank/%s%d", strings.Repeat("c", 1+from%200), from), "shop/db", port, 1+r.Uint64N(9))
			switch r.IntN(4) {
			case 0:
				s = sent(from, strings.Repeat("u", 1+from%50), port)
			case 1:
				s = carried(fmt.Sprintf("192.0.2.%d", from%256), "shop/db", port, 1)
			}
			h.Summaries = append(h.Summaries, s)
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { withinBounds(t, h) })
	}
}

// sent is datagrams of a client that is gone.
func sent(client int, name string, port uint16) past.Summary {
	s := passed(fmt.Sprintf("bank/%s%d", name, client), "shop/db", port, 1)
	s.Source.Address = fmt.Sprintf("10.8.%d.%d", client/250, client%250)
	return s
}

// anybodyOverUDP is a policy that lets in all datagrams of a history; "" of none.
func anybodyOverUDP(h *past.History) string {
	ports := map[uint16]bool{}
	for i := range h.Summaries {
		if h.Summaries[i].Protocol != 0 {
			ports[h.Summaries[i].Port] = true
		}
	}
	if len(ports) == 0 {
		return ""
	}
	var to []string
	for some := range slices.Chunk(slices.Sorted(maps.Keys(ports)), 256) {
		to = append(to, "{protocol: UDP, ports: "+strings.ReplaceAll(fmt.Sprint(some), " ", ", ")+"}")
	}
	return "---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: anybody}\n" +
		"spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{identities: [\"spiffe://m.test/ns/*\"]}], to: [" + strings.Join(to, ", ") + "]}]}\n"
}

// withinBounds returns how many policies are suggested for db.
func withinBounds(t *testing.T, h *past.History) (policies int) {
	t.Helper()
	base, deleted := overUDPToo(t, shop(permissive)), []string(nil)
	if all := anybodyOverUDP(h); all != "" {
		base, deleted = overUDPToo(t, shop(permissive+all)), []string{"AuthorizationPolicy/shop/anybody"}
	}
	s, err := Suggest(model(t, base), h, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "suggested.yaml")
	if err := os.WriteFile(file, []byte(yamlOf(t, s, h)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, unfit, err := folders.Load(file)
	if err = errors.Join(err, unfit.Beyond(nil)); err != nil {
		t.Fatalf("an API server would refuse it: %v", err)
	}
	c, err := edit.Make(base, nil, []string{file}, deleted)
	if err != nil {
		t.Fatalf("it is refused: %v", err)
	}
	result, err := Simulate(c.Before, c.After, h)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Breaks)+len(result.Opens)+len(result.Unjudged)+len(result.Warnings) > 0 {
		t.Fatalf("%d break, %d open, %d are not judged; %q", len(result.Breaks), len(result.Opens), len(result.Unjudged), result.Warnings)
	}
	for _, p := range s.Policies {
		if strings.HasPrefix(p.Policy.Name, "db-") {
			policies++
		}
	}
	return policies
}
