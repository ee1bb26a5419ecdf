package rotation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// RotatorConfig says how a Rotator goes. Live, Fleet and Logger are needed.
type RotatorConfig struct {
	Live *Live
	// Fleet returns everybody who matters, as they are now.
	Fleet func(context.Context) Fleet
	// Interval is how often a rotation is looked at; 1 s when zero.
	Interval time.Duration
	// Settle is how long a stage lasts at least after its last report, before the
	// old root goes: handshakes that began with a certificate of it end meanwhile.
	// 15 s when zero.
	Settle time.Duration
	// Issuer is who makes the authority's certificates in the operator's place, for the
	// message that refuses a rotation; "" where it is the operator.
	Issuer string
	Logger *slog.Logger
}

// Rotator takes rotations from stage to stage. One replica runs it; the others may
// begin, abort and force all the same.
type Rotator struct {
	cfg RotatorConfig

	even struct {
		sync.Mutex
		stage, since time.Time // no replica was behind since, in the stage that began at stage
	}
}

// NewRotator checks the configuration.
func NewRotator(cfg RotatorConfig) (*Rotator, error) {
	if cfg.Live == nil || cfg.Fleet == nil || cfg.Logger == nil {
		return nil, errors.New("new rotator: Live, Fleet and Logger are needed")
	}
	cfg.Interval = cmp.Or(cfg.Interval, time.Second)
	cfg.Settle = cmp.Or(cfg.Settle, 15*time.Second)
	return &Rotator{cfg: cfg}, nil
}

// Run looks after a rotation, if there is one, until ctx is done; it returns nil.
func (r *Rotator) Run(ctx context.Context) error {
	var complete time.Time // since when nobody holds the stage that began at since
	var since time.Time
	tick := time.NewTicker(r.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		k := r.cfg.Live.Keyring()
		if !k.Active() {
			continue
		}
		if !k.Since.Equal(since) {
			since, complete = k.Since, time.Time{}
		}
		if waiting := r.look(ctx, k).Waiting; len(waiting) > 0 {
			complete = time.Time{}
			r.cfg.Logger.Debug("rotation waits", "stage", k.Stage, "for", len(waiting), "first", waiting[0].Name, "reason", waiting[0].Reason)
			continue
		}
		if complete.IsZero() {
			complete = time.Now()
		}
		if k.Stage == StageReissue && time.Since(complete) < r.cfg.Settle {
			continue
		}
		if err := r.advance(ctx, k); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Error("rotation does not go on: trying again", "stage", k.Stage, "error", err)
		}
	}
}

// look is how far a rotation is, and takes note of since when no replica is behind.
func (r *Rotator) look(ctx context.Context, k *Keyring) Progress {
	f := r.cfg.Fleet(ctx)
	behind := slices.ContainsFunc(k.Progress(f).Waiting, func(w Wait) bool { return w.Part == partReplica })
	r.even.Lock()
	switch {
	case behind:
		r.even.since = time.Time{}
	case !r.even.stage.Equal(k.Since) || r.even.since.IsZero():
		r.even.since = time.Now()
	}
	r.even.stage = k.Since
	r.even.Unlock()
	return r.Progress(k, f)
}

// Progress is Keyring.Progress with what Run has seen of replicas.
func (r *Rotator) Progress(k *Keyring, f Fleet) Progress {
	r.even.Lock()
	if r.even.stage.Equal(k.Since) {
		f.Even = r.even.since
	}
	r.even.Unlock()
	return k.Progress(f)
}

// advance goes to the next stage, unless what was looked at is no longer so.
func (r *Rotator) advance(ctx context.Context, seen *Keyring) error {
	what := ""
	err := r.cfg.Live.Change(ctx, func(k *Keyring) (texts Texts, err error) {
		if k.Stage != seen.Stage || !k.Since.Equal(seen.Since) {
			return nil, ErrConflict
		}
		texts, what, err = k.Advance(time.Now())
		return texts, err
	})
	if err == nil {
		r.cfg.Logger.Info("rotation goes on", "kind", seen.Kind, "after", seen.Stage, "now", what, "took", time.Since(seen.Since))
	}
	return err
}

// Begin begins a rotation, or with dry only says whether that is possible, and who
// would hold it.
func (r *Rotator) Begin(ctx context.Context, kind string, dry bool) (Record, Progress, error) {
	if r.cfg.Issuer != "" {
		return Record{}, Progress{}, fmt.Errorf("%w: the CA is %s's, and is replaced as soon as that has another; remedy: rotate there", ErrRefused, r.cfg.Issuer)
	}
	k := r.cfg.Live.Keyring()
	if dry {
		texts, err := k.Begin(kind, time.Now())
		if err != nil {
			return Record{}, Progress{}, err
		}
		would, err := Parse(texts, k.cfg)
		if err != nil {
			return Record{}, Progress{}, err
		}
		return would.Record, k.would(r.cfg.Fleet(ctx)), nil
	}
	return r.do(ctx, "rotation begins", func(k *Keyring) (Texts, error) { return k.Begin(kind, time.Now()) })
}

// would is who is ready for a rotation, and who would hold it.
func (k *Keyring) would(f Fleet) Progress {
	now := *k
	now.Record = Record{Kind: KindRoot, Stage: StageDistribute}
	return now.Progress(f)
}

// Abort goes back.
func (r *Rotator) Abort(ctx context.Context, dry bool) (Record, Progress, error) {
	if dry {
		k := r.cfg.Live.Keyring()
		_, err := k.Abort(time.Now())
		return k.Record, r.Progress(k, r.cfg.Fleet(ctx)), err
	}
	return r.do(ctx, "rotation is aborted", func(k *Keyring) (Texts, error) { return k.Abort(time.Now()) })
}

// Force goes on without the nodes that hold the rotation and are not connected.
func (r *Rotator) Force(ctx context.Context, dry bool) (Record, Progress, error) {
	var gone []string
	force := func(k *Keyring) (Texts, error) {
		gone = nil
		for _, w := range k.Progress(r.cfg.Fleet(ctx)).Waiting {
			if w.Forcible {
				gone = append(gone, w.Name)
			}
		}
		if len(gone) == 0 {
			return nil, fmt.Errorf("%w: no rotation is held by a node that is not connected; what else holds one cannot be gone on without: `heddle certs` says what", ErrRefused)
		}
		return k.goOnWithout(gone)
	}
	if dry {
		k := r.cfg.Live.Keyring()
		_, err := force(k)
		return k.Record, r.Progress(k, r.cfg.Fleet(ctx)), err
	}
	record, progress, err := r.do(ctx, "rotation is forced", force)
	if err == nil {
		r.cfg.Logger.Warn("rotation goes on without nodes", "nodes", gone)
	}
	return record, progress, err
}

// Now is how far a rotation is.
func (r *Rotator) Now(ctx context.Context) (Record, Progress) {
	k := r.cfg.Live.Keyring()
	if !k.Active() {
		return k.Record, Progress{}
	}
	return k.Record, r.Progress(k, r.cfg.Fleet(ctx))
}

func (r *Rotator) do(ctx context.Context, what string, make func(*Keyring) (Texts, error)) (Record, Progress, error) {
	if err := r.cfg.Live.Change(ctx, make); err != nil {
		return Record{}, Progress{}, err
	}
	record, progress := r.Now(ctx)
	r.cfg.Logger.Info(what, "kind", record.Kind, "stage", record.Stage, "nodes", progress.Nodes, "waiting", len(progress.Waiting))
	return record, progress, nil
}
