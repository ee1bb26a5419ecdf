package podnet

import (
	"net/netip"
	"testing"
)

// BenchmarkDialApp is one connection to the application, reset at once.
func BenchmarkDialApp(b *testing.B) {
	w := newWorld(b, true, false)
	n := w.open(b)
	p := w.enroll(b, n)
	ln := app.listen(b, w.pod, netip.AddrPortFrom(pod4, 8080))
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for b.Loop() {
		c, err := p.DialApp(b.Context(), netip.AddrPortFrom(ext4, 0), netip.AddrPortFrom(pod4, 8080))
		if err != nil {
			b.Fatal(err)
		}
		if err := c.SetLinger(0); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkEnroll is one pod in and out.
func BenchmarkEnroll(b *testing.B) {
	w := newWorld(b, true, true)
	n := w.open(b)
	for b.Loop() {
		w.enroll(b, n)
		if err := n.Unenroll(b.Context(), "shop_web"); err != nil {
			b.Fatal(err)
		}
	}
}
