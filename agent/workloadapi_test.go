package agent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// workloadAPI is where a pod's processes find it; docs/workload-api.md says so.
const workloadAPI = "127.0.0.1:15054"

// asking sets a pod's label heddle.dev/workload-api.
func (w *world) asking(name, value string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "mesh", name+".yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	app := "labels: {app: " + name + ","
	before, after, ok := strings.Cut(string(text), app)
	if !ok {
		w.t.Fatalf("%s has no labels:\n%s", path, text)
	}
	if _, rest, again := strings.Cut(after, " heddle.dev/workload-api: "); again {
		_, after, _ = strings.Cut(rest, ",")
	}
	w.write(name+".yaml", before+app+" heddle.dev/workload-api: "+value+","+after)
}

// svids is what go-spiffe's client in the pod gets, and goes on getting.
func (p *podNS) svids() (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(p.w.t.Context(), 20*time.Second)
	defer cancel()
	s, err := workloadapi.NewX509Source(ctx, p.inside())
	if err == nil {
		p.w.t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// inside has go-spiffe's clients ask from inside the pod.
func (p *podNS) inside() workloadapi.SourceOption {
	return workloadapi.WithClientOptions(workloadapi.WithAddr("tcp://"+workloadAPI),
		workloadapi.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, to string) (c net.Conn, err error) {
			err = p.ns.Do(func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, "tcp", to)
				return err
			})
			return c, err
		})))
}

// reaches reports whether something at an address answers HTTP/2 as a server does.
func reaches(ns *testenv.NetNS, to string) bool {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 400 * time.Millisecond}).Dial("tcp", to)
		return err
	})
	if err != nil {
		return false
	}
	defer c.Close()
	if c.SetDeadline(time.Now().Add(time.Second)) != nil {
		return false
	}
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return false
	}
	_, err = io.ReadFull(c, make([]byte, 9))
	return err == nil
}

func shopID(name string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://test.heddle.dev/ns/shop/sa/" + name)
}

// TestWorkloadAPI: processes of pods that ask get the pod's SVID, use it among
// themselves, see it change, also by the next agent; and nobody else gets it.
func TestWorkloadAPI(t *testing.T) {
	w := newWorld(t)
	web, api := w.pods["web"], w.pods["api"]
	w.asking("web", "enabled")
	w.n1.start()
	t.Cleanup(w.n1.leave)
	w.n1.await("enrolled")
	w.n2.start()
	t.Cleanup(w.n2.leave)
	w.n2.await("enrolled")
	webs, err := web.svids()
	if err != nil {
		t.Fatal(err)
	}
	if svid, err := webs.GetX509SVID(); err != nil || svid.ID != shopID("web") {
		t.Fatalf("web is given %v, %v", svid, err)
	}
	t.Run("nobody else", func(t *testing.T) { w.reachesNobody(t) })
	t.Run("asked for later", func(t *testing.T) {
		if reaches(api.ns, workloadAPI) {
			t.Error("a pod is served that did not ask")
		}
		w.asking("api", "enabled")
		testenv.Eventually(t, 20*time.Second, "api is served", func() bool { return reaches(api.ns, workloadAPI) })
	})
	apis, err := api.svids()
	if err != nil {
		t.Fatal(err)
	}
	w.greetings(t, webs, apis)
	t.Run("JWT-SVIDs", func(t *testing.T) { w.tokens(t) })
	t.Run("not the tunnel's key", func(t *testing.T) { w.twoSVIDs(t, webs) })
	t.Run("hand-over and rotation", func(t *testing.T) {
		old := w.n1.cmd
		w.n1.start(func(c *agent.Config) { c.Version, c.TakeOver = "next", agent.TakeOverRequire })
		if err := ended(t, old); err != nil {
			log, _ := os.ReadFile(w.n1.log)
			t.Fatalf("the donor: %v\n%s", err, log)
		}
		w.n1.await("enrolled")
		w.greetings(t, webs, apis)
		before := issuer(t, webs)
		w.operator(t, func(c meshpb.OperatorAdminClient) error {
			_, err := c.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"})
			return err
		})
		testenv.Eventually(t, 60*time.Second, "both have SVIDs of the new root", func() bool { return issuer(t, webs) != before && issuer(t, apis) != before })
		w.greetings(t, webs, apis)
	})
	t.Run("asked for no more", func(t *testing.T) {
		w.asking("web", "disabled")
		testenv.Eventually(t, 20*time.Second, "web is not served", func() bool { return !reaches(web.ns, workloadAPI) })
	})
}

// issuer is who signed what a pod has.
func issuer(t *testing.T, s *workloadapi.X509Source) string {
	t.Helper()
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return string(svid.Certificates[0].RawIssuer)
}

func (w *world) operator(t *testing.T, ask func(meshpb.OperatorAdminClient) error) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(w.dir, "operator.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ask(meshpb.NewOperatorAdminClient(conn)); err != nil {
		t.Fatal(err)
	}
}

// twoSVIDs: of one identity the tunnel and the pod have certificates of two keys, and
// the operator knows of both.
func (w *world) twoSVIDs(t *testing.T, webs *workloadapi.X509Source) {
	svid, err := webs.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	own := svid.Certificates[0].SerialNumber.Text(16)
	testenv.Eventually(t, 10*time.Second, "both are reported", func() bool {
		held := map[string]bool{}
		w.operator(t, func(c meshpb.OperatorAdminClient) error {
			all, err := c.Certificates(t.Context(), &meshpb.CertificatesRequest{})
			for _, n := range all.GetNodes() {
				for _, cert := range n.GetReport().GetCertificates() {
					if cert.GetIdentity() == shopID("web").String() {
						held[cert.GetSerial()] = true
					}
				}
			}
			return err
		})
		return len(held) == 2 && held[own]
	})
}

// greetings has a process of web talk to one of api, through the mesh, by mutual TLS
// with what they were given.
func (w *world) greetings(t *testing.T, webs, apis *workloadapi.X509Source) {
	t.Helper()
	var l net.Listener
	w.pods["api"].ns.Must(t, func() (err error) {
		l, err = net.Listen("tcp", ":7001")
		return err
	})
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			secure := tls.Server(c, tlsconfig.MTLSServerConfig(apis, apis, tlsconfig.AuthorizeID(shopID("web"))))
			if err = c.SetDeadline(time.Now().Add(20 * time.Second)); err == nil {
				_, err = io.CopyN(secure, secure, 5)
			}
		}
		served <- err
	}()
	c, err := w.pods["web"].dial("10.96.0.2:70")
	if err != nil {
		t.Fatal(err)
	}
	secure := tls.Client(c, tlsconfig.MTLSClientConfig(webs, webs, tlsconfig.AuthorizeID(shopID("api"))))
	_, err = io.WriteString(secure, "hello")
	echoed := make([]byte, 5)
	if err == nil {
		_, err = io.ReadFull(secure, echoed)
	}
	if err := errors.Join(err, <-served); err != nil || string(echoed) != "hello" {
		t.Fatalf("%q, %v", echoed, err)
	}
}

// reachesNobody: what is on web's loopback is reached by its own processes only, also
// where plaintext is let in, and where web itself would take its loopback's addresses
// from the wire.
func (w *world) reachesNobody(t *testing.T) {
	web := w.pods["web"]
	// Otherwise nothing would be shown.
	testenv.Eventually(t, 10*time.Second, "web itself reaches it", func() bool { return reaches(web.ns, workloadAPI) })
	web.ns.Must(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0) })
	port := strings.TrimPrefix(workloadAPI, "127.0.0.1")
	for _, mode := range []string{"STRICT", "PERMISSIVE"} {
		w.write("modes.yaml", "apiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: default}\nspec: {mode: "+mode+"}\n")
		testenv.Eventually(t, 20*time.Second, "web is "+mode, func() bool { return w.n1.mode("shop/web") == mode })
		var tries sync.WaitGroup
		for from, ns := range map[string]*testenv.NetNS{"a pod of the node": w.pods["api"].ns, "a pod of another node": w.pods["db"].ns, "the node": w.n1.ns, "another node": w.n2.ns} {
			for _, to := range []string{web.v4 + port, "[" + web.v6 + "]" + port, workloadAPI} {
				tries.Go(func() {
					if reaches(ns, to) {
						t.Errorf("%s: %s reaches %s", mode, from, to)
					}
				})
			}
		}
		tries.Wait()
		dropped := func() float64 { return w.n1.metric(t, `heddle_kernel_drops_total{reason="KernelNoFlow"}`) }
		before := dropped()
		w.toLoopback(t, web)
		testenv.Eventually(t, 10*time.Second, "the gate drops what is for loopback", func() bool { return dropped() > before })
	}
}

// mode is a pod's, as its agent says.
func (n *node) mode(pod string) (mode string) {
	_ = n.ask(func(ctx context.Context, c *admin.Client) error { // asked again if it fails
		s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
		for _, p := range s.GetPods() {
			if p.GetWorkload() == pod {
				mode = p.GetMode()
			}
		}
		return err
	})
	return mode
}

// toLoopback sends a pod, from its node, a SYN for the Workload API on its loopback.
func (w *world) toLoopback(t *testing.T, p *podNS) {
	t.Helper()
	var inside net.HardwareAddr
	p.ns.Must(t, func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			inside = l.Attrs().HardwareAddr
		}
		return err
	})
	w.n1.ns.Must(t, func() error {
		l, err := netlink.LinkByName("p-web")
		if err != nil {
			return err
		}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.ParseIP("10.1.1.1"), DstIP: net.IPv4(127, 0, 0, 1)}
		tcp := &layers.TCP{SrcPort: 40000, DstPort: 15054, SYN: true, Window: 1024}
		frame := gopacket.NewSerializeBuffer()
		err = errors.Join(tcp.SetNetworkLayerForChecksum(ip), gopacket.SerializeLayers(frame, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: l.Attrs().HardwareAddr, DstMAC: inside, EthernetType: layers.EthernetTypeIPv4}, ip, tcp))
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = unix.Sendto(fd, frame.Bytes(), 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
		if errors.Is(err, unix.ENOBUFS) {
			return nil // so a sender hears of a gate that drops
		}
		return err
	})
}
