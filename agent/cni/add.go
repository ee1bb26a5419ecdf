package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// currentEvery is how often it is looked whether the operator is there again.
const currentEvery = 200 * time.Millisecond

// add has a new pod enrolled, when it belongs in the mesh, or says why it must
// wait. After anything but Protected and Outside nothing is known of the sandbox,
// and what was begun is taken back.
func (s *Server) add(ctx context.Context, r *cniwire.Request) cniwire.Response {
	place, refusal := s.placeOf(r)
	if refusal != nil {
		return *refusal
	}
	enrolled, refusal := s.belongs(ctx, r)
	if refusal != nil {
		return *refusal
	}
	before, err := s.cfg.Places.Put(place)
	switch {
	case err != nil && enrolled:
		return refuse("%w; remedy: delete the pod, so that it is made anew", err)
	case err != nil:
		// Not a pod of the mesh: it must not suffer from what concerns only the mesh.
		s.cfg.Log.Warn("pod could not join the mesh later", "workload", place.Key, "error", err)
		fallthrough
	case !enrolled:
		return cniwire.Response{Verdict: cniwire.Outside}
	}
	if err := s.cfg.Enroller.Await(ctx, place.Key, place.NetNS); err != nil {
		if !before {
			s.cfg.Places.Forget(place.Sandbox)
		}
		return wait("it is not behind its gate yet: %w; Kubernetes tries again by itself", unfinished(err))
	}
	return cniwire.Response{Verdict: cniwire.Protected}
}

// unfinished says in words that time ran out.
func unfinished(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return errors.New("enrolling it took too long, see the agent's log")
	}
	return err
}

func wait(format string, args ...any) cniwire.Response {
	return cniwire.Response{Verdict: cniwire.Wait, Reason: fmt.Errorf(format, args...).Error()}
}

func refuse(format string, args ...any) cniwire.Response {
	return cniwire.Response{Verdict: cniwire.Refused, Reason: fmt.Errorf(format, args...).Error()}
}

// placeOf looks at the namespace that the question names.
func (s *Server) placeOf(r *cniwire.Request) (Place, *cniwire.Response) {
	ns, err := openNetNS(r.NetNS)
	if err != nil {
		response := refuse("%w", err)
		if errors.Is(err, fs.ErrNotExist) {
			response = refuse("%w; if the pod has one, give the agent the node's /run/netns, with mounts passed on (HostToContainer)", err)
		}
		return Place{}, &response
	}
	defer ns.Close()
	if ns.ID() == s.home {
		response := refuse("%s is the node's own network namespace: a pod with hostNetwork cannot be in the mesh", r.NetNS)
		return Place{}, &response
	}
	return Place{
		Key: key(r), UID: r.UID, Sandbox: r.ContainerID, NetNS: ns.Path(), Namespace: ns.ID(),
		Addresses: podAddresses(r.Addresses), Created: time.Now(),
	}, nil
}

// podAddresses leaves those that others can know the pod by, sorted.
func podAddresses(all []netip.Addr) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); a.IsGlobalUnicast() {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// belongs says whether the configuration has the pod in the mesh. It waits for
// one that has not been told of yet; the namespace decides about a pod that is
// never told of.
func (s *Server) belongs(ctx context.Context, r *cniwire.Request) (enrolled bool, refusal *cniwire.Response) {
	tick := time.NewTicker(currentEvery)
	defer tick.Stop()
	began := time.Now()
	for {
		view, changed := s.cfg.Store.Snapshot()
		w, known := s.workload(view, r)
		standing := s.list.standing(r.Namespace)
		stale := s.cfg.Current()
		switch {
		case known:
			return w.Enrolled, nil
		case slices.Contains(s.cfg.Pass, r.Namespace):
			return false, nil
		case standing == cniwire.NotEnrolled && (stale != nil || time.Since(began) >= s.cfg.OutsideWait):
			return false, nil
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return false, s.unknown(r, view, stale)
		}
	}
}

// workload finds the pod of the question. A pod of this name that has another
// UID, or other addresses, is its predecessor.
func (s *Server) workload(view *mesh.View, r *cniwire.Request) (*mesh.Workload, bool) {
	w, ok := view.Workload(key(r))
	if !ok || w.Node != s.cfg.Node || another(w, r.UID) {
		return nil, false
	}
	if len(w.Addresses) == 0 || len(r.Addresses) == 0 {
		return w, true
	}
	return w, slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { return slices.Contains(w.Addresses, a) })
}

func (s *Server) unknown(r *cniwire.Request, view *mesh.View, stale error) *cniwire.Response {
	const again = "Kubernetes tries again by itself"
	var response cniwire.Response
	switch {
	case stale != nil:
		response = wait("its identity is not known, because the operator cannot be reached: %w; %s, look at the heddle-operator if this lasts", stale, again)
	case !view.Synced():
		response = wait("the agent has no configuration from the operator yet; %s", again)
	default:
		response = wait("the operator has not told this node (%s) of a pod %s with its addresses %v; %s", s.cfg.Node, key(r), r.Addresses, again)
	}
	return &response
}

// check says whether a pod is what it should be; it does not wait for it.
func (s *Server) check(ctx context.Context, r *cniwire.Request) cniwire.Response {
	place, ok := s.cfg.Places.Get(key(r))
	w, known := s.workload(s.cfg.Store.View(), r)
	switch {
	case known && !w.Enrolled, !known && slices.Contains(s.cfg.Pass, r.Namespace),
		!known && s.list.standing(r.Namespace) == cniwire.NotEnrolled:
		return cniwire.Response{Verdict: cniwire.Outside}
	case !known:
		return *s.unknown(r, s.cfg.Store.View(), s.cfg.Current())
	case !ok || place.Sandbox != r.ContainerID:
		return wait("the agent does not know its sandbox %s", r.ContainerID)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := s.cfg.Enroller.Await(ctx, place.Key, place.NetNS); err != nil {
		return wait("it is not behind its gate: %w", unfinished(err))
	}
	return cniwire.Response{Verdict: cniwire.Protected}
}
