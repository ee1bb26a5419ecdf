// Package requests keeps the newest requests that a waypoint has carried or refused, and shows
// them to heddle flows, by the admin socket. What failed, was refused or was sent more than once
// has room of its own, so that it is there when all else has long been replaced.
//
// A Log is safe for concurrent use. Adding allocates nothing, and waits for no reader.
package requests

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// maxWatchers bounds those who follow, lookEvery is how often each of them looks.
	maxWatchers = 64
	lookEvery   = 100 * time.Millisecond
)

// Config says what is kept.
type Config struct {
	// Waypoint and Replica are where the requests were.
	Waypoint mesh.Key
	Replica  string
	// Size is how many are kept, half of which are such as are Notable; 0 keeps none.
	Size int
	// Rules say which of the others are.
	Rules *sample.Rules
}

// Log keeps requests.
type Log struct {
	meshpb.UnimplementedFlowsServer
	cfg      Config
	watchers atomic.Int64

	kept struct {
		sync.Mutex
		added           uint64 // also the number of the newest
		ordinary, other ring
	}
}

// ring keeps the newest of what is put into it.
type ring struct {
	slots []entry
	put   uint64
}

type entry struct {
	id uint64
	flow.Request
}

func (r *ring) next() *entry {
	r.put++
	return &r.slots[r.put%uint64(len(r.slots))]
}

// New makes a Log; nil, which keeps nothing, of no size.
func New(cfg Config) *Log {
	if cfg.Size <= 0 {
		return nil
	}
	l := &Log{cfg: cfg}
	l.kept.ordinary.slots, l.kept.other.slots = make([]entry, (cfg.Size+1)/2), make([]entry, (cfg.Size+1)/2)
	return l
}

// Wants says of a request that has just come whether it is kept if nothing goes wrong. Service and path are as
// sample.Rules have them. It may be called on a nil Log.
func (l *Log) Wants(service, path string) bool { return l != nil && l.cfg.Rules.Want(service, path) }

// Notable says of a request that it is kept whatever the rules say: it was refused, has failed, or was sent more than once.
func Notable(r *flow.Request) bool {
	return r.Verdict == mesh.VerdictDeny || r.Status == 0 && !flow.IsConnection(r.Method) || r.Status >= 500 || r.Tries > 1 || r.First != ""
}

// Add keeps a request. It may be called on a nil Log.
func (l *Log) Add(r *flow.Request) {
	if l == nil {
		return
	}
	k := &l.kept
	k.Lock()
	defer k.Unlock()
	k.added++
	e := &k.ordinary
	if Notable(r) {
		e = &k.other
	}
	*e.next() = entry{k.added, *r}
}

// after returns at most so many of the newest requests with numbers above id that match, oldest first, the number of the
// newest one of all, and how many above id are no longer kept.
func (l *Log) after(id uint64, most int, f *flow.Filter) (found []entry, newest, lost uint64) {
	k := &l.kept
	k.Lock()
	defer k.Unlock()
	there := uint64(0)
	for _, r := range []*ring{&k.ordinary, &k.other} {
		for back := range uint64(len(r.slots)) { // from the newest: loops wait meanwhile
			e := &r.slots[(r.put-back)%uint64(len(r.slots))]
			if e.id <= id { // so are all before it; an empty slot has 0
				break
			}
			there++
			if f.MatchRequest(&e.Request) {
				found = append(found, *e)
			}
		}
	}
	slices.SortFunc(found, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
	return found[max(0, len(found)-most):], k.added, k.added - min(id, k.added) - there
}

// Last returns the newest n requests that match, oldest first.
func (l *Log) Last(n int, f *flow.Filter) []*meshpb.Flow {
	found, _, _ := l.after(0, n, f)
	return l.flows(found)
}

func (l *Log) flows(found []entry) []*meshpb.Flow {
	all := make([]*meshpb.Flow, len(found))
	for i := range found {
		all[i] = found[i].ToProto(found[i].id, l.cfg.Replica, l.cfg.Waypoint)
	}
	return all
}

// Watch implements meshpb.FlowsServer, as agents do.
func (l *Log) Watch(req *meshpb.WatchFlowsRequest, stream grpc.ServerStreamingServer[meshpb.WatchFlowsResponse]) error {
	filter, err := flow.FilterFromProto(req.GetFilter())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if !req.GetFollow() {
		return send(stream, l.Last(int(req.GetLast()), &filter), 0)
	}
	defer l.watchers.Add(-1)
	if l.watchers.Add(1) > maxWatchers {
		return status.Errorf(codes.ResourceExhausted, "%d watchers already: end one of them first", maxWatchers)
	}
	found, at, _ := l.after(0, int(req.GetLast()), &filter)
	// The headers tell the client that it misses nothing from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	if err := send(stream, l.flows(found), 0); err != nil {
		return err
	}
	return l.follow(stream, at, &filter)
}

// follow sends what comes after a number, until the stream's end.
func (l *Log) follow(stream grpc.ServerStreamingServer[meshpb.WatchFlowsResponse], at uint64, filter *flow.Filter) error {
	ctx := stream.Context()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		found, newest, lost := l.after(at, len(l.kept.ordinary.slots)+len(l.kept.other.slots), filter)
		if at = newest; len(found) == 0 && lost == 0 {
			continue
		}
		if err := send(stream, l.flows(found), lost); err != nil {
			return err
		}
	}
}

func send(stream grpc.ServerStreamingServer[meshpb.WatchFlowsResponse], flows []*meshpb.Flow, lost uint64) error {
	if lost > 0 {
		if err := stream.Send(&meshpb.WatchFlowsResponse{Lost: lost}); err != nil {
			return err
		}
	}
	for _, f := range flows {
		if err := stream.Send(&meshpb.WatchFlowsResponse{Flow: f}); err != nil {
			return err
		}
	}
	return nil
}

// History implements meshpb.FlowsServer: a waypoint keeps none.
func (l *Log) History(*meshpb.HistoryRequest, grpc.ServerStreamingServer[meshpb.HistoryResponse]) error {
	return status.Error(codes.FailedPrecondition, "a waypoint keeps no history: agents do, of its connections")
}
