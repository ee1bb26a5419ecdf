package relay

import (
	"encoding/binary"
	"testing"
)

// FuzzRecords: records are counted whatever pieces they come in, and whatever they
// are.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 1, 7, 23, 3, 3, 0, 0, 23, 3, 3, 1}, byte(2))
	f.Fuzz(func(t *testing.T, wire []byte, piece byte) {
		want := int64(0)
		for rest := wire; len(rest) >= recordHeader; want++ {
			n := recordHeader + int(binary.BigEndian.Uint16(rest[3:]))
			rest = rest[min(n, len(rest)):]
		}
		r := NewRecords(nil)
		for rest := wire; len(rest) > 0; {
			n := min(1+int(piece), len(rest))
			r.count(rest[:n])
			rest = rest[n:]
		}
		if r.came != want {
			t.Errorf("%d records in pieces of %d, want %d", r.came, 1+int(piece), want)
		}
	})
}
