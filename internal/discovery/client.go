package discovery

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// ClientConfig says what a Client streams, from where, into what.
type ClientConfig struct {
	// Node is this node's name: the one its credentials prove.
	Node string
	// Target is the operator's address, host:port.
	Target string
	// Credentials authenticate both ends. They are asked anew for each
	// connection, so that a rotated certificate is used from then on.
	Credentials credentials.TransportCredentials
	// DialOptions are added to the client's own.
	DialOptions []grpc.DialOption
	// Store receives each View that is applied. The Client is its only writer.
	Store *mesh.Store
	// Waypoint, in place of Store, makes this the client of a waypoint, whose name Node is.
	Waypoint *Waypoint
	// LastGood is the path of the file to boot from and to keep; "" for none.
	// Its directory must exist.
	LastGood string
	// Keys returns the operator's configuration keys, any one of which may have
	// signed: learned at join, and renewed with the node's certificate.
	Keys func() []ed25519.PublicKey
	// BackoffMin and BackoffMax bound the wait between two connections; 250 ms
	// and 30 s when zero. The wait doubles, and is jittered by half.
	BackoffMin, BackoffMax time.Duration
	// SaveInterval is the least time between two writes of LastGood, also after one
	// that failed; 1 s when zero.
	SaveInterval time.Duration
	Logger       *slog.Logger
}

// Waypoint is where the configuration of a waypoint goes to. Its functions are called one at a
// time.
type Waypoint struct {
	// Apply makes a configuration the one that decides, or refuses it. The routes are the
	// same list for as long as none is different.
	Apply func(*mesh.View, []*route.Route) error
	// Learn is told the keys that the operator says it signs with, and its roots in DER, when
	// it has accepted the client; Keys must return them from then on.
	Learn func(keys, roots []string) error
}

// Status is what a Client knows of itself.
type Status struct {
	// Connected is set while the operator has accepted the stream; Since is
	// when it last changed.
	Connected bool
	Since     time.Time
	// Current is set while connected and the operator has confirmed that what
	// is applied is the newest.
	Current bool
	// FromLastGood is set while what is applied was read from disk.
	FromLastGood bool
	// Revision, Epoch and Resources are those of what is applied; AppliedAt is
	// when it was, ApplyTook how long checking and building the View took.
	Revision  string
	Epoch     uint64
	Resources int
	AppliedAt time.Time
	ApplyTook time.Duration
	// LastError is the newest failure and LastErrorAt its time; "" once the
	// operator's newest configuration is applied again.
	LastError   string
	LastErrorAt time.Time
	// LastGoodError says why the last good file was refused at the start; ""
	// once a configuration is applied.
	LastGoodError string
	// UnsavedError says why what is applied is not on disk, where a restart without
	// the operator would find an older one; "" once it is. It is tried again.
	UnsavedError string
	// Counters since the start: streams opened; commits refused; last good
	// files refused; writes of last good files that failed.
	Connects, Refused, LastGoodRefused, LastGoodUnsaved uint64
}

// Client keeps a Store equal to what the operator says. It is safe for
// concurrent use; Run is called once.
type Client struct {
	cfg ClientConfig

	state struct {
		sync.Mutex
		Status
	}
	// held is what is applied, nil before the first; it and resync belong to
	// the goroutine that streams, once Run has booted.
	held   *resources.Set
	resync bool
	// older is set for the one connection after an operator did not know the
	// newer kinds: it is asked for the others.
	older bool
	// progress is set when a round succeeded: the next wait is short again.
	progress bool

	save struct {
		sync.Mutex
		pending *resources.Set // newest that is not on disk
		wake    chan struct{}
	}
}

// NewClient checks the configuration. It opens nothing.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case cfg.Node == "" || cfg.Target == "":
		return nil, errors.New("new discovery client: Node and Target are needed")
	case cfg.Credentials == nil || cfg.Keys == nil || (cfg.Store == nil) == (cfg.Waypoint == nil) || cfg.Logger == nil:
		return nil, errors.New("new discovery client: Credentials, Keys, Store or Waypoint, and Logger are needed")
	}
	cfg.BackoffMin = cmp.Or(cfg.BackoffMin, 250*time.Millisecond)
	cfg.BackoffMax = max(cmp.Or(cfg.BackoffMax, 30*time.Second), cfg.BackoffMin)
	cfg.SaveInterval = cmp.Or(cfg.SaveInterval, time.Second)
	c := &Client{cfg: cfg}
	c.save.wake = make(chan struct{}, 1)
	return c, nil
}

// Status returns the state of this moment.
func (c *Client) Status() Status {
	c.state.Lock()
	defer c.state.Unlock()
	return c.state.Status
}

func (c *Client) update(change func(*Status)) {
	c.state.Lock()
	defer c.state.Unlock()
	change(&c.state.Status)
}

// Run boots the Store from the last good file, when there is one that holds,
// and then follows the operator until ctx ends. It connects again whenever the
// stream ends. It returns nil; every failure is in Status and in the log.
func (c *Client) Run(ctx context.Context) error {
	c.update(func(s *Status) { s.Since = time.Now() })
	if c.cfg.LastGood != "" {
		c.boot()
	}
	var g errgroup.Group
	g.Go(func() error { c.follow(ctx); return nil })
	if c.cfg.LastGood != "" {
		g.Go(func() error { c.keepLastGood(ctx); return nil })
	}
	return g.Wait()
}

func (c *Client) boot() {
	began := time.Now()
	h, view, err := resources.LoadFile(c.cfg.LastGood, c.cfg.Node, c.cfg.Keys())
	if errors.Is(err, resources.ErrNoFile) {
		c.cfg.Logger.Info("no last good configuration: waiting for the operator", "path", c.cfg.LastGood)
		return
	}
	if err == nil {
		err = c.apply(h, view, began)
	}
	if err != nil {
		c.cfg.Logger.Error("last good configuration is not used", "error", err)
		c.update(func(s *Status) {
			s.LastGoodRefused++
			s.LastGoodError, s.LastError, s.LastErrorAt = err.Error(), err.Error(), time.Now()
		})
		return
	}
	c.update(func(s *Status) { s.FromLastGood = true })
	c.cfg.Logger.Info("booted from the last good configuration", "revision", h.Commit.Revision, "epoch", h.Commit.Epoch)
}

// apply makes a verified set the one that decides.
func (c *Client) apply(h *resources.Set, view *mesh.View, began time.Time) error {
	if c.cfg.Waypoint == nil {
		c.cfg.Store.Replace(view)
	} else if err := c.cfg.Waypoint.Apply(view, h.Routes()); err != nil {
		return err
	}
	c.held = h
	c.update(func(s *Status) {
		s.Revision, s.Epoch, s.Resources = h.Commit.Revision, h.Commit.Epoch, h.Len()
		s.AppliedAt, s.ApplyTook, s.FromLastGood, s.LastGoodError = time.Now(), time.Since(began), false, ""
	})
	return nil
}

// follow streams until ctx ends, with waits in between.
func (c *Client) follow(ctx context.Context) {
	wait := c.cfg.BackoffMin
	for ctx.Err() == nil {
		c.progress = false
		err := c.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if c.progress {
			wait = c.cfg.BackoffMin
		}
		pause := jitter(wait)
		c.cfg.Logger.Warn("operator is not connected: going on with what is applied", "error", err, "retry", pause)
		c.update(func(s *Status) { s.LastError = err.Error(); s.LastErrorAt = time.Now() })
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, c.cfg.BackoffMax)
	}
}

// jitter returns a duration between half of d and d, so that agents that lost
// an operator together do not come back together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}

// keepLastGood writes what is applied to disk, at most once an interval, and
// once more at the end. What could not be written is tried again: on a full disk
// there may be room soon.
func (c *Client) keepLastGood(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-c.save.wake:
			c.saveNow()
		case <-ctx.Done():
		}
		timer := time.NewTimer(c.cfg.SaveInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	c.saveNow()
}

// saveSoon asks for a set to be written; one that waits is overtaken.
func (c *Client) saveSoon(h *resources.Set) {
	if c.cfg.LastGood == "" {
		return
	}
	c.save.Lock()
	c.save.pending = h
	c.save.Unlock()
	c.wakeSaving()
}

func (c *Client) wakeSaving() {
	select {
	case c.save.wake <- struct{}{}:
	default: // it will find the newest
	}
}

func (c *Client) saveNow() {
	c.save.Lock()
	h := c.save.pending
	c.save.pending = nil
	c.save.Unlock()
	if h == nil {
		return
	}
	before := c.Status().UnsavedError
	err := resources.SaveFile(c.cfg.LastGood, h.Resources(), &h.Commit)
	if err == nil {
		if before != "" {
			c.cfg.Logger.Info("last good configuration is saved again", "epoch", h.Commit.Epoch)
		}
		c.update(func(s *Status) { s.UnsavedError = "" })
		return
	}
	if before == "" { // said once, however often it is tried
		c.cfg.Logger.Error("last good configuration is not saved: a restart would go back to an older one; trying again", "error", err)
	}
	c.update(func(s *Status) { s.LastGoodUnsaved++; s.UnsavedError = err.Error() })
	c.save.Lock()
	if c.save.pending == nil {
		c.save.pending = h
	}
	c.save.Unlock()
	c.wakeSaving()
}
