// Package subscriber says who follows the configuration: a node's agent, by the node's SVID,
// or a pod of a waypoint, which has none. On Kubernetes such a pod is believed by its projected
// token, which the API server reviews, and only for the waypoint whose Service it is an
// endpoint of, and only where somebody asks for that waypoint; of a folder it is by a join token that names the waypoint.
//
// It issues nothing, and nothing that a waypoint proves lets it have a certificate.
//
// An Authenticator is safe for concurrent use and starts nothing.
package subscriber

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/issuing"
	"github.com/heddle-mesh/heddle/operator/tokenreview"
)

// proofLasts is how long what a waypoint has proven counts: it connects again then, and goes
// on where it was. A pod that is no endpoint any more is told nothing from then on.
const proofLasts = 15 * time.Minute

// Attempts per second, and at once, from one address: each may be a question to the API server.
const (
	tryRate  = 2
	tryBurst = 20
)

// View is what deciding needs of a *mesh.View.
type View interface {
	Service(mesh.Key) (*mesh.Service, bool)
	Workload(mesh.Key) (*mesh.Workload, bool)
}

// Pods reviews the tokens of pods; *tokenreview.Reviewer does.
type Pods interface {
	// PodOf returns the pod that a token is bound to. The error matches
	// issuing.ErrNotVouched when the token is refused.
	PodOf(ctx context.Context, token string) (tokenreview.Pod, error)
}

// Tokens admits waypoints by join tokens; *jointoken.Store does.
type Tokens interface {
	Admit(secret []byte, name string, session []byte) (jointoken.Record, error)
}

// Config says how waypoints prove who they are: one of Pods and Tokens is set.
type Config struct {
	// Node returns the name of the node that calls, by its SVID.
	Node func(context.Context) (string, error)
	// View returns the mesh as it is now, never nil.
	View   func() View
	Pods   Pods
	Tokens Tokens
	// Meant says, with Pods, whether anybody wants a Service to be a waypoint: a Gateway
	// asks for it, or a service names it. A join token says so itself.
	Meant  func(mesh.Key) bool
	Logger *slog.Logger
}

// Authenticator tells who follows.
type Authenticator struct {
	cfg Config
	// rarely is false for an address from which too many try.
	rarely func(context.Context) bool
	// streams are those that are open, by who follows.
	streams struct {
		sync.Mutex
		of map[follower]int
	}
}

// follower is a node's agent, or a pod of a waypoint.
type follower struct{ node, replica string }

// maxStreams is how many streams one of them has: one, two while another takes over, and for a while
// those that have broken off unnoticed. Each costs memory, and what was proven once opens any number.
const maxStreams = 8

// New checks the configuration.
func New(cfg Config) (*Authenticator, error) {
	if cfg.Node == nil || cfg.View == nil || cfg.Logger == nil || (cfg.Pods == nil) == (cfg.Tokens == nil) || (cfg.Pods == nil) != (cfg.Meant == nil) {
		return nil, errors.New("new authenticator: Node, View, Logger, and one of Pods, with Meant, and Tokens are needed")
	}
	a := &Authenticator{cfg: cfg, rarely: issuing.LimitByAddress(tryRate, tryBurst)}
	a.streams.of = map[follower]int{}
	return a, nil
}

// Caller returns who follows, by the context of the stream. The error is for the caller to
// see.
func (a *Authenticator) Caller(ctx context.Context) (discovery.Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	claimed := md.Get(discovery.WaypointHeader)
	if len(claimed) == 0 {
		node, err := a.cfg.Node(ctx)
		if err == nil {
			err = a.enter(ctx, follower{node: node})
		}
		// The connection, and with it the stream, ends when the SVID does.
		return discovery.Caller{Node: node}, err
	}
	caller, err := a.waypoint(ctx, md, claimed)
	if err == nil {
		err = a.enter(ctx, follower{caller.Node, caller.Replica})
	}
	if err != nil {
		a.cfg.Logger.Warn("waypoint refused", "waypoint", fmt.Sprintf("%.100q", claimed), "error", err)
	}
	return caller, err
}

// enter counts a stream until its context ends. The error is that there are too many.
func (a *Authenticator) enter(ctx context.Context, f follower) error {
	a.streams.Lock()
	defer a.streams.Unlock()
	if a.streams.of[f] >= maxStreams {
		return fmt.Errorf("%s has %d streams already, as many as one may have; one that has broken off ends within a minute, and makes room", cmp.Or(f.replica, f.node), maxStreams)
	}
	a.streams.of[f]++
	context.AfterFunc(ctx, func() {
		a.streams.Lock()
		defer a.streams.Unlock()
		if a.streams.of[f]--; a.streams.of[f] == 0 {
			delete(a.streams.of, f)
		}
	})
	return nil
}

func (a *Authenticator) waypoint(ctx context.Context, md metadata.MD, claimed []string) (discovery.Caller, error) {
	namespace, name, ok := strings.Cut(claimed[0], "/")
	if !ok || len(claimed) > 1 || namespace == "" || name == "" || strings.Contains(name, "/") {
		return discovery.Caller{}, fmt.Errorf("%.100q is no name of a waypoint; remedy: NAMESPACE/NAME, of its Service", claimed)
	}
	token, ok := bearer(md)
	if !ok {
		return discovery.Caller{}, errors.New("a waypoint proves who it is by a token, and there is none")
	}
	if !a.rarely(ctx) {
		return discovery.Caller{}, errors.New("too many attempts from this address; trying again later helps")
	}
	key := mesh.Key{Namespace: namespace, Name: name}
	if a.cfg.Pods != nil {
		return a.byPod(ctx, key, token)
	}
	return a.byToken(md, key, token)
}

func bearer(md metadata.MD) (string, bool) {
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", false
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	return token, ok && token != ""
}

func callerOf(key mesh.Key, replica string) discovery.Caller {
	// Not all pods of a Deployment at once.
	lasts := proofLasts - rand.N(proofLasts/5)
	return discovery.Caller{Node: discovery.WaypointName(key), Waypoint: key, Replica: replica, Until: time.Now().Add(lasts)}
}

// byPod admits an endpoint of the waypoint's Service.
func (a *Authenticator) byPod(ctx context.Context, key mesh.Key, token string) (discovery.Caller, error) {
	pod, err := a.cfg.Pods.PodOf(ctx, token)
	if errors.Is(err, issuing.ErrNotVouched) {
		return discovery.Caller{}, err
	}
	if err != nil {
		a.cfg.Logger.ErrorContext(ctx, "token cannot be reviewed", "waypoint", key, "error", err)
		return discovery.Caller{}, errors.New("operator cannot have the token reviewed now: the API server does not answer, or refuses; its log says why")
	}
	view := a.cfg.View()
	service, ok := view.Service(key)
	if !ok {
		return discovery.Caller{}, fmt.Errorf("there is no Service %s that this could be the waypoint of", key)
	}
	w, known := view.Workload(pod.Key)
	if !known || w.UID != pod.UID || !slices.Contains(service.Endpoints, pod.Key) {
		return discovery.Caller{}, fmt.Errorf("pod %s is no endpoint of Service %s: it is not a pod of that waypoint, or the operator does not know of it yet", pod.Key, key)
	}
	// Each that is served costs memory for as long as its Service is there.
	if !a.cfg.Meant(key) {
		return discovery.Caller{}, fmt.Errorf("nobody asks for Service %s as a waypoint; remedy: a Gateway of class %s of that name, or the label %s on a service that it is to be the waypoint of", key, v1alpha1.ClassWaypoint, v1alpha1.LabelWaypoint)
	}
	return callerOf(key, pod.Name), nil
}

// byToken admits whom a join token names.
func (a *Authenticator) byToken(md metadata.MD, key mesh.Key, text string) (discovery.Caller, error) {
	token, err := jointoken.Parse(text)
	if err != nil {
		return discovery.Caller{}, err
	}
	session := md.Get(discovery.SessionHeader)
	if len(session) != 1 || len(session[0]) < jointoken.SecretBytes {
		return discovery.Caller{}, errors.New("a waypoint that joins says which one it is from then on, and this one does not")
	}
	record, err := a.cfg.Tokens.Admit(token.Secret[:], discovery.WaypointName(key), []byte(session[0]))
	if err != nil {
		return discovery.Caller{}, err
	}
	return callerOf(key, record.ID), nil
}
