package wire_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// oneFamily is a pod of whose addresses some are listened at.
type oneFamily struct {
	listening []netip.Addr
	// later has it answer when it is waited for.
	later bool
	dials []string
}

var errRefused = fmt.Errorf("connect: %w", unix.ECONNREFUSED)

func (o *oneFamily) answer(client, app netip.AddrPort) error {
	o.dials = append(o.dials, fmt.Sprintf("%s>%s", client, app))
	for _, addr := range o.listening {
		if addr == app.Addr() {
			return nil
		}
	}
	return errRefused
}

func (o *oneFamily) StartApp(client, app netip.AddrPort) (int, func(context.Context) error, error) {
	if o.later {
		return 7, func(context.Context) error { return o.answer(client, app) }, nil
	}
	return 7, nil, o.answer(client, app)
}

func (o *oneFamily) DialApp(_ context.Context, client, app netip.AddrPort) (*net.TCPConn, error) {
	return nil, o.answer(client, app)
}

func (*oneFamily) DialTunnel(context.Context, netip.AddrPort) (*net.TCPConn, error) { return nil, nil }
func (*oneFamily) DialEgress(context.Context, netip.AddrPort) (*net.TCPConn, error) { return nil, nil }

// TestOneFamily: an application that refuses at the address of one family is looked for at that of the other, as
// whom the client is there; and not where policies refuse that, or nobody knows who the client is.
func TestOneFamily(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	at := func(name string, addrs ...netip.Addr) mesh.Workload {
		return mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: name}, ServiceAccount: name, Node: "n", Identity: spiffeid.RequireFromPath(td, "/ns/shop/sa/"+name), Addresses: addrs, Enrolled: true, Ready: true}
	}
	web4, web6, db4, db6 := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")
	six := netip.MustParseAddr("fd01::6")
	never := mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "never"}, Action: mesh.ActionDeny, Rules: []mesh.Rule{{From: []mesh.Source{{IPBlocks: []netip.Prefix{netip.PrefixFrom(web4, 32)}}}}}}
	const both = "[fd01::1]:4000>[fd01::2]:80 10.1.0.1:4000>10.1.0.2:80"
	for _, c := range []struct {
		name      string
		peer      string
		remote    netip.Addr
		to        netip.Addr
		listening []netip.Addr
		policies  []mesh.Policy
		dials     string
		ok        bool
	}{
		{"at both", "web", web6, db6, []netip.Addr{db4, db6}, nil, "[fd01::1]:4000>[fd01::2]:80", true},
		{"IPv4 only", "web", web6, db6, []netip.Addr{db4}, nil, both, true},
		{"IPv6 only", "web", web4, db4, []netip.Addr{db6}, nil, "10.1.0.1:4000>10.1.0.2:80 [fd01::1]:4000>[fd01::2]:80", true},
		{"nowhere", "web", web6, db6, nil, nil, both, false},
		{"refused by a policy there", "web", web6, db6, []netip.Addr{db4}, []mesh.Policy{never}, "[fd01::1]:4000>[fd01::2]:80", false},
		{"a client of one family", "six", six, db6, []netip.Addr{db4}, nil, "[fd01::6]:4000>[fd01::2]:80", false},
	} {
		view, err := mesh.NewView("r", mesh.Settings{TrustDomain: td}, []mesh.Workload{at("web", web4, web6), at("db", db4, db6), at("six", six)}, nil, c.policies)
		if err != nil {
			t.Fatal(err)
		}
		store := mesh.NewStore()
		store.Replace(view)
		judge := wire.NewJudge(store, "n", nil, time.Second)
		req := &hbone.StreamRequest{Peer: at(c.peer).Identity, Remote: netip.AddrPortFrom(c.remote, 9), Forwarded: netip.AddrPortFrom(c.remote, 4000)}
		client, err := judge.TrustedClient(view, req, c.to)
		if err != nil {
			t.Fatal(err)
		}
		// The view has the workload; by what it is allowed is not asked here.
		db, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "db"})
		permit, no, _ := judge.Authorize(view, mesh.Connection{Peer: req.Peer, Source: c.remote, Destination: db, Port: 80})
		if !permit.Valid() {
			t.Fatalf("%s: %v", c.name, no)
		}
		app := netip.AddrPortFrom(c.to, 80)
		check := func(how string, by *oneFamily, err error) {
			t.Helper()
			dials := strings.Join(by.dials, " ")
			if dials != c.dials || (err == nil) != c.ok || err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s, %s: dialled %s, %v; want %s, %v", c.name, how, dials, err, c.dials, c.ok)
			}
		}
		by := &oneFamily{listening: c.listening}
		_, err = wire.DialApp(t.Context(), by, permit, client, app)
		check("waiting", by, err)
		by = &oneFamily{listening: c.listening}
		_, wait, err := wire.StartApp(by, permit, client, app)
		if check("on the spot", by, err); wait != nil {
			t.Errorf("%s: it waits", c.name)
		}
		by = &oneFamily{listening: c.listening, later: true}
		if _, wait, err = wire.StartApp(by, permit, client, app); err != nil || wait == nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		_, err = wait(t.Context())
		check("later", by, err)
		by = &oneFamily{listening: c.listening} // of nobody it is known where else it is
		if _, err := wire.DialApp(t.Context(), by, permit, wire.Client{AddrPort: client.AddrPort}, app); len(by.dials) != 1 || (err == nil) != (by.listening != nil && len(c.listening) == 2) {
			t.Errorf("%s, in plaintext: dialled %q, %v", c.name, by.dials, err)
		}
	}
}
