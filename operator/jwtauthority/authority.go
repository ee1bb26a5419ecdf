package jwtauthority

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/operator/issuing"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

// Bounds of how long a token is valid.
const (
	// DefaultTTL is longer than clocks may differ (20 minutes) and agents keep a token.
	DefaultTTL = 30 * time.Minute
	MinTTL     = time.Minute
	MaxTTL     = time.Hour
)

// future is by how much clocks of replicas may differ, with room.
const future = time.Hour

// Times say how long what lasts. Zero ones take the defaults.
type Times struct {
	// TTL is how long a token is valid: 30 minutes, if not said otherwise; a minute at least
	// and an hour at most.
	TTL time.Duration
	// Period is how long a key signs (30 days), Distribute how long the next one is in the
	// bundle before it does (30 minutes), Keep how long one stays there that does no more (2
	// hours). The last two are more than the 20 minutes by which clocks of replicas may
	// differ, the last one more than MaxTTL besides.
	Period, Distribute, Keep time.Duration
	// Interval is how often it is looked whether something is due; 1 s.
	Interval time.Duration
}

// Check says what is wrong with them.
func (t Times) Check() error {
	if t.TTL != 0 && (t.TTL < MinTTL || t.TTL > MaxTTL) {
		return fmt.Errorf("validity of JWT-SVIDs: %v, %v to %v are possible", t.TTL, MinTTL, MaxTTL)
	}
	if min(t.Period, t.Distribute, t.Keep, t.Interval) < 0 {
		return errors.New("keys of JWT-SVIDs: a duration is negative")
	}
	return nil
}

func (t Times) withDefaults() Times {
	return Times{TTL: cmp.Or(t.TTL, DefaultTTL), Period: cmp.Or(t.Period, 30*24*time.Hour), Distribute: cmp.Or(t.Distribute, 30*time.Minute),
		Keep: cmp.Or(t.Keep, 2*time.Hour), Interval: cmp.Or(t.Interval, time.Second)}
}

// Config says what an Authority works with. Live and Logger are needed.
type Config struct {
	// Live keeps the keys, beside those of certificates.
	Live *rotation.Live
	// Withheld is why no JWT-SVIDs are signed; "" signs them.
	Withheld string
	Times    Times
	Logger   *slog.Logger
}

// Authority signs JWT-SVIDs.
type Authority struct {
	cfg Config

	state struct {
		sync.Mutex
		text []byte // that keys were read from, or could not be
		keys *keySet
		err  error
	}
}

// New checks the configuration.
func New(cfg Config) (*Authority, error) {
	if cfg.Live == nil || cfg.Logger == nil {
		return nil, errors.New("new authority of JWT-SVIDs: Live and Logger are needed")
	}
	if err := cfg.Times.Check(); err != nil {
		return nil, err
	}
	cfg.Times = cfg.Times.withDefaults()
	a := &Authority{cfg: cfg}
	a.state.keys = &keySet{}
	return a, nil
}

// now returns the keys of the moment, and why the newest are not in use.
func (a *Authority) now() (*keySet, error) {
	text := a.cfg.Live.Keyring().JWT()
	a.state.Lock()
	defer a.state.Unlock()
	if !bytes.Equal(text, a.state.text) {
		a.state.text = text
		keys, err := parse(text)
		if a.state.err = err; err == nil {
			a.state.keys = keys
		} else {
			goes := "going on with those before"
			if len(a.state.keys.Keys) == 0 { // since the start
				goes = "none are signed, and agents go on with what they were told before"
			}
			a.cfg.Logger.Error("keys of JWT-SVIDs are not read: "+goes, "entry", rotation.JWTFile, "error", err,
				"remedy", "restore the entry from a backup, or take it out: then another key is made, and tokens of the one before are no longer valid")
		}
	}
	return a.state.keys, a.state.err
}

// Sign returns a JWT-SVID (SPIFFE JWT-SVID, section 3) and how long it is valid from now on.
// Its iat is in the past by as much as certificates begin before they are signed, so that a
// verifier whose clock is behind takes it; it has no nbf. Errors match issuing.ErrJWTsWithheld or issuing.ErrNoJWTKey.
func (a *Authority) Sign(id spiffeid.ID, audience []string) (token string, life time.Duration, err error) {
	if a.cfg.Withheld != "" {
		return "", 0, fmt.Errorf("%w: %s", issuing.ErrJWTsWithheld, a.cfg.Withheld)
	}
	keys, _ := a.now() // those that were read last sign on
	i := keys.signing()
	if i < 0 {
		return "", 0, issuing.ErrNoJWTKey
	}
	now := time.Now()
	token, err = jwt.Signed(keys.Keys[i].signer).Claims(jwt.Claims{
		Subject: id.String(), Audience: audience,
		IssuedAt: jwt.NewNumericDate(now.Add(-identity.DefaultBackdate)), Expiry: jwt.NewNumericDate(now.Add(a.cfg.Times.TTL)),
	}).Serialize()
	if err != nil {
		return "", 0, fmt.Errorf("sign a JWT-SVID of %s: %w", id, err)
	}
	return token, a.cfg.Times.TTL, nil
}

// Said is what agents are told; nil, which leaves them what they have, where there are keys and none was read yet. It
// changes only when Live does.
func (a *Authority) Said() *meshpb.JWTKeys {
	if a.cfg.Withheld != "" {
		return &meshpb.JWTKeys{Withheld: a.cfg.Withheld}
	}
	keys, err := a.now()
	if err != nil && len(keys.Keys) == 0 {
		return nil
	}
	return &meshpb.JWTKeys{Jwks: keys.document}
}

// Bundle is what verifies tokens, for other trust domains: that of the keys that were read last, and empty after a start
// that could not read any, so that they follow the roots all the same.
func (a *Authority) Bundle() *jwtbundle.Bundle {
	td := a.cfg.Live.TrustDomain()
	if a.cfg.Withheld != "" {
		return jwtbundle.New(td)
	}
	keys, _ := a.now()
	return jwtbundle.FromJWTAuthorities(td, keys.public())
}

// Describe adds what there is to an answer.
func (a *Authority) Describe(out *meshpb.CertificatesResponse) {
	if out.JwtWithheld = a.cfg.Withheld; a.cfg.Withheld != "" {
		return
	}
	keys, err := a.now()
	if err != nil {
		out.JwtProblem = fmt.Sprintf("%s: %v", rotation.JWTFile, err)
	}
	signing := keys.signing()
	for i, k := range keys.Keys {
		one := &meshpb.JWTKey{Id: k.ID, Key: "ECDSA P-256", MadeNs: k.Made.UnixNano()}
		switch {
		case i == signing:
			one.State, one.UntilNs = "signs", a.due(&k).UnixNano()
			out.JwtKeys = append([]*meshpb.JWTKey{one}, out.JwtKeys...)
			continue
		case k.Signs.IsZero():
			one.State, one.UntilNs = "next", k.Made.Add(a.cfg.Times.Distribute).UnixNano()
		default:
			one.State, one.UntilNs = "retired", k.Retired.Add(a.cfg.Times.Keep).UnixNano()
		}
		out.JwtKeys = append(out.JwtKeys, one)
	}
}

// due is when a key that signs is to be replaced: when the next one is made, and has been handed out.
func (a *Authority) due(k *key) time.Time {
	return k.Signs.Add(a.cfg.Times.Period + a.cfg.Times.Distribute)
}

// Run makes the first key, and replaces the one that signs when it is time, until ctx is done;
// it returns nil. One replica runs it.
func (a *Authority) Run(ctx context.Context) error {
	if a.cfg.Withheld != "" {
		return nil
	}
	told := ""
	tick := time.NewTicker(a.cfg.Times.Interval)
	defer tick.Stop()
	for {
		what, err := a.look(ctx)
		switch {
		case err == nil && what != "":
			a.cfg.Logger.Info("keys of JWT-SVIDs change", "now", what)
			told = ""
		case err != nil && ctx.Err() == nil && !errors.Is(err, rotation.ErrConflict) && err.Error() != told: // said once
			told = err.Error()
			a.cfg.Logger.Error("keys of JWT-SVIDs do not change though it is time: trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look does what is due, and says what that was.
func (a *Authority) look(ctx context.Context) (what string, err error) {
	keys, err := a.now()
	if err != nil {
		return "", err
	}
	if _, what, err = keys.advance(time.Now(), a.cfg.Times); err != nil || what == "" {
		return "", err
	}
	err = a.cfg.Live.Change(ctx, func(k *rotation.Keyring) (rotation.Texts, error) {
		newest, err := parse(k.JWT())
		if err != nil {
			return nil, err
		}
		var next *keySet
		if next, what, err = newest.advance(time.Now(), a.cfg.Times); err != nil {
			return nil, err
		}
		if what == "" {
			return nil, rotation.ErrConflict // somebody was first
		}
		text, err := next.text()
		if err != nil {
			return nil, err
		}
		return k.WithJWT(text), nil
	})
	return what, err
}

// Collector returns the metric:
//
//	heddle_authority_jwt_key_due_seconds   Unix time at which the key that signs JWT-SVIDs is to be replaced; none where there is no key
func (a *Authority) Collector() prometheus.Collector {
	return collector{a, prometheus.NewDesc("heddle_authority_jwt_key_due_seconds", "Unix time at which the key that signs JWT-SVIDs is to be replaced.", nil, nil)}
}

type collector struct {
	*Authority
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	keys, _ := c.now() // as Sign has them
	if i := keys.signing(); i >= 0 && c.cfg.Withheld == "" {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(c.due(&keys.Keys[i]).Unix()))
	}
}
