package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9950: "10 kB", 12345: "12 kB", 999_499: "999 kB",
		999_500: "1.0 MB", 2_000_000_000: "2.0 GB", 1 << 63: "9223 PB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "", -1: "", 42 * time.Microsecond: "42µs", 2500 * time.Microsecond: "2.5ms", 250 * time.Millisecond: "250ms",
		2500 * time.Millisecond: "2.5s", 61 * time.Second: "1m1s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestTableAligns(t *testing.T) {
	for _, color := range []bool{false, true} {
		var out bytes.Buffer
		table := NewTable(&out, color, "A", "LONG", "C")
		table.Add(Text("wide one"), In("µ", Red), Text("x"))
		table.Add(Text(""), Text("b"), Text("y"))
		if err := table.Flush(); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if strings.Contains(text, "\x1b") != color {
			t.Errorf("colour %v: %q", color, text)
		}
		for _, p := range []Paint{Bold, Dim, Red, reset} {
			text = strings.ReplaceAll(text, string(p), "")
		}
		want := "A         LONG  C\nwide one  µ     x\n-         b     y\n"
		if text != want {
			t.Errorf("got\n%swant\n%s", text, want)
		}
	}
}

func TestEnds(t *testing.T) {
	for _, tc := range []struct{ workload, address, want string }{
		{"shop/web", "10.0.0.1:80", "shop/web:80"},
		{"shop/web", "[fd00::1]:80", "shop/web:80"},
		{"", "[fd00::1]:80", "[fd00::1]:80"},
		{"shop/web", "10.0.0.1:0", "shop/web"},
		{"", "10.0.0.1:0", "10.0.0.1"},
		{"shop/web", "", "shop/web"},
		{"", "", ""},
	} {
		if got := endText(&meshpb.FlowEndpoint{Workload: tc.workload, Address: tc.address}); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

func TestUpgraded(t *testing.T) {
	var out strings.Builder
	err := Upgraded(&out, false, []local.Upgraded{{
		Node: "n1", From: "v1", To: "v2", FromPID: 7, PID: 8, Connections: 2000, Tunnels: 12, Failed: 3, Took: 1234567 * time.Microsecond, Pause: 21987 * time.Microsecond,
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"LONGEST PAUSE", "7 → 8", "2000", "1.235s", "22ms"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
}

// TestWho: a port is said to be of the end that it is of, and the agent's own
// tests are named once.
// TestNameQueriesHaveARow: they are the only datagrams that the gate passes.
func TestNameQueriesHaveARow(t *testing.T) {
	out := Counter{Class: "datagram", Direction: "outbound", Packets: 2, Bytes: 120}
	server := Peer{Counter: out, Address: "10.96.0.10", Port: 53}
	var b strings.Builder
	if err := Proofs(&b, false, []Proof{{Workload: "shop/web", Counters: []Counter{out}, Peers: []Peer{server}}}); err != nil {
		t.Fatal(err)
	}
	if want := "outbound, datagrams (UDP): to 10.96.0.10:53"; !strings.Contains(b.String(), want) {
		t.Errorf("want %q in\n%s", want, &b)
	}
}

func TestWho(t *testing.T) {
	peer := func(class, direction, address string, port uint32) Peer {
		return Peer{Counter: Counter{Class: class, Direction: direction}, Address: address, Port: port}
	}
	p := Proof{Peers: []Peer{
		peer("dropped", "inbound", "192.0.2.254", 40000), peer("dropped", "inbound", "10.244.1.90", 8099),
		peer("dropped", "inbound", "192.0.2.254", 40001), peer("dropped", "inbound", "10.244.1.91", 0),
		peer("dropped", "outbound", "10.244.1.90", 443), peer("dropped", "outbound", "100::fe", 40002), peer("dropped", "outbound", "100::fe", 40003),
		peer("permissive", "inbound", "10.244.1.90", 80), peer("permissive", "outbound", "fd00::9", 80),
		peer("egress", "outbound", "fd00::9", 443), peer("egress", "inbound", "fd00::9", 443),
		peer("grandfathered", "inbound", "10.244.1.90", 5432),
	}}
	for i := range 2 * maxPeersShown {
		p.Peers = append(p.Peers, peer("datagram", "outbound", fmt.Sprintf("10.0.0.%d", i), 53), peer("datagram", "outbound", "192.0.2.254", uint32(i)))
	}
	for _, tc := range []struct{ class, direction, want string }{
		{"dropped", "inbound", ": from the agent's own test at enrolment, 10.244.1.90 to port 8099, 10.244.1.91"},
		{"dropped", "outbound", ": to 10.244.1.90:443, the agent's own test at enrolment"},
		{"permissive", "inbound", ": from 10.244.1.90 to port 80"},
		{"permissive", "outbound", ": to fd00::9 from port 80"},
		{"egress", "outbound", ": to [fd00::9]:443"},
		{"egress", "inbound", ": from [fd00::9]:443"},
		{"grandfathered", "inbound", ": from 10.244.1.90 (port 5432)"},
		{"datagram", "outbound", ": to 10.0.0.0:53, the agent's own test at enrolment, 10.0.0.1:53, 10.0.0.2:53, 10.0.0.3:53, 10.0.0.4:53, ..."},
		{"probe", "inbound", ""},
	} {
		if got := p.who(Counter{Class: tc.class, Direction: tc.direction}); got != tc.want {
			t.Errorf("%s %s%q, want %q", tc.class, tc.direction, got, tc.want)
		}
	}
}

// TestFlowSecured: what secures a tunnel is told, and nothing of what went without one.
func TestFlowSecured(t *testing.T) {
	f := &meshpb.Flow{Transport: "tunnel", Retransmits: 3, Secured: &meshpb.FlowSecured{
		KeyExchange: "X25519MLKEM768", Group: 4588, PeerSerial: "ab12", PeerNotAfterNs: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano(),
	}}
	text := func(f *meshpb.Flow, json bool) string {
		var out bytes.Buffer
		p := NewFlowPrinter(&out, false, json, true)
		if err := errors.Join(p.Print(f), p.Flush()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := `"retransmits":3,"secured":{"keyExchange":"X25519MLKEM768","postQuantum":true,"peerCertificate":{"serial":"ab12","notAfter":"2030-01-02T03:04:05Z"}},"transport":"tunnel"`
	if got := text(f, true); !strings.Contains(got, want) {
		t.Errorf("%s lacks %s", got, want)
	}
	if got := text(f, false); !strings.Contains(got, "X25519MLKEM768") || !strings.Contains(got, "ab12 until 2030-01-0") {
		t.Error(got)
	}
	f.Secured = &meshpb.FlowSecured{KeyExchange: "X25519", Group: 29}
	if got := text(f, true); !strings.Contains(got, `"secured":{"keyExchange":"X25519","postQuantum":false},`) {
		t.Error(got)
	}
	f.Secured = nil
	if got := text(f, true); strings.Contains(got, "secured") {
		t.Error(got)
	}
}

// TestFlowAudited: the AUDIT policies that matched are told, beside what decided.
func TestFlowAudited(t *testing.T) {
	rule := int32(1)
	f := &meshpb.Flow{Verdict: "deny", Reason: "PolicyDeny", Policy: "shop/nobody", Rule: &rule, Audited: []string{"shop/all", "shop/web"}}
	if got := reasonText(f); got != "PolicyDeny shop/nobody[1], audited by shop/all, shop/web" {
		t.Error(got)
	}
	text, err := json.Marshal(ToJSON(f))
	if err != nil || !strings.Contains(string(text), `"rule":1,"audited":["shop/all","shop/web"],`) {
		t.Errorf("%s, %v", text, err)
	}
	f.Audited = nil
	if got := reasonText(f); got != "PolicyDeny shop/nobody[1]" {
		t.Error(got)
	}
	if text, err := json.Marshal(ToJSON(f)); err != nil || strings.Contains(string(text), "audited") {
		t.Errorf("%s, %v", text, err)
	}
}

// TestFlowRefusedByTheKernel: connections are counted, datagrams have bytes.
func TestFlowRefusedByTheKernel(t *testing.T) {
	for protocol, want := range map[uint32]bool{6: true, flow.ProtocolUDP: false} {
		var out bytes.Buffer
		p := NewFlowPrinter(&out, false, false, false)
		if err := errors.Join(p.Print(&meshpb.Flow{Direction: "outbound", Packets: 5, Protocol: protocol}), p.Flush()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "5 times"); got != want {
			t.Errorf("protocol %d: %q", protocol, out.String())
		}
	}
}

// TestWhatOthersSayIsNotObeyed: by a terminal, nor taken for the end of a line.
func TestWhatOthersSayIsNotObeyed(t *testing.T) {
	const said = "node\x1b[2J\rn1\u0085\u2028é\n2"
	if got := Printable(said); got != "node�[2J�n1��é�2" {
		t.Errorf("%q", got)
	}
	if got := Lines(said); got != "node�[2J�n1��é\n2" {
		t.Errorf("%q", got)
	}
}
