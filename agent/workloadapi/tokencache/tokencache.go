// Package tokencache keeps the JWT-SVIDs that pods of a node were given, so that one is signed
// once for all who ask for the same: by identity and set of audiences, until half of its life or
// sooner, so that whoever verifies it finds it valid by a clock that is ahead (see renewAfter).
// When no other can be had then, it is given on for as long as it is surely valid.
//
// It asks whom it is told to, and knows nothing of who may have a token. A Cache is safe for
// concurrent use, and starts nothing. It goes by the process's own monotonic clock: a node's
// clock may be wrong.
package tokencache

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a Cache.
const (
	// MaxTokens are kept at most, PerIdentity of one identity: what was asked for longest
	// ago gives way.
	MaxTokens   = 2048
	PerIdentity = 64
	// leftAtLeast is what a token must have left of its life to be given on when no other
	// can be had.
	leftAtLeast = 20 * time.Second
	// clocksApart is by how much the clock of a verifier may be ahead of the operator's, with a
	// minute for the token to get there: each may be ten minutes off the true time.
	clocksApart = 21 * time.Minute
	// renewWithin is how long one is waited for while there is another, retryAfter when it is
	// asked for again after that failed.
	renewWithin = time.Second
	retryAfter  = 5 * time.Second
)

// Sign returns a token, and how long it is valid from now on.
type Sign func(ctx context.Context, id spiffeid.ID, audience []string) (token string, life time.Duration, err error)

// Cache is told by the package.
type Cache struct {
	sign Sign

	state struct {
		sync.Mutex
		byKey map[key]*entry
	}
}

type key struct {
	id       spiffeid.ID
	audience string
}

// entry is one token, or the place of one that is being signed.
type entry struct {
	signing chan struct{} // capacity 1: held by whoever has it signed
	// The rest is the Cache's lock's.
	token                string
	renew, retry, expire time.Time // with their monotonic readings
	asked                time.Time
}

// New returns an empty Cache.
func New(sign Sign) *Cache {
	c := &Cache{sign: sign}
	c.state.byKey = map[key]*entry{}
	return c
}

// Token returns a token of an identity for a set of audiences, which is jwtkeys.Audience's. Before one is signed, may is
// asked, whose error is returned; it must return at once, and not use the Cache. Signed reports whether one was signed.
// While there is a valid token, nobody waits for another's request, nor for longer than a second for their own.
func (c *Cache) Token(ctx context.Context, id spiffeid.ID, audience []string, may func() error) (token string, signed bool, err error) {
	// No audience has a NUL; see jwtkeys.Audience.
	e, made, err := c.entry(key{id, strings.Join(audience, "\x00")}, may)
	if err != nil {
		return "", false, err
	}
	if made {
		may = func() error { return nil } // it was asked
	} else {
		token, fresh := c.look(e)
		if fresh {
			return token, false, nil
		}
		if held, err := c.hold(ctx, e, token != ""); !held {
			if token == "" {
				token, _ = c.look(e)
			}
			return token, false, unless(token, err)
		}
	}
	defer func() { <-e.signing }()
	return c.renew(ctx, e, id, audience, may)
}

// renew has a token signed for a place that the caller holds, unless somebody else had just now.
func (c *Cache) renew(ctx context.Context, e *entry, id spiffeid.ID, audience []string, may func() error) (token string, signed bool, err error) {
	token, fresh := c.look(e)
	if fresh {
		return token, false, nil
	}
	if err := may(); err != nil {
		return token, false, unless(token, err)
	}
	if token != "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, renewWithin)
		defer cancel()
	}
	asked := time.Now() // its life began later
	next, life, err := c.sign(ctx, id, audience)
	c.state.Lock()
	defer c.state.Unlock()
	if err != nil {
		e.retry = time.Now().Add(retryAfter)
		return token, false, unless(token, err)
	}
	e.token, e.renew, e.retry, e.expire = next, asked.Add(renewAfter(life)), time.Time{}, asked.Add(life)
	return next, true, nil
}

// renewAfter is how much of its life a token is given without another being asked for: half of it, or so much less that
// what is left is longer than clocks may differ, if that leaves a quarter.
func renewAfter(life time.Duration) time.Duration {
	if early := life - clocksApart; early > life/4 {
		return min(early, life/2)
	}
	return life / 2
}

// hold takes a place for signing. Whoever has a token to give on does not wait for it.
func (c *Cache) hold(ctx context.Context, e *entry, has bool) (held bool, err error) {
	if has {
		select {
		case e.signing <- struct{}{}:
			return true, nil
		default:
			return false, nil
		}
	}
	select {
	case e.signing <- struct{}{}:
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// unless is an error, unless there is a token all the same.
func unless(token string, err error) error {
	if token != "" {
		return nil
	}
	return err
}

// look returns an entry's token if it can be given, and whether it need not be replaced now.
func (c *Cache) look(e *entry) (token string, fresh bool) {
	c.state.Lock()
	defer c.state.Unlock()
	now := time.Now()
	if e.token == "" || now.Add(leftAtLeast).After(e.expire) && !now.Before(e.renew) {
		return "", false
	}
	return e.token, now.Before(e.renew) || now.Before(e.retry)
}

// entry finds or makes the place of a token, and makes room for it if it may be signed: the place is the caller's for
// signing then.
func (c *Cache) entry(k key, may func() error) (e *entry, made bool, err error) {
	c.state.Lock()
	defer c.state.Unlock()
	e = c.state.byKey[k]
	if made = e == nil; made {
		if err := may(); err != nil {
			return nil, false, err
		}
		c.makeRoom(k.id)
		e = &entry{signing: make(chan struct{}, 1)}
		e.signing <- struct{}{}
		c.state.byKey[k] = e
	}
	e.asked = time.Now()
	return e, made, nil
}

// makeRoom needs the lock.
func (c *Cache) makeRoom(id spiffeid.ID) {
	n, own, now := 0, key{}, time.Now()
	var oldest key
	older := func(a, than key) bool {
		return than == key{} || c.state.byKey[a].asked.Before(c.state.byKey[than].asked)
	}
	for k, e := range c.state.byKey {
		if e.token != "" && now.After(e.expire) {
			delete(c.state.byKey, k)
			continue
		}
		if older(k, oldest) {
			oldest = k
		}
		if k.id == id {
			n++
			if older(k, own) {
				own = k
			}
		}
	}
	if n >= PerIdentity {
		delete(c.state.byKey, own)
	} else if len(c.state.byKey) >= MaxTokens {
		delete(c.state.byKey, oldest)
	}
}

// Keep forgets the tokens of identities of which keep is false.
func (c *Cache) Keep(keep func(spiffeid.ID) bool) {
	c.state.Lock()
	defer c.state.Unlock()
	for k := range c.state.byKey {
		if !keep(k.id) {
			delete(c.state.byKey, k)
		}
	}
}
