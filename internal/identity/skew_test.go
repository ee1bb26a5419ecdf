package identity

import (
	"crypto/x509"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/skew"
)

// TestSkewedClocks: whatever the clocks of operator, agent and peer, each no further
// than skew.Max from the true one, the agent always has a certificate that is good by
// its own clock and by the peer's, over several renewals, of a year's authority and of one that
// began this moment, as somebody else's may. The bubble's clock is the agent's.
func TestSkewedClocks(t *testing.T) {
	for _, c := range []struct{ ttl, backdate time.Duration }{{24 * time.Hour, 0}, {time.Hour, 0}, {24 * time.Hour, time.Nanosecond}} {
		for _, operator := range []time.Duration{-skew.Max, 0, skew.Max} {
			for _, agent := range []time.Duration{-skew.Max, 0, skew.Max} {
				t.Run(fmt.Sprintf("%v of TTL, %v back, operator %v, agent %v", c.ttl, c.backdate, operator, agent), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { skewed(t, c.ttl, c.backdate, operator-agent, -agent) })
				})
			}
		}
	}
}

// skewed has an operator whose clock is ahead of the agent's, as is the true time.
func skewed(t *testing.T, ttl, backdate, operator, truth time.Duration) {
	a := newTestAuthority(t, func(c *AuthorityConfig) {
		c.TTL, c.Backdate, c.Now = ttl, backdate, func() time.Time { return time.Now().Add(operator) }
	})
	s := start(t, SourceConfig{Signer: &fakeSigner{Authority: a, latency: time.Second}})
	want(t, s, shopWeb)
	time.Sleep(2 * time.Second)
	serials := map[string]bool{}
	for range 300 {
		held := certificate(t, s, shopWeb)
		serials[held.Leaf.SerialNumber.String()] = true
		for _, peer := range []time.Duration{-skew.Max, 0, skew.Max} {
			id, err := hbone.VerifyPeer(parsed(t, held.Certificate), a.Bundle(), time.Now().Add(truth+peer))
			if err != nil || id != shopWeb {
				t.Fatalf("a peer whose clock is %v off: %v", peer, err)
			}
		}
		time.Sleep(ttl / 100)
	}
	if len(serials) < 4 {
		t.Errorf("%d certificates in three lives", len(serials))
	}
}

func parsed(t *testing.T, chain [][]byte) (certs []*x509.Certificate) {
	t.Helper()
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	return certs
}
