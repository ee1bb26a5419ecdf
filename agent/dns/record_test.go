package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

var _ Journal = (*flow.Drops)(nil)

// journal keeps what it is told, as text.
type journal struct {
	sync.Mutex
	records []string
}

func (j *journal) AddQuery(pod mesh.Key, r flow.Record) {
	j.Lock()
	defer j.Unlock()
	j.records = append(j.records, fmt.Sprintf("%s %s %s %s > %s %d: %s", pod, r.Verdict, r.Reason, r.Source.Addr.Addr(), r.Destination.Addr, r.Protocol, r.Detail))
}

func (j *journal) took() string {
	j.Lock()
	defer j.Unlock()
	all := strings.Join(j.records, "\n")
	j.records = nil
	return all
}

// TestRecords: what is refused, fails, or is answered with something old is told,
// with the name and why; what goes well is not.
func TestRecords(t *testing.T) {
	j := &journal{}
	up := newServer(t, answers(1, 1))
	s := New(Config{Store: store(t, mesh.Settings{}), Flows: j})
	c := pod(t, s, up)
	c.ask("db.shop.svc.cluster.local.", 0, dnsmessage.TypeA, time.Second)
	c.ask("a.example.", 0, dnsmessage.TypeA, time.Second)
	c.ask("a.example.", 0, dnsmessage.TypeA, time.Second)
	want(t, "what goes well", j.took(), "")
	fails := func(h dnsmessage.Header, q dnsmessage.Question, _ bool) []byte {
		h.RCode = dnsmessage.RCodeServerFailure
		return says(h, q, nil)
	}
	up.script.Store(&fails)
	c.ask("b.example.", 0, dnsmessage.TypeSRV, time.Second)
	want(t, "a failure of the server", j.took(), "shop/web deny DNSFailed 10.1.0.2 > 10.96.0.10:53 17: b.example SRV: the server answered SERVFAIL")
	if states := s.Servers(); len(states) != 1 || states[0].Fails() || states[0].Server != asServer.Addr() {
		t.Errorf("a server that answers is said to fail: %+v", states)
	}
	time.Sleep(1100 * time.Millisecond)
	none := script(silent)
	up.script.Store(&none)
	time.Sleep(askAgain - time.Second)
	c.ask("a.example.", 0, dnsmessage.TypeA, 3*time.Second)
	want(t, "an old answer", j.took(), "shop/web allow DNSStale 10.1.0.2 > 10.96.0.10:53 17: a.example A: no answer yet")
	c.ask("c.example.", 0, dnsmessage.TypeAAAA, 6*time.Second)
	want(t, "none", j.took(), "shop/web deny DNSFailed 10.1.0.2 > 10.96.0.10:53 17: c.example AAAA: no answer")
	if states := s.Servers(); len(states) != 1 || !states[0].Fails() || states[0].Cause != causeTimeout || !strings.Contains(states[0].String(), "asked in vain 0s ago (timeout)") {
		t.Errorf("a server that is silent: %+v", states)
	}
	if checks := s.Checks(); len(checks) != 1 || checks[0].GetOk() || checks[0].GetName() != "DNS server 10.96.0.10" || checks[0].GetRemedy() == "" {
		t.Errorf("checks: %v", checks)
	}
	denied := pod(t, New(Config{Store: store(t, mesh.Settings{Egress: mesh.EgressDeny}), Flows: j}), up)
	want(t, "a server outside", denied.ask("d.example.", 0, dnsmessage.TypeA, time.Second), "Refused 0")
	want(t, "refused", j.took(), "shop/web deny EgressDenied 10.1.0.2 > 10.96.0.10:53 17: d.example A: the server is outside the mesh")
}

// TestServers: one name that takes too long is no failure of a server that answers
// others meanwhile, and what is known of servers is bounded.
func TestServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Store: mesh.NewStore()})
		at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
		fails := func(i int) bool {
			for _, state := range s.Servers() {
				if state.Server == at(i) {
					return state.Fails()
				}
			}
			t.Fatalf("server %d is not known", i)
			return false
		}
		begun := time.Now()
		time.Sleep(time.Second)
		s.servers.heard(at(1), begun, nil)
		time.Sleep(time.Second)
		s.servers.heard(at(1), begun, os.ErrDeadlineExceeded)
		if fails(1) {
			t.Error("a server that answers others is said to fail")
		}
		begun = time.Now()
		time.Sleep(time.Second)
		s.servers.heard(at(1), begun, fmt.Errorf("ask: %w", syscall.ECONNREFUSED))
		if !fails(1) || s.Servers()[0].Cause != causeRefused {
			t.Errorf("a server that is gone: %+v", s.Servers())
		}
		time.Sleep(time.Second)
		s.servers.heard(at(1), time.Now(), nil)
		if fails(1) {
			t.Error("a server that is back is said to fail")
		}
		for i := range 2 * maxServers {
			time.Sleep(time.Second)
			s.servers.heard(at(2+i), time.Now(), errors.New("odd"))
		}
		if n := len(s.Servers()); n != maxServers {
			t.Errorf("%d servers are known, want %d", n, maxServers)
		}
		fails(1 + 2*maxServers) // the last is
	})
}
