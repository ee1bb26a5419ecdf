package scenario

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// dialPatience is what a connection has for its start, and again for its answer.
const dialPatience = 3 * time.Second

// noAnswer finds what the workload program says of a connection that came to
// nothing. Anything else that it, or what runs it in the pod, says is no refusal.
var noAnswer = regexp.MustCompile(`(?m)^(?:broken after \d+: )?((?:dial|read|write) tcp .*|EOF)$`)

// errRefused is that a connection came to nothing.
type errRefused struct{ how string }

func (e *errRefused) Error() string { return e.how }

// once has a client send the marker and waits for it to come back. Its error is an
// *errRefused when the network, or the mesh, said no.
func (r *run) once(ctx context.Context, client, address string) error {
	ctx, cancel := context.WithTimeout(ctx, programPatience+2*dialPatience)
	defer cancel()
	cmd, err := r.world.Command(ctx, r.Name, client, "once", address, marker, dialPatience.String())
	if err != nil {
		return err
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &said, time.Second
	err = cmd.Run()
	if err == nil {
		if got := strings.TrimSpace(out.String()); got != marker {
			return fmt.Errorf("%s got %q back", client, got)
		}
		return nil
	}
	if m := noAnswer.FindStringSubmatch(said.String()); m != nil {
		return &errRefused{howText(m[1])}
	}
	return fmt.Errorf("run the program in %s: %w: %s", client, err, oneLine(said.String()))
}

// howText is how a connection failed, in short.
func howText(message string) string {
	for _, known := range [][2]string{
		{"connection refused", "connection refused"}, {"connection reset", "connection reset"}, {"timeout", "no answer in " + dialPatience.String()},
		{"EOF", "connection closed"}, {"broken pipe", "connection closed"}, {"no route", "no route"},
	} {
		if strings.Contains(message, known[0]) {
			return known[1]
		}
	}
	return message
}

// listens asks a workload's own server, inside of its pod.
func (r *run) listens(ctx context.Context, name string) error {
	return r.once(ctx, name, "127.0.0.1:7000")
}

func (r *run) address(ctx context.Context, who script.Pair) (string, error) {
	addr, err := r.world.Address(ctx, r.Name, who.Target)
	if err != nil {
		return "", err
	}
	return netip.AddrPortFrom(addr, who.Port).String(), nil
}

func (r *run) connect(ctx context.Context, c *script.Connect) error {
	address, err := r.address(ctx, c.Pair)
	if err != nil {
		return err
	}
	return meet(ctx, c.Span, 0, func(ctx context.Context) error { return r.try(ctx, c, address) })
}

func (r *run) try(ctx context.Context, c *script.Connect, address string) error {
	began := time.Now()
	r.tried[c.Pair] = began
	r.trace.arrow(c.Client, c.Target, "connect to "+address)
	err := r.once(ctx, c.Client, address)
	took := brief(time.Since(began))
	var refused *errRefused
	switch {
	case errors.As(err, &refused):
		r.trace.cut(c.Client, c.Target, refused.how+" after "+took)
	case err != nil:
		return err
	default:
		r.trace.arrow(c.Target, c.Client, "echo after "+took)
	}
	switch {
	case c.Echo && refused != nil:
		return fmt.Errorf("want an echo: %w", refused)
	case c.Echo:
		return nil
	case refused == nil:
		return errors.New("want a refusal: the server answered")
	case c.Reason == "":
		return nil
	}
	return poll(ctx, flowPatience, func(ctx context.Context) error {
		return r.findFlow(ctx, c.Pair, began, map[string]string{"verdict": "deny", "reason": c.Reason})
	})
}

// holding is a connection that is held by a program in its client's pod.
type holding struct {
	script.Pair
	cancel context.CancelFunc
	done   chan struct{} // closed when the program has ended

	mu    sync.Mutex
	count int   // exchanges so far
	err   error // why it ended
}

func (h *holding) close() {
	h.cancel()
	<-h.done
}

func (h *holding) state() (count int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count, h.err
}

func (r *run) hold(ctx context.Context, h *script.Hold) error {
	address, err := r.address(ctx, h.Pair)
	if err != nil {
		return err
	}
	r.tried[h.Pair] = time.Now()
	r.trace.arrow(h.Client, h.Target, "connect to "+address+", and stay: "+h.ID)
	held, err := r.startHolding(ctx, h.Pair, address)
	if err != nil {
		return err
	}
	r.held[h.ID] = held
	if err := held.reaches(ctx, 1, programPatience); err != nil {
		r.trace.cut(h.Client, h.Target, oneLine(err.Error()))
		return err
	}
	r.trace.arrow(h.Target, h.Client, h.ID+" is open")
	return nil
}

func (r *run) startHolding(ctx context.Context, who script.Pair, address string) (*holding, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, err := r.world.Command(ctx, r.Name, who.Client, "hold", address, "held")
	if err != nil {
		cancel()
		return nil, err
	}
	var said bytes.Buffer
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = write, &said, time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("run the program in %s: %w", who.Client, err)
	}
	held := &holding{Pair: who, cancel: cancel, done: make(chan struct{})}
	var counting sync.WaitGroup
	counting.Go(func() { held.counts(read) })
	go func() {
		defer close(held.done)
		err := cmd.Wait()
		_ = write.Close() // ends counts
		counting.Wait()
		held.end(err, said.String())
	}()
	return held, nil
}

// counts reads a line for each exchange.
func (h *holding) counts(from io.Reader) {
	for lines := bufio.NewScanner(from); lines.Scan(); {
		h.mu.Lock()
		h.count++
		h.mu.Unlock()
	}
}

func (h *holding) end(err error, said string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := noAnswer.FindStringSubmatch(said); m != nil {
		h.err = &errRefused{howText(m[1])}
		return
	}
	h.err = fmt.Errorf("the program ended: %w: %s", err, oneLine(said))
}

// moves waits for n more exchanges.
func (h *holding) moves(ctx context.Context, n int, limit time.Duration) error {
	from, _ := h.state()
	return h.reaches(ctx, from+n, limit)
}

// reaches waits until there were n exchanges since it began.
func (h *holding) reaches(ctx context.Context, n int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		count, err := h.state()
		switch {
		case count >= n:
			return nil
		case err != nil:
			return fmt.Errorf("ended after %d exchanges: %w", count, err)
		case time.Now().After(deadline):
			return fmt.Errorf("no exchange in %v after %d", limit, count)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause / 10):
		}
	}
}

func (r *run) alive(ctx context.Context, a *script.Alive) error {
	h := r.held[a.ID]
	before, _ := h.state()
	err := meet(ctx, a.Span, 0, func(ctx context.Context) error { return h.moves(ctx, 2, heldPatience) })
	after, _ := h.state()
	if err != nil {
		r.trace.cut(h.Client, h.Target, a.ID+": "+oneLine(err.Error()))
		return err
	}
	r.trace.arrow(h.Client, h.Target, fmt.Sprintf("%s lives: %d more exchanges", a.ID, after-before))
	return nil
}

func (r *run) ended(ctx context.Context, e *script.Ended) error {
	h := r.held[e.ID]
	err := meet(ctx, e.Span, 0, func(context.Context) error {
		count, err := h.state()
		var refused *errRefused
		switch {
		case err == nil:
			return fmt.Errorf("it goes on: %d exchanges", count)
		case !errors.As(err, &refused):
			return err
		}
		r.trace.cut(h.Client, h.Target, fmt.Sprintf("%s ended after %d exchanges: %s", e.ID, count, refused.how))
		return nil
	})
	if err != nil {
		r.trace.arrow(h.Client, h.Target, e.ID+": "+oneLine(err.Error()))
	}
	return err
}

// oneLine is the first line of a message, no longer than a drawing can show.
func oneLine(text string) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if runes := []rune(text); len(runes) > 160 {
		return string(runes[:157]) + "..."
	}
	return text
}

// brief is a duration with as much precision as a reader can use.
func brief(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
