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

	"github.com/heddle-mesh/heddle/agent/proxy/budget"
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
		{wire.TunnelReason(&hbone.StatusError{Code: 502}), mesh.ReasonAppUnreachable},
		{wire.TunnelReason(&hbone.StatusError{Code: 504}), mesh.ReasonTimeout},
		{wire.TunnelReason(&hbone.StatusError{Code: 500}), mesh.ReasonPeerRefused},
		{wire.TunnelReason(fmt.Errorf("x: %w", &hbone.StatusError{Code: 401})), mesh.ReasonPeerRefused},
		{wire.TunnelReason(fmt.Errorf("x: %w", hbone.ErrPeerMismatch)), mesh.ReasonPeerIdentityMismatch},
		{wire.TunnelReason(other), mesh.ReasonPeerUnreachable},
		{wire.RefusalReason(hbone.ErrHandshake), mesh.ReasonBadRequest},
		{wire.RefusalReason(fmt.Errorf("%w: %w", &hbone.StatusError{Code: 400}, hbone.ErrLimit)), mesh.ReasonBudgetExceeded},
		{wire.EndReason(relay.ErrReset), mesh.ReasonReset},
		{wire.EndReason(hbone.ErrRevoked), mesh.ReasonIdentityRevoked},
		{wire.EndReason(fmt.Errorf("%w: flood", hbone.ErrLimit)), mesh.ReasonBudgetExceeded},
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

// TestElsewhere: whoever was not reached may be asked for at another place, however the
// peer says so; whoever refuses may not.
func TestElsewhere(t *testing.T) {
	for _, own := range []error{budget.ErrOver, wire.ErrSockets} { // says nothing of the peer
		if wire.Elsewhere(fmt.Errorf("x: %w", own)) {
			t.Errorf("%v: another peer is asked", own)
		}
	}
	for code, want := range map[int]bool{400: false, 401: false, 403: false, 429: false, 431: false, 500: false, 502: true, 503: true, 504: true, 505: false} {
		if got := wire.Elsewhere(&hbone.StatusError{Code: code}); got != want {
			t.Errorf("%d: %v", code, got)
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

// TestScope: the context ends with the scope, with what it is in, and at once when it
// is asked for too late.
func TestScope(t *testing.T) {
	var asked, late, within wire.Scope
	parent, end := context.WithCancel(t.Context())
	asked.Parent, late.Parent, within.Parent = t.Context(), t.Context(), parent
	ctx := asked.Context()
	if ctx.Err() != nil || asked.Context() != ctx {
		t.Error("the context has ended, or is another each time")
	}
	asked.End()
	late.End()
	inner := within.Context()
	end()
	for name, ctx := range map[string]context.Context{"asked": ctx, "asked again": asked.Context(), "late": late.Context(), "within": inner} {
		if ctx.Err() == nil {
			t.Errorf("%s: the context goes on", name)
		}
	}
	within.End()
}

// TestPrinted: another certificate has another fingerprint, whoever asked before.
func TestPrinted(t *testing.T) {
	var p wire.Printed
	one, two := &tls.Certificate{Certificate: [][]byte{{1}}}, &tls.Certificate{Certificate: [][]byte{{2}}}
	for _, cert := range []*tls.Certificate{one, one, two, one, two, two} {
		if p.Of(cert) != hbone.Fingerprint(cert) {
			t.Errorf("the fingerprint of %v is another's", cert.Certificate)
		}
	}
	if n := testing.AllocsPerRun(10, func() { p.Of(two) }); n != 0 {
		t.Errorf("%v allocations for a fingerprint that is known", n)
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
