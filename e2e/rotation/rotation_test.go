// Package rotation_test rotates a mesh's root and intermediate while connections
// between its nodes are made, with a real operator and the parts of real agents.
package rotation_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/agent/uplink"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	patience = 60 * time.Second
	workers  = 4
)

// connections is how many are made at least: 100,000 by `make rotation`.
func connections(t *testing.T) int64 {
	text := os.Getenv("ROTATION_CONNECTIONS")
	if text == "" {
		return 3000
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// world is an operator of a folder, and the nodes n1 to n3.
type world struct {
	t             *testing.T
	folder, state string
	spire         *operator.SPIRE // nil of a CA of its own
	address       string
	admin         meshpb.OperatorAdminClient
	stop          func()
}

func newWorld(t *testing.T) *world { return newWorldBelow(t, nil) }

// newWorldBelow is newWorld with SPIRE as the issuer.
func newWorldBelow(t *testing.T, spire *operator.SPIRE) *world {
	t.Helper()
	w := &world{t: t, spire: spire, folder: filepath.Join(t.TempDir(), "mesh"), state: filepath.Join(t.TempDir(), "state"), address: "127.0.0.1:0"}
	if err := os.Mkdir(w.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	text := `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: test.example, clusterRanges: ["10.0.0.0/8"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
`
	for i := range 3 {
		text += fmt.Sprintf(`---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: w%[1]d}
spec: {node: n%[1]d, serviceAccount: w%[1]d, addresses: ["10.0.0.%[1]d"], networkNamespace: /run/netns/w%[1]d}
`, i+1)
	}
	if err := os.WriteFile(filepath.Join(w.folder, "mesh.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start starts the operator, at the address where it was before.
func (w *world) start() {
	w.t.Helper()
	listener, err := net.Listen("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.address = listener.Addr().String()
	socket := filepath.Join(w.t.TempDir(), "admin.sock")
	op, err := operator.New(operator.Config{Folder: w.folder, StateDir: w.state, Listener: listener, Advertise: w.address, AdminSocket: socket,
		SPIRE: w.spire, Settle: 200 * time.Millisecond, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- op.Run(ctx) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.admin = meshpb.NewOperatorAdminClient(conn)
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, conn.Close()); err != nil {
			w.t.Errorf("operator: %v", err)
		}
	})
	testenv.Eventually(w.t, patience, "the operator answers", func() bool {
		_, err := w.admin.Status(w.t.Context(), &meshpb.OperatorStateRequest{})
		return err == nil
	})
}

// node joins a node and runs its uplink, until the test or stop ends it.
func (w *world) node(i int, dir string) (u *uplink.Uplink, stop func()) {
	w.t.Helper()
	name := fmt.Sprintf("n%d", i)
	token, err := w.admin.CreateJoinToken(w.t.Context(), &meshpb.CreateJoinTokenRequest{Node: name})
	if err != nil {
		w.t.Fatal(err)
	}
	keys, err := os.MkdirTemp("/dev/shm", "heddle-rotation-")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = os.RemoveAll(keys) }) // on a tmpfs of this machine
	u, err = uplink.Join(w.t.Context(), uplink.Config{Node: name, Token: token.GetToken(), StateDir: dir, KeyDir: filepath.Join(keys, "keys"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := u.Source().Want([]spiffeid.ID{workload(i)}); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, u.Close()); err != nil {
			w.t.Errorf("agent %s: %v", name, err)
		}
	})
	w.t.Cleanup(stop)
	testenv.Eventually(w.t, patience, name+" has a certificate", func() bool {
		_, err := u.Source().Certificate(workload(i))
		return err == nil
	})
	return u, stop
}

func workload(i int) spiffeid.ID {
	return spiffeid.RequireFromString(fmt.Sprintf("spiffe://test.example/ns/shop/sa/w%d", i))
}

func (w *world) certificates() *meshpb.CertificatesResponse {
	w.t.Helper()
	c, err := w.admin.Certificates(w.t.Context(), &meshpb.CertificatesRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) rotate(action meshpb.RotateCertificatesRequest_Action, kind string) {
	w.t.Helper()
	if _, err := w.admin.RotateCertificates(w.t.Context(), &meshpb.RotateCertificatesRequest{Action: action, Kind: kind}); err != nil {
		w.t.Fatalf("%v: %v", action, err)
	}
}

// signer is the serial of what signs, and how many roots are trusted.
func (w *world) signer() (serial string, roots int) {
	for _, c := range w.certificates().GetAuthority() {
		if c.GetSigns() {
			serial = c.GetSerial()
		}
		if c.GetKind() == "root" {
			roots++
		}
	}
	return serial, roots
}

func (w *world) complete(how string) {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "the rotation is "+how, func() bool {
		r := w.certificates().GetRotation()
		return r.GetKind() == "" && r.GetEnded() == how
	})
	if _, roots := w.signer(); roots != 1 {
		w.t.Errorf("%d roots are left", roots)
	}
}

const (
	begin = meshpb.RotateCertificatesRequest_ACTION_BEGIN
	abort = meshpb.RotateCertificatesRequest_ACTION_ABORT
	force = meshpb.RotateCertificatesRequest_ACTION_FORCE
)

// TestNoHandshakeFails rotates everything, with an operator that is restarted, and
// back again, while the workloads of two nodes connect to each other.
func TestNoHandshakeFails(t *testing.T) {
	w := newWorld(t)
	one, _ := w.node(1, filepath.Join(t.TempDir(), "n1"))
	two, _ := w.node(2, filepath.Join(t.TempDir(), "n2"))
	load := newLoad(t, one, two)
	pace := connections(t) / 5
	for i, step := range []struct {
		kind, how string
		during    func()
	}{
		{"root", "completed", func() {}},
		{"intermediate", "completed", func() {}},
		{"root", "completed", func() { w.stop(); w.start() }},
		{"root", "aborted", func() { w.rotate(abort, "") }},
		{"intermediate", "completed", func() {}},
	} {
		before, _ := w.signer()
		w.rotate(begin, step.kind)
		step.during()
		w.complete(step.how)
		if after, _ := w.signer(); (after == before) != (step.how == "aborted") {
			t.Errorf("step %d: %s signed before, and %s now", i, before, after)
		}
		for load.made.Load() < pace*int64(i+1) && load.failed.Load() == 0 {
			time.Sleep(time.Millisecond) // the load's own pace
		}
	}
	load.stop()
	t.Logf("%d connections, %d failed; %d pairs of leaves", load.made.Load(), load.failed.Load(), load.leaves())
	if load.failed.Load() > 0 {
		testenv.ForGood(t, "%d of %d connections failed, such as: %v", load.failed.Load(), load.made.Load(), *load.example.Load())
	}
	if load.leaves() < 5 {
		t.Errorf("the connections saw %d pairs of leaves only", load.leaves())
	}
}

// TestANodeThatIsAwayHoldsARotation stops one, forces the rotation, and has it
// catch up before the old root goes.
func TestANodeThatIsAwayHoldsARotation(t *testing.T) {
	w := newWorld(t)
	w.node(1, filepath.Join(t.TempDir(), "n1"))
	dir := filepath.Join(t.TempDir(), "n3")
	_, stop := w.node(3, dir)
	stop()
	held := func() *meshpb.RotationState {
		r := w.certificates().GetRotation()
		if len(r.GetWaiting()) == 1 && r.GetWaiting()[0].GetName() == "n3" && r.GetWaiting()[0].GetForcible() {
			return r
		}
		return nil
	}
	w.rotate(begin, "root")
	testenv.Eventually(t, patience, "n3 holds the rotation", func() bool { return held().GetDone() == 1 })
	if _, err := w.admin.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: begin, Kind: "root"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second rotation: %v", err)
	}
	w.stop()
	w.start() // which has not heard of n3
	testenv.Eventually(t, patience, "n3 holds it still", func() bool { return held().GetStage() == "distribute" })
	_, back := w.node(3, dir) // by its own credential
	testenv.Eventually(t, patience, "it goes on by itself", func() bool { return w.certificates().GetRotation().GetStage() != "distribute" })
	w.complete("completed")
	back()
	w.rotate(begin, "root")
	testenv.Eventually(t, patience, "n3 holds the next", func() bool { return held() != nil })
	w.rotate(force, "")
	w.complete("completed")
}

// load is connections between two nodes' workloads, each with the certificates
// and roots that the nodes have at that moment.
type load struct {
	made, failed atomic.Int64
	example      atomic.Pointer[error]
	seen         sync.Map
	stop         func()
}

func newLoad(t *testing.T, one, two *uplink.Uplink) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	server := newServer(t, two)
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := l.connect(server.addr, one); err != nil {
					err = errors.Join(err, server.last())
					l.example.Store(&err)
					l.failed.Add(1)
				}
				l.made.Add(1)
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); all.Wait(); server.stop() })
	t.Cleanup(l.stop)
	return l
}

func (l *load) leaves() int {
	n := 0
	l.seen.Range(func(any, any) bool { n++; return true })
	return n
}

// connect is a connection of w1 to w2: handshake, and an octet, by which the
// server says that it trusts the client.
func (l *load) connect(addr string, one *uplink.Uplink) error {
	cert, err := one.Source().Certificate(workload(1))
	if err != nil {
		return err
	}
	raw, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	conn := tls.Client(raw, hbone.ClientTLS(cert, one.Source(), workload(2)))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	state := conn.ConnectionState()
	if state.CurveID != tls.X25519MLKEM768 {
		return fmt.Errorf("key exchange is %v", state.CurveID)
	}
	l.seen.Store([2]string{cert.Leaf.SerialNumber.Text(16), state.PeerCertificates[0].SerialNumber.Text(16)}, true)
	return nil
}

// server is w2.
type server struct {
	addr string
	err  atomic.Pointer[error]
	stop func()
}

func (s *server) last() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

func newServer(t *testing.T, two *uplink.Uplink) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: listener.Addr().String()}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer raw.Close()
				if err := serve(raw, two); err != nil {
					err = fmt.Errorf("server: %w", err)
					s.err.Store(&err)
				}
			})
		}
	})
	s.stop = func() { _ = listener.Close(); all.Wait() } // what Accept then says is its end
	return s
}

func serve(raw net.Conn, two *uplink.Uplink) error {
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	cert, err := two.Source().Certificate(workload(2))
	if err != nil {
		return err
	}
	var peer spiffeid.ID
	conn := tls.Server(raw, hbone.ServerTLS(cert, two.Source(), &peer))
	if err := conn.Handshake(); err != nil {
		return err
	}
	if peer != workload(1) {
		return fmt.Errorf("the client is %s", peer)
	}
	_, err = conn.Write([]byte{1})
	return err
}
