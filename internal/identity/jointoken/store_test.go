package jointoken

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a clock that tests set.
type clock struct{ at atomic.Int64 }

func newClock() *clock                   { c := &clock{}; c.at.Store(2e9); return c }
func (c *clock) now() time.Time          { return time.Unix(c.at.Load(), 0) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d / time.Second)) }

func openStore(t testing.TB, dir string, c *clock) *Store {
	t.Helper()
	s, err := OpenStore(dir, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func add(t testing.TB, s *Store, tok Token) {
	t.Helper()
	if err := s.Add(tok); err != nil {
		t.Fatal(err)
	}
}

func TestTokenWorksOnce(t *testing.T) {
	c := newClock()
	s := openStore(t, t.TempDir(), c)
	tok := newToken(t, "n1", c.now().Add(time.Hour))
	add(t, s, tok)
	r, err := s.Consume(tok.Secret[:], "n1", []byte("key 1"))
	if err != nil || r.ID != tok.ID() || r.Node != "n1" {
		t.Fatalf("first use: %+v, %v", r, err)
	}
	if _, err := s.Consume(tok.Secret[:], "n1", []byte("key 2")); !errors.Is(err, ErrUsed) || !strings.Contains(err.Error(), "used already") {
		t.Errorf("second use: %v", err)
	}
	if _, err := s.Consume(tok.Secret[:], "n1", []byte("key 1")); err != nil {
		t.Errorf("the same key again, as after a lost answer: %v", err)
	}
	c.advance(2 * time.Hour)
	if _, err := s.Consume(tok.Secret[:], "n1", []byte("key 1")); !errors.Is(err, ErrUsed) {
		t.Errorf("the same key after expiry: %v", err)
	}
}

func TestRefusalsConsumeNothing(t *testing.T) {
	c := newClock()
	s := openStore(t, t.TempDir(), c)
	tok := newToken(t, "n1", c.now().Add(time.Hour))
	add(t, s, tok)
	if _, err := s.Consume(tok.Secret[:], "n2", []byte("k")); !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), "n2") {
		t.Errorf("wrong node: %v", err)
	}
	unknown := newToken(t, "n1", c.now().Add(time.Hour))
	if _, err := s.Consume(unknown.Secret[:], "n1", []byte("k")); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
	for _, short := range [][]byte{nil, tok.Secret[:31], append(tok.Secret[:], 0)} {
		if _, err := s.Consume(short, "n1", []byte("k")); !errors.Is(err, ErrUnknown) {
			t.Errorf("secret of %d bytes: %v", len(short), err)
		}
	}
	if _, err := s.Consume(tok.Secret[:], "n1", []byte("k")); err != nil {
		t.Errorf("the token is spent: %v", err)
	}
	late := newToken(t, "n1", c.now().Add(time.Minute))
	add(t, s, late)
	c.advance(time.Minute)
	if _, err := s.Consume(late.Secret[:], "n1", []byte("k")); !errors.Is(err, ErrExpired) {
		t.Errorf("expired: %v", err)
	}
}

// TestOneWinner has 100 joiners on 4 operators that share a directory.
func TestOneWinner(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	tok := newToken(t, "n1", c.now().Add(time.Hour))
	operators := make([]*Store, 4)
	for i := range operators {
		operators[i] = openStore(t, dir, c)
	}
	add(t, operators[0], tok)
	var won, used atomic.Int32
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range 100 {
		wg.Go(func() {
			<-begin
			_, err := operators[i%len(operators)].Consume(tok.Secret[:], "n1", fmt.Appendf(nil, "key %d", i))
			switch {
			case err == nil:
				won.Add(1)
			case errors.Is(err, ErrUsed):
				used.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	close(begin)
	wg.Wait()
	if won.Load() != 1 || used.Load() != 99 {
		t.Errorf("%d won, %d were told that it is used", won.Load(), used.Load())
	}
}

func TestRevokeAndList(t *testing.T) {
	c := newClock()
	s := openStore(t, t.TempDir(), c)
	var toks []Token
	for i := range 4 {
		tok := newToken(t, fmt.Sprintf("n%d", i), c.now().Add(time.Duration(i+1)*time.Hour))
		add(t, s, tok)
		toks = append(toks, tok)
		c.advance(time.Second)
	}
	if _, err := s.Consume(toks[1].Secret[:], "n1", []byte("k")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is no error
		if err := s.Revoke(toks[2].ID()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Revoke(toks[1].ID()); !errors.Is(err, ErrUsed) {
		t.Errorf("revoke a used one: %v", err)
	}
	for _, id := range []string{"", "0123456789ab", "../../../../x", strings.Repeat("*", 12)} {
		if err := s.Revoke(id); !errors.Is(err, ErrUnknown) {
			t.Errorf("revoke %q: %v", id, err)
		}
	}
	if _, err := s.Consume(toks[2].Secret[:], "n2", []byte("k")); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	c.advance(time.Hour)
	list, err := s.List()
	if err != nil || len(list) != 4 {
		t.Fatal(list, err)
	}
	for i, want := range []string{"expired", "used", "revoked", "pending"} {
		if got := list[i].State(c.now()); got != want || list[i].ID != toks[i].ID() {
			t.Errorf("token %d is %s, want %s", i, got, want)
		}
	}
	c.advance(30 * 24 * time.Hour)
	add(t, s, newToken(t, "n9", c.now().Add(time.Hour)))
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("old records are kept: %v, %v", list, err)
	}
}

func TestSecretsAreNotStored(t *testing.T) {
	c, dir := newClock(), filepath.Join(t.TempDir(), "tokens")
	s := openStore(t, dir, c)
	tok := newToken(t, "n1", c.now().Add(time.Hour))
	add(t, s, tok)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{string(tok.Secret[:]), fmt.Sprintf("%x", tok.Secret), text(t, tok)[20:80]} {
		if strings.Contains(string(data)+files[0].Name(), form) {
			t.Errorf("the record has the secret: %s %s", files[0].Name(), data)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir, nil); err == nil {
		t.Error("took a directory that others write to")
	}
}

// TestDamagedRecordsFailClosed: an end that cannot be read is still an end.
func TestDamagedRecordsFailClosed(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	s := openStore(t, dir, c)
	tok := newToken(t, "n1", c.now().Add(time.Hour))
	add(t, s, tok)
	name := recordName(tok.Secret[:])
	if err := os.WriteFile(filepath.Join(dir, name+endSuffix), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Consume(tok.Secret[:], "n1", []byte("k")); err == nil {
		t.Error("consumed a token whose end is damaged")
	}
	if err := os.WriteFile(filepath.Join(dir, "short"+grantSuffix), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := newToken(t, "n2", c.now().Add(time.Hour))
	add(t, s, other)
	if _, err := s.Consume(other.Secret[:], "n2", []byte("k")); err != nil {
		t.Errorf("another token suffers: %v", err)
	}
	if list, err := s.List(); err == nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

// TestWaypointsToken is used up by one session, which has it until it is revoked.
func TestWaypointsToken(t *testing.T) {
	c := newClock()
	s := openStore(t, t.TempDir(), c)
	tok := newToken(t, "waypoint/shop/gate", c.now().Add(time.Hour))
	add(t, s, tok)
	for _, other := range []string{"waypoint/shop/other", "waypoint/shop", "gate", "waypoint/shop/gate/x"} {
		if _, err := s.Admit(tok.Secret[:], other, []byte("mine")); !errors.Is(err, ErrWrongNode) {
			t.Errorf("as %s: %v", other, err)
		}
	}
	if r, err := s.Admit(tok.Secret[:], "waypoint/shop/gate", []byte("mine")); err != nil || r.ID != tok.ID() {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := s.Admit(tok.Secret[:], "waypoint/shop/gate", []byte("another's")); !errors.Is(err, ErrUsed) {
		t.Errorf("another session: %v", err)
	}
	// Long after it expired, and others were made, it is still its waypoint's.
	c.advance(30 * 24 * time.Hour)
	add(t, s, newToken(t, "n1", c.now().Add(time.Hour)))
	if _, err := s.Admit(tok.Secret[:], "waypoint/shop/gate", []byte("mine")); err != nil {
		t.Errorf("after a month: %v", err)
	}
	late := newToken(t, "waypoint/shop/late", c.now().Add(time.Minute))
	add(t, s, late)
	c.advance(time.Hour)
	if _, err := s.Admit(late.Secret[:], "waypoint/shop/late", []byte("mine")); !errors.Is(err, ErrExpired) {
		t.Errorf("a token that nobody used in time: %v", err)
	}
	if err := s.Revoke(tok.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(tok.Secret[:], "waypoint/shop/gate", []byte("mine")); !errors.Is(err, ErrUnknown) {
		t.Errorf("after it was revoked: %v", err)
	}
}
