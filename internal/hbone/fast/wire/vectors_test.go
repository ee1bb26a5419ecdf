package wire

import "testing"

// TestVectors: a loop does not keep what a turn of many small frames needed.
func TestVectors(t *testing.T) {
	var b Buffers
	for range maxFree {
		v := b.Vector()
		for range 100_000 {
			v.Add([]byte{1})
		}
		b.PutVector(v)
	}
	if v := b.Vector(); cap(v) > maxVector {
		t.Errorf("a free vector has room for %d slices", cap(v))
	}
	v := b.Vector()
	v.Add([]byte{1})
	b.PutVector(v)
	if n := testing.AllocsPerRun(100, func() { b.PutVector(b.Vector()) }); n > 0 {
		t.Errorf("%v allocations for a vector that is free", n)
	}
}
