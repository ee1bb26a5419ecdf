package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestTraffic runs what real connections do through one mesh, one after the
// other, under one capture: at the end nothing of it was plaintext.
func TestTraffic(t *testing.T) {
	b := up(t, "e2e")
	capture := b.Capture(t)
	t.Run("ClientAddress", func(t *testing.T) { clientAddress(t, b) })
	t.Run("ServerFirst", func(t *testing.T) { serverFirst(t, b) })
	t.Run("HalfClose", func(t *testing.T) { halfClose(t, b) })
	t.Run("Reset", func(t *testing.T) { reset(t, b) })
	t.Run("Refused", func(t *testing.T) { refused(t, b) })
	t.Run("IPv6Only", func(t *testing.T) { ipv6Only(t, b) })
	t.Run("NginxAndCurl", func(t *testing.T) { nginx(t, b) })
	t.Run("Redis", func(t *testing.T) { redis(t, b) })
	t.Run("Policy", func(t *testing.T) { policy(t, b) })
	t.Run("PlaintextFromOutside", func(t *testing.T) { plaintextFromOutside(t, b) })

	// The capture must be shown to see plaintext when it is there.
	exchange(t, b, "plain/talker", "plain/listener", "10.244.2.90:7000")
	shop := func(a netip.Addr) bool {
		return (netip.MustParsePrefix("10.244.0.0/16").Contains(a) || netip.MustParsePrefix("fd00:244::/32").Contains(a)) &&
			!strings.HasSuffix(a.String(), ".90") && !strings.HasSuffix(a.String(), ":90")
	}
	found := capture.Stop(t, secret, shop)
	if err := found.Sealed(); err != nil || found.UDPPayloads > 0 {
		testenv.ForGood(t, "of the shop, and %d datagrams: %v", found.UDPPayloads, err)
	}
	if found.TLSBytes < 10_000 {
		t.Errorf("the capture saw too little: %s", found)
	}
}

// TestCaptureSeesPlaintext shows that the judge of the other tests is not blind.
func TestCaptureSeesPlaintext(t *testing.T) {
	b := up(t, "e2e-judge")
	capture := b.Capture(t)
	exchange(t, b, "plain/talker", "plain/listener", "10.244.2.90:7000")
	if found := capture.Stop(t, secret, nil); found.Markers == 0 || found.PlaintextBytes == 0 {
		t.Errorf("plaintext was on the wire and not seen: %s", found)
	}
}

const secret = "nobody-else-must-read-this"

// exchange sends the secret from one pod to another and back.
func exchange(t *testing.T, b *testbed.Bed, from, to, address string) *net.TCPConn {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	l := b.Listen(t, to, ":"+port)
	go echo(t, l)
	c := b.MustDial(t, from, address)
	roundTrip(t, c, []byte(secret))
	return c
}

func roundTrip(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("got %q back", got)
	}
}

// clientAddress: the app sees the client's own address, across nodes and on one.
func clientAddress(t *testing.T, b *testbed.Bed) {
	for _, test := range []struct{ from, to, address, want string }{
		{"shop/client", "shop/server", "10.244.2.10:7001", "10.244.1.10"},
		{"shop/client", "shop/server", "[fd00:244:2::10]:7002", "fd00:244:1::10"},
		{"shop/client", "shop/near", "10.244.1.11:7003", "10.244.1.10"},
		{"shop/server", "shop/client", "10.244.1.10:7004", "10.244.2.10"},
		{"shop/client", "shop/server", "10.96.0.10:80", "10.244.1.10"},
	} {
		t.Run(test.address, func(t *testing.T) {
			_, port, err := net.SplitHostPort(test.address)
			if err != nil {
				t.Fatal(err)
			}
			l := b.Listen(t, test.to, ":"+port)
			seen := make(chan [2]string, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				seen <- [2]string{c.RemoteAddr().String(), c.LocalAddr().String()}
				_, _ = io.Copy(c, c) // ends with the connection
			}()
			c := b.MustDial(t, test.from, test.address)
			roundTrip(t, c, []byte(secret))
			got := <-seen
			host, clientPort, err := net.SplitHostPort(got[0])
			if err != nil || host != test.want {
				t.Errorf("the app saw the client %s, want %s", got[0], test.want)
			}
			if _, own, _ := net.SplitHostPort(c.LocalAddr().String()); own != clientPort {
				t.Errorf("the app saw the client's port %s, it is %s", clientPort, own)
			}
			if c.RemoteAddr().String() != test.address {
				t.Errorf("the client sees its peer as %s, it dialled %s", c.RemoteAddr(), test.address)
			}
		})
	}
}

// serverFirst: a protocol in which the client waits for the server's greeting.
func serverFirst(t *testing.T, b *testbed.Bed) {
	l := b.Listen(t, "shop/server", ":7010")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "220 %s\r\n", secret)
			go func() { defer c.Close(); _, _ = io.Copy(io.Discard, c) }() // ends with the connection
		}
	}()
	c := b.MustDial(t, "shop/client", "10.244.2.10:7010")
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("220 "+secret))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "220 "+secret {
		t.Errorf("got %q, %v", got, err)
	}
}

// halfClose: one direction ends, the other goes on.
func halfClose(t *testing.T, b *testbed.Bed) {
	for _, server := range []struct{ pod, address string }{{"shop/server", "10.244.2.10:7020"}, {"shop/near", "10.244.1.11:7020"}} {
		l := b.Listen(t, server.pod, ":7020")
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			data, err := io.ReadAll(c) // until the client's FIN
			if err == nil {
				time.Sleep(200 * time.Millisecond)
				_, _ = fmt.Fprintf(c, "%d bytes", len(data)) // the client judges
			}
		}()
		c := b.MustDial(t, "shop/client", server.address)
		if _, err := c.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if err != nil || string(answer) != "100000 bytes" {
			t.Errorf("%s: after a half-close the client read %q, %v", server.pod, answer, err)
		}
	}
}

// reset: what one end resets, the other sees reset.
func reset(t *testing.T, b *testbed.Bed) {
	for _, server := range []struct{ pod, address string }{{"shop/server", "10.244.2.10:7030"}, {"shop/near", "10.244.1.11:7030"}} {
		for _, who := range []string{"client", "server"} {
			t.Run(server.pod+"/"+who, func(t *testing.T) {
				l := b.Listen(t, server.pod, ":7030")
				accepted := make(chan *net.TCPConn, 1)
				go func() {
					if c, err := l.AcceptTCP(); err == nil {
						accepted <- c
					}
				}()
				client := b.MustDial(t, "shop/client", server.address)
				if _, err := client.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				app := <-accepted
				defer app.Close()
				if _, err := io.ReadFull(app, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				breaks, sees := client, app
				if who == "server" {
					breaks, sees = app, client
				}
				if err := breaks.SetLinger(0); err != nil {
					t.Fatal(err)
				}
				breaks.Close()
				if err := sees.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
					t.Fatal(err)
				}
				_, err := sees.Read(make([]byte, 1))
				if err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
					t.Errorf("the other end saw %v, want a reset", err)
				}
			})
		}
	}
}

// refused: a port that nobody listens on ends as a reset soon, not as a hang.
func refused(t *testing.T, b *testbed.Bed) {
	c, err := b.Dial("shop/client", "10.244.2.10:7999", 5*time.Second)
	if err == nil {
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err = c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("nobody listens, and the client read %v", err)
		}
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("nobody listens, and the client waited in vain: %v", err)
	}
	waitFlow(t, b, "a flow that says AppUnreachable", func(f testbed.Flow) bool { return f.Reason == "AppUnreachable" })
}

// waitFlow waits until a flow matches.
func waitFlow(t *testing.T, b *testbed.Bed, what string, match func(testbed.Flow) bool) testbed.Flow {
	t.Helper()
	var found testbed.Flow
	testenv.Eventually(t, 5*time.Second, what, func() bool {
		for _, f := range b.Flows(t) {
			if match(f) {
				found = f
				return true
			}
		}
		return false
	})
	return found
}

func ipv6Only(t *testing.T, b *testbed.Bed) {
	exchange(t, b, "shop/client", "shop/six", "[fd00:244:2::66]:7040")
	exchange(t, b, "shop/six", "shop/client", "[fd00:244:1::10]:7041")
}

// plaintextFromOutside: an unenrolled pod cannot reach a STRICT one.
func plaintextFromOutside(t *testing.T, b *testbed.Bed) {
	l := b.Listen(t, "shop/server", ":7050")
	go echo(t, l)
	for _, address := range []string{"10.244.2.10:7050", "[fd00:244:2::10]:7050"} {
		if c, err := b.Dial("plain/talker", address, 2*time.Second); err == nil {
			c.Close()
			t.Errorf("an unenrolled pod connected to %s of a STRICT workload", address)
		}
	}
	waitFlow(t, b, "a drop of plaintext from the wire", func(f testbed.Flow) bool {
		return f.Verdict == "deny" && f.Reason == "KernelPlaintextInbound"
	})
}

// policy: a policy refuses, says so, and its removal allows again.
func policy(t *testing.T, b *testbed.Bed) {
	c := exchange(t, b, "shop/client", "shop/server", "10.244.2.10:7060")
	b.Write(t, "policy.yaml", `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: not-the-client}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - from: [{identities: ["spiffe://e2e.heddle.dev/ns/shop/sa/client"]}]
      to: [{ports: [7060]}]
`)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the live connection that policy no longer allows did not end: %v", err)
	}
	waitFlow(t, b, "a flow that says PolicyChanged", func(f testbed.Flow) bool { return f.Reason == "PolicyChanged" })
	if c, err := b.Dial("shop/client", "10.244.2.10:7060", 5*time.Second); err == nil {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("x")) // the read judges
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("a denied connection carried %d bytes", n)
		}
		c.Close()
	}
	denied := waitFlow(t, b, "a flow that says PolicyDeny", func(f testbed.Flow) bool { return f.Reason == "PolicyDeny" })
	if denied.Policy != "shop/not-the-client" || denied.Source.Identity != "spiffe://e2e.heddle.dev/ns/shop/sa/client" {
		t.Errorf("the flow names policy %q and source %q", denied.Policy, denied.Source.Identity)
	}
	b.Remove(t, "policy.yaml")
	testenv.Eventually(t, 5*time.Second, "the connection is allowed again", func() bool {
		c, err := b.Dial("shop/client", "10.244.2.10:7060", time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return false
		}
		_, _ = c.Write([]byte("x")) // the read judges
		_, err = c.Read(make([]byte, 1))
		return err == nil
	})
}

// TestBigTransfer sends 2 GB each way at once and compares checksums; over IPv6
// an eighth of that.
func TestBigTransfer(t *testing.T) {
	b := up(t, "e2e-big")
	for _, test := range []struct {
		address string
		size    int64
	}{{"10.244.2.10:7100", 2 << 30}, {"[fd00:244:2::10]:7101", 256 << 20}} {
		_, port, err := net.SplitHostPort(test.address)
		if err != nil {
			t.Fatal(err)
		}
		l := b.Listen(t, "shop/server", ":"+port)
		sums := make(chan [2][]byte, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			sums <- transfer(c, test.size, 7)
		}()
		client := transfer(b.MustDial(t, "shop/client", test.address), test.size, 8)
		server := <-sums
		if !bytes.Equal(client[0], server[1]) || !bytes.Equal(server[0], client[1]) {
			t.Errorf("%s: the checksums differ", test.address)
		}
		if client[1] == nil || server[1] == nil {
			t.Errorf("%s: a direction was cut short", test.address)
		}
	}
}

// transfer writes size pseudo-random bytes to c while reading as many, and
// returns the checksums of what was sent and received, nil if cut short.
func transfer(c net.Conn, size int64, seed byte) (sums [2][]byte) {
	var wg sync.WaitGroup
	wg.Go(func() {
		block := make([]byte, 1<<20)
		if _, err := rand.Read(block); err != nil {
			return
		}
		block[0] = seed
		h := sha256.New()
		for sent := int64(0); sent < size; sent += int64(len(block)) {
			block[1]++ // blocks differ, so that a swap would show
			h.Write(block)
			if _, err := c.Write(block); err != nil {
				return
			}
		}
		sums[0] = h.Sum(nil)
		_ = c.(*net.TCPConn).CloseWrite() // the other end counts
	})
	h := sha256.New()
	if n, err := io.Copy(h, c); err == nil && n == size {
		sums[1] = h.Sum(nil)
	}
	wg.Wait()
	return sums
}

// TestLossIsShown: what the kernel had to send again on the wire is in the flow of the
// connection that it was sent for.
func TestLossIsShown(t *testing.T) {
	b := up(t, "e2e-loss")
	retransmits := func(port string) uint32 {
		l := b.Listen(t, "shop/server", ":"+port)
		go echo(t, l)
		c := b.MustDial(t, "shop/client", "10.244.2.10:"+port)
		for range 100 {
			roundTrip(t, c, newSecret(64<<10))
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		f := waitFlow(t, b, "the flow's end", func(f testbed.Flow) bool {
			return f.Direction == "outbound" && f.Sent == 100*64<<10 && strings.HasSuffix(f.Destination.Address, ":"+port)
		})
		return f.Retransmits
	}
	clean := retransmits("7040") // a busy machine may answer a tail loss probe late (RFC 8985 section 7)
	const rule = "table inet loss { chain c { type filter hook forward priority 0; tcp dport 15008 meta length > 500 numgen inc mod 20 == 0 drop; }; }"
	if out, err := exec.Command("ip", "netns", "exec", b.Mesh.Plan.Nodes[0].NetNS, "nft", rule).CombinedOutput(); err != nil {
		t.Fatalf("lose packets: %v: %s", err, out)
	}
	if lossy := retransmits("7041"); lossy < clean+10 {
		t.Errorf("the flow shows %d segments sent again with loss, %d without", lossy, clean)
	}
}

// newSecret is n bytes that begin with the secret.
func newSecret(n int) []byte { return append([]byte(secret), make([]byte, n-len(secret))...) }

// TestManyConnections holds 5,000 connections at once, each of which works, and costs little memory.
func TestManyConnections(t *testing.T) {
	b := up(t, "e2e-many")
	const count = 5000
	idle := map[string]int64{}
	for _, node := range []string{"n1", "n2"} {
		atRest(t, b, node, mostIdle*2/3) // what is at rest has given its garbage back
		idle[node] = resident(t, b, node)
	}
	l := b.Listen(t, "shop/server", ":7200")
	go echo(t, l)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conns := make([]*net.TCPConn, count)
	var failed sync.Map
	began := time.Now()
	each(ctx, count, 64, func(i int) {
		c, err := b.Dial("shop/client", "10.244.2.10:7200", 20*time.Second)
		if err != nil {
			failed.Store(i, err)
			return
		}
		conns[i] = c
	})
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	t.Logf("opened after %v", time.Since(began))
	for round := range 2 {
		each(ctx, count, 64, func(i int) {
			if _, over := failed.Load(i); over || conns[i] == nil {
				return // the first failure tells most
			}
			message := fmt.Appendf(nil, "round %d of connection %d", round, i)
			got := make([]byte, len(message))
			err := errors.Join(conns[i].SetDeadline(time.Now().Add(30*time.Second)), func() error { _, err := conns[i].Write(message); return err }(),
				func() error { _, err := io.ReadFull(conns[i], got); return err }())
			if err != nil || !bytes.Equal(got, message) {
				failed.Store(i, fmt.Errorf("round %d: %q, %w", round, got, err))
			}
		})
		t.Logf("round %d ended after %v", round, time.Since(began))
	}
	if ctx.Err() != nil {
		t.Errorf("not every connection was tried in time: %v", ctx.Err())
	}
	n := 0
	failed.Range(func(i, err any) bool {
		if n++; n <= 5 {
			t.Errorf("connection %d: %v", i, err)
		}
		return true
	})
	if n > 0 {
		t.Fatalf("%d of %d connections failed", n, count)
	}
	for node, before := range idle {
		atRest(t, b, node, before+count*mostEach)
	}
}

// each calls fn for 0..count-1, at most width at a time.
func each(ctx context.Context, count, width int, fn func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range next {
				fn(i)
			}
		})
	}
	for i := range count {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
}
