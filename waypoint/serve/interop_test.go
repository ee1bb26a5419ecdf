package serve_test

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestInterop: gRPC's own client and server, in processes of their own, all of their cases that need no credentials. But
// for orca_oob, whose reports grpc lets no server but its own program send oftener than each 30 s, and pick_first_unary, which
// wants a server's name that grpc-go's does not say.
func TestInterop(t *testing.T) {
	program := t.TempDir() + "/interop"
	testenv.Build(t, "interop", program, ".")
	addr := workloadAddress()
	at := overLoopback(netip.AddrPortFrom(addr, uint16(testenv.FreePort(t))))
	ctx, stop := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, program, "serve", at.String())
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { _ = server.Wait() })
	defer all.Wait()
	defer stop()
	eventually(t, "the server listens", func() bool {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	b := &backend{name: "cart", address: cartAddr, port: "grpc", workloads: []netip.Addr{addr}, target: at.Port(), mode: mesh.ModePermissive}
	w := newWorld(t, []*backend{b}, func(c *serve.Config) { c.Direct = netip.AddrPortFrom(cartAddr, servicePort) })
	for _, name := range []string{"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server", "cancel_after_begin",
		"cancel_after_first_response", "custom_metadata", "status_code_and_message", "special_status_message", "unimplemented_method", "unimplemented_service",
		"orca_per_rpc", "rpc_soak", "channel_soak"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			if out, err := exec.CommandContext(ctx, program, "call", "127.0.0.1:"+strconv.Itoa(w.at.Port), name).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	eventually(t, "a hundred requests went through the waypoint", func() bool { return w.value("heddle_waypoint_requests_total", "backend", "shop/cart:80") >= 100 })
}
