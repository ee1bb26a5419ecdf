package tokencache

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const life = 5 * time.Minute

var (
	web   = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")
	db    = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/db")
	errNo = errors.New("nobody signs")
)

func yes() error { return nil }

// world counts what is signed.
type world struct {
	*Cache
	t      *testing.T
	signed atomic.Int64
	broken atomic.Bool
}

func newWorld(t *testing.T) *world {
	w := &world{t: t}
	w.Cache = New(func(_ context.Context, id spiffeid.ID, audience []string) (string, time.Duration, error) {
		time.Sleep(time.Millisecond)
		if w.broken.Load() {
			return "", 0, errNo
		}
		return fmt.Sprint(id, audience, w.signed.Add(1)), life, nil
	})
	return w
}

func (w *world) token(id spiffeid.ID, audience ...string) string {
	w.t.Helper()
	token, _, err := w.Token(w.t.Context(), id, audience, yes)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// TestHalfLife: a token is given until half of its life, and when no other can be had until
// shortly before its end.
func TestHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.token(web, "a")
		time.Sleep(life/2 - time.Second)
		if w.token(web, "a") != first || w.signed.Load() != 1 {
			t.Error("signed anew before half of its life")
		}
		time.Sleep(2 * time.Second)
		second := w.token(web, "a")
		if second == first {
			t.Error("given on after half of its life")
		}
		w.broken.Store(true)
		time.Sleep(life - leftAtLeast - 2*retryAfter)
		if w.token(web, "a") != second {
			t.Error("what is valid is not given on while nobody signs")
		}
		if token, _, err := w.Token(t.Context(), web, []string{"a"}, func() error { return errors.New("too many") }); err != nil || token != second {
			t.Errorf("nor while there were too many: %v", err)
		}
		time.Sleep(2*retryAfter + time.Second)
		if token, _, err := w.Token(t.Context(), web, []string{"a"}, yes); !errors.Is(err, errNo) {
			t.Errorf("what is about to end is given: %q, %v", token, err)
		}
	})
}

// TestRenewedForClocksAhead: what is given has more left than clocks may differ, where its life allows it.
func TestRenewedForClocksAhead(t *testing.T) {
	for life, want := range map[time.Duration]time.Duration{
		time.Minute: 30 * time.Second, 5 * time.Minute: 150 * time.Second, 25 * time.Minute: 12*time.Minute + 30*time.Second,
		30 * time.Minute: 9 * time.Minute, 40 * time.Minute: 19 * time.Minute, time.Hour: 30 * time.Minute,
	} {
		if got := renewAfter(life); got != want {
			t.Errorf("of a life of %v another is asked for after %v, not %v", life, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.Cache = New(func(context.Context, spiffeid.ID, []string) (string, time.Duration, error) {
			return strconv.FormatInt(time.Now().Add(30*time.Minute).UnixNano(), 10), 30 * time.Minute, nil
		})
		for range 120 { // an hour
			expires, err := strconv.ParseInt(w.token(web, "a"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(time.Unix(0, expires)); left < 20*time.Minute {
				t.Fatalf("given with %v left", left)
			}
			time.Sleep(30 * time.Second)
		}
	})
}

// TestOneIsSigned: of many that ask at once for the same one is signed; others wait for nobody.
func TestOneIsSigned(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() { w.token(web, "a") })
	}
	all.Wait()
	if n := w.signed.Load(); n != 1 {
		t.Errorf("%d were signed", n)
	}
	if w.token(web, "a", "b") == w.token(web, "ab") || w.token(db, "a") == w.token(web, "a") {
		t.Error("one token for others than it was asked for")
	}
	w.Keep(func(id spiffeid.ID) bool { return id == db })
	before := w.signed.Load()
	w.token(db, "a")
	w.token(web, "a")
	if n := w.signed.Load(); n != before+1 {
		t.Errorf("%d were signed after one identity was forgotten", n-before)
	}
}

// TestWaitEnds: who waits for another's token waits no longer than they want.
func TestWaitEnds(t *testing.T) {
	held := make(chan struct{})
	begun := make(chan struct{})
	c := New(func(context.Context, spiffeid.ID, []string) (string, time.Duration, error) {
		close(begun)
		<-held
		return "x", life, nil
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := c.Token(context.Background(), web, []string{"a"}, yes)
		done <- err
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := c.Token(ctx, web, []string{"a"}, yes); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited: %v", err)
	}
	close(held)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNobodyAnswers: while there is a valid token, one who asks waits for a second at most, the
// others for nobody, and a new one is not asked for each time; when none is left they wait, and
// get one as soon as it is signed.
func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away, asked := false, 0
		back := make(chan struct{})
		c := New(func(ctx context.Context, _ spiffeid.ID, _ []string) (string, time.Duration, error) {
			if asked++; !away {
				return fmt.Sprint(asked), life, nil
			}
			select { // as a gRPC client that waits until it is ready
			case <-ctx.Done():
				return "", 0, ctx.Err()
			case <-back:
				return fmt.Sprint(asked), life, nil
			}
		})
		ask := func(patience time.Duration) (string, time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			token, _, err := c.Token(ctx, web, []string{"a"}, yes)
			return token, time.Since(began), err
		}
		first, _, err := ask(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		away = true
		time.Sleep(life/2 + time.Second)
		waited := make(chan time.Duration, 32)
		for range cap(waited) {
			go func() {
				token, took, err := ask(10 * time.Second)
				if err != nil || token != first {
					t.Errorf("%q, %v", token, err)
				}
				waited <- took
			}()
		}
		for n := range cap(waited) {
			if took := <-waited; took > renewWithin || took > 0 && n < cap(waited)-1 {
				t.Errorf("number %d waited for %v", n, took)
			}
		}
		if token, took, err := ask(10 * time.Second); err != nil || token != first || took > 0 || asked != 2 {
			t.Errorf("shortly afterwards: %q, %v after %v; %d were asked for", token, err, took, asked)
		}
		time.Sleep(retryAfter)
		if token, took, err := ask(10 * time.Second); err != nil || token != first || took != renewWithin || asked != 3 {
			t.Errorf("later: %q, %v after %v; %d were asked for", token, err, took, asked)
		}
		time.Sleep(life / 2)
		if token, took, err := ask(10 * time.Second); !errors.Is(err, context.DeadlineExceeded) || took != 10*time.Second {
			t.Errorf("when it has ended: %q, %v after %v", token, err, took)
		}
		go func() { time.Sleep(3 * time.Second); close(back) }()
		if token, took, err := ask(10 * time.Second); err != nil || token == first || took != 3*time.Second {
			t.Errorf("when the operator is back: %q, %v after %v", token, err, took)
		}
	})
}

// TestRefusedTakesNoRoom: whoever may have none signed makes no other token give way.
func TestRefusedTakesNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		kept := w.token(web, "kept")
		errMany := errors.New("too many")
		for i := range 2 * PerIdentity {
			if _, _, err := w.Token(t.Context(), web, []string{fmt.Sprint(i)}, func() error { return errMany }); !errors.Is(err, errMany) {
				t.Fatal(err)
			}
		}
		if n := len(w.state.byKey); n != 1 || w.token(web, "kept") != kept || w.signed.Load() != 1 {
			t.Errorf("%d are kept, %d were signed", n, w.signed.Load())
		}
	})
}

// TestMayIsAskedOnce for each that is signed.
func TestMayIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		asked := 0
		for range 3 {
			for range 2 {
				if _, _, err := w.Token(t.Context(), web, []string{"a"}, func() error { asked++; return nil }); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(life/2 + time.Second)
		}
		if n := w.signed.Load(); n != 3 || asked != 3 {
			t.Errorf("asked %d times for %d", asked, n)
		}
	})
}

// TestBounds: what was asked for longest ago gives way, and of one identity no other's.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		kept := w.token(db, "a")
		for i := range 2 * PerIdentity {
			w.token(web, fmt.Sprint(i))
		}
		if n := len(w.state.byKey); n != PerIdentity+1 {
			t.Errorf("%d are kept", n)
		}
		if w.token(db, "a") != kept {
			t.Error("another identity's token has given way")
		}
		for i := range MaxTokens + 10 {
			w.token(spiffeid.RequireFromString(fmt.Sprintf("spiffe://mesh.test/ns/shop/sa/s%d", i)), "a")
		}
		if n := len(w.state.byKey); n > MaxTokens {
			t.Errorf("%d are kept", n)
		}
	})
}
