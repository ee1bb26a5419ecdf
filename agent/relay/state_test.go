package relay

import (
	"reflect"
	"testing"
)

// TestGoldenState: a pair as version 1 wrote it is read for ever, as an agent of
// that version may be the one that gives, and is written so today.
func TestGoldenState(t *testing.T) {
	const golden = `{"version":1,"fromA":{"ended":true,"carried":3,"held":0},"fromB":{"ended":false,"carried":1099511627776,"held":2},"owner":"e30="}`
	want := &state{Version: 1, FromA: wayState{Ended: true, Carried: 3}, FromB: wayState{Carried: 1 << 40, Held: 2}, Owner: []byte("{}")}
	got, err := decode(&Frozen{State: []byte(golden), Data: make([]byte, 2), Files: []int{1, 2}})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if text, err := want.encode(); err != nil || string(text) != golden {
		t.Errorf("written as %s, %v", text, err)
	}
}

// FuzzState: whatever comes, what is accepted is within bounds, and says the
// same when it is written again.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"fromA":{"ended":true,"carried":3,"held":0},"fromB":{"held":2},"owner":"MA=="}`), 2)
	f.Add([]byte(`{"version":1,"fromA":{"held":9223372036854775807},"fromB":{"held":-9223372036854775807}}`), 0)
	f.Add([]byte(`{"version":2}`), 0)
	f.Fuzz(func(t *testing.T, encoded []byte, held int) {
		if held < 0 || held > 3*spliceBytes {
			return
		}
		s, err := decode(&Frozen{State: encoded, Data: make([]byte, held), Files: []int{1, 2}})
		if err != nil {
			return
		}
		for _, w := range []wayState{s.FromA, s.FromB} {
			if w.Held < 0 || w.Held > spliceBytes || w.Ended && w.Held > 0 {
				t.Fatalf("accepted %+v", w)
			}
		}
		if s.FromA.Held+s.FromB.Held != held || s.FromA.Ended && s.FromB.Ended || len(s.Owner) > maxOwner {
			t.Fatalf("accepted %+v with %d bytes", s, held)
		}
		again, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		other, err := decode(&Frozen{State: again, Data: make([]byte, held), Files: []int{1, 2}})
		if err != nil || !reflect.DeepEqual(s, other) {
			t.Fatalf("%s became %s: %v", encoded, again, err)
		}
	})
}
