package wire_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestReasons(t *testing.T) {
	other := errors.New("something else")
	for _, c := range []struct {
		got, want mesh.Reason
	}{
		{wire.TunnelReason(&hbone.StatusError{Code: 503}), mesh.ReasonAppUnreachable},
		{wire.TunnelReason(fmt.Errorf("x: %w", &hbone.StatusError{Code: 401})), mesh.ReasonPeerRefused},
		{wire.TunnelReason(fmt.Errorf("x: %w", hbone.ErrPeerMismatch)), mesh.ReasonPeerIdentityMismatch},
		{wire.TunnelReason(other), mesh.ReasonPeerUnreachable},
		{wire.RefusalReason(hbone.ErrHandshake), mesh.ReasonBadRequest},
		{wire.RefusalReason(fmt.Errorf("%w: %w", &hbone.StatusError{Code: 400}, hbone.ErrLimit)), mesh.ReasonBudgetExceeded},
		{wire.EndReason(relay.ErrReset), mesh.ReasonReset},
		{wire.EndReason(hbone.ErrRevoked), mesh.ReasonIdentityRevoked},
		{wire.EndReason(unix.ETIMEDOUT), mesh.ReasonTimeout},
		{wire.DialReason(unix.EMFILE, mesh.ReasonAppUnreachable), mesh.ReasonBudgetExceeded},
		{wire.DialReason(wire.ErrSockets, mesh.ReasonAppUnreachable), mesh.ReasonBudgetExceeded},
		{wire.DialReason(context.DeadlineExceeded, mesh.ReasonAppUnreachable), mesh.ReasonTimeout},
		{wire.DialReason(unix.ECONNREFUSED, mesh.ReasonAppUnreachable), mesh.ReasonAppUnreachable},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

func TestHeaders(t *testing.T) {
	w := &mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: "web-1"}, Labels: map[string]string{"app": "a,b", "version": "v 1"}}
	if got, want := wire.Baggage(w), "k8s.namespace.name=shop,k8s.pod.name=web-1,service.name=a%2Cb,service.version=v%201"; got != want {
		t.Errorf("baggage %q, want %q", got, want)
	}
	one, two := wire.TraceParent(), wire.TraceParent()
	if one == two || !hbone.ValidTraceParent(one) || !hbone.ValidTraceParent(two) {
		t.Errorf("trace parents %q and %q", one, two)
	}
}

// holds is an Identities with one certificate.
type holds struct {
	wire.Identities
	cert *tls.Certificate
}

func (h holds) Certificate(spiffeid.ID) (*tls.Certificate, error) { return h.cert, nil }

// TestCertificateOfAClockAhead: an SVID whose authority began by a clock that is ahead is
// presented as soon as peers take it.
func TestCertificateOfAClockAhead(t *testing.T) {
	w := &mesh.Workload{Identity: spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")}
	now := time.Now()
	for _, c := range []struct {
		begins, ends time.Duration
		want         mesh.Reason
	}{
		{-time.Hour, time.Hour, mesh.ReasonUnknown},
		{15 * time.Minute, time.Hour, mesh.ReasonUnknown},
		{25 * time.Minute, time.Hour, mesh.ReasonNoCertificate},
		{-time.Hour, -time.Minute, mesh.ReasonNoCertificate},
	} {
		cert := &tls.Certificate{Leaf: &x509.Certificate{NotBefore: now.Add(c.begins), NotAfter: now.Add(c.ends)}}
		got, reason, err := wire.Certificate(holds{cert: cert}, mesh.NewStore().View(), w)
		if reason != c.want || (err == nil) != (c.want == mesh.ReasonUnknown) || err == nil && got != cert {
			t.Errorf("from %v to %v: %v, %v", c.begins, c.ends, reason, err)
		}
	}
}
