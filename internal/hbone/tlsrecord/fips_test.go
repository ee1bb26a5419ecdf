package tlsrecord

import (
	"bytes"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"
)

// TestRefusedInFIPSMode: there is no record layer of our own, and no secret leaves
// crypto/tls for one.
func TestRefusedInFIPSMode(t *testing.T) {
	if !fips140.Enabled() {
		for _, mode := range []string{"on", "only"} {
			again := exec.Command("/proc/self/exe", "-test.run=^TestRefusedInFIPSMode$", "-test.v")
			again.Env = append(os.Environ(), "GODEBUG=fips140="+mode)
			if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestRefusedInFIPSMode")) {
				t.Errorf("%s: %v\n%s", mode, err, out)
			}
		}
		return
	}
	keys := func() Keys { return Keys{Suite: tls.TLS_AES_128_GCM_SHA256, Secret: make([]byte, 32)} }
	if s, err := New(State{In: keys(), Out: keys()}, StandardGCM); s != nil || !errors.Is(err, ErrFIPS140) {
		t.Errorf("made of a state: %v", err)
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	for name, shake := range map[string]func() error{
		"client": func() error { _, _, err := Client(t.Context(), near, &tls.Config{}, nil); return err },
		"server": func() error { _, _, err := Server(t.Context(), near, &tls.Config{}, nil); return err },
	} {
		if err := shake(); !errors.Is(err, ErrFIPS140) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g, why := FastestGCM(); why != "FIPS 140-3 mode" {
		t.Errorf("the fastest is ours: %v, %q", g != nil, why)
	}
}
