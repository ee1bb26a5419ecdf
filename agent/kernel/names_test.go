package kernel

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestGiveNobody: a pod that is gone before it can be given anything is in the log.
func TestGiveNobody(t *testing.T) {
	var log testenv.Log
	s := answering{datapath: &Datapath{node: &podnet.Node{}, log: slog.New(slog.NewTextHandler(&log, nil))}}
	s.give(t.Context(), proxy.Pod{Key: mesh.Key{Namespace: "shop", Name: "web"}})
	if text := log.String(); !strings.Contains(text, "pod has no Workload API") || !strings.Contains(text, "workload=shop/web") {
		t.Errorf("said %q", text)
	}
}

// TestLasting: what is carried until it has drained looks up names; keys are not given
// to what has left the mesh, nor anything by an agent that another one has succeeded.
func TestLasting(t *testing.T) {
	for _, one := range []struct {
		cause        error
		names, svids bool // end at once
	}{
		{errors.New("the agent ends"), false, false},
		{proxy.ErrMoving, true, true},
		{proxy.ErrUnenrolled, false, true},
		{proxy.ErrLeaving, false, true},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		names, svids, stop := lasting(ctx)
		cancel(one.cause)
		for what, c := range map[string]struct {
			context.Context
			ends bool
		}{"names": {names, one.names}, "SVIDs": {svids, one.svids}} {
			within := 20 * time.Millisecond
			if c.ends {
				within = 10 * time.Second
			}
			select {
			case <-c.Done():
				if !c.ends {
					t.Errorf("%v: %s end at once", one.cause, what)
				}
			case <-time.After(within):
				if c.ends {
					t.Errorf("%v: %s do not end", one.cause, what)
				}
			}
		}
		stop()
		if names.Err() == nil || svids.Err() == nil {
			t.Errorf("%v: not stopped", one.cause)
		}
	}
}
