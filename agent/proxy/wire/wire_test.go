package wire_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

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
