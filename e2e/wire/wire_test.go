package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type packet struct {
	srcPort, dstPort uint16
	seq              uint32
	syn              bool
	payload          []byte
}

func capture(t *testing.T, packets ...packet) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := pcapgo.NewWriter(&out)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for _, p := range packets {
		eth := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(p.srcPort), DstPort: layers.TCPPort(p.dstPort), Seq: p.seq, SYN: p.syn, ACK: !p.syn}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		buf := gopacket.NewSerializeBuffer()
		opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
		if err := gopacket.SerializeLayers(buf, opts, eth, ip, tcp, gopacket.Payload(p.payload)); err != nil {
			t.Fatal(err)
		}
		info := gopacket.CaptureInfo{Timestamp: time.Unix(0, 0), CaptureLength: len(buf.Bytes()), Length: len(buf.Bytes())}
		if err := w.WritePacket(info, buf.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	return &out
}

func tlsRecord(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, headerLen+n)
	if _, err := rand.Read(b[headerLen:]); err != nil {
		t.Fatal(err)
	}
	b[0], b[1], b[2] = 23, 3, 3
	binary.BigEndian.PutUint16(b[3:], uint16(n))
	return b
}

func TestRead(t *testing.T) {
	long := append(tlsRecord(t, 3000), tlsRecord(t, 500)...)
	for _, test := range []struct {
		name           string
		packets        []packet
		tls, plaintext int
	}{
		{"records on the tunnel's port, split anywhere", []packet{
			{40000, 15008, 99, true, nil}, {40000, 15008, 100, false, long[:1400]}, {40000, 15008, 1500, false, long[1400:]}}, len(long), 0},
		{"sent twice and out of order", []packet{
			{40000, 15008, 99, true, nil}, {40000, 15008, 1500, false, long[1400:]}, {40000, 15008, 100, false, long[:1400]},
			{40000, 15008, 100, false, long[:1400]}}, len(long), 0},
		{"plaintext on the tunnel's port", []packet{
			{40000, 15008, 99, true, nil}, {40000, 15008, 100, false, []byte("GET / HTTP/1.1\r\n\r\n")}}, 0, 18},
		{"plaintext behind a record", []packet{
			{40000, 15008, 99, true, nil}, {40000, 15008, 100, false, append(tlsRecord(t, 10), "hello"...)}}, 15, 5},
		{"any other port", []packet{{40000, 80, 99, true, nil}, {40000, 80, 100, false, []byte("GET /")}}, 0, 5},
		{"any other port, without its beginning", []packet{{40000, 80, 100, false, tlsRecord(t, 95)}}, 0, 100},
		{"the tunnel without its beginning", []packet{{15008, 40000, 5000, false, long[700:]}}, len(long) - 700, 0},
		{"long plaintext on the tunnel's port without its beginning", []packet{
			{15008, 40000, 5000, false, bytes.Repeat([]byte("x"), 30000)}}, 0, 30000},
		{"ports used again", []packet{
			{40000, 15008, 99, true, nil}, {40000, 15008, 100, false, long[:1000]},
			{40000, 15008, 777000, true, nil}, {40000, 15008, 777001, false, tlsRecord(t, 95)}}, 1100, 0},
		{"fast open", []packet{{40000, 80, 99, true, []byte("early")}}, 0, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			found, err := Read(capture(t, test.packets...), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if (found.Sealed() == nil) != (test.plaintext == 0) {
				t.Errorf("said of %+v: %v", found, found.Sealed())
			}
			if found.TLSBytes != test.tls || found.PlaintextBytes != test.plaintext {
				t.Errorf("got %d TLS and %d plaintext bytes, want %d and %d", found.TLSBytes, found.PlaintextBytes, test.tls, test.plaintext)
			}
		})
	}
}

func TestReadMarkerAndSelection(t *testing.T) {
	packets := []packet{{1, 80, 99, true, nil}, {1, 80, 100, false, []byte("a marker here")}}
	found, err := Read(capture(t, packets...), []byte("marker"), nil)
	if err != nil || found.Markers != 1 || found.Sealed() == nil {
		t.Errorf("markers %d, error %v: want 1, nil", found.Markers, err)
	}
	found, err = Read(capture(t, packets...), []byte("marker"), func(a netip.Addr) bool { return a == netip.MustParseAddr("10.9.9.9") })
	if err != nil || found.Markers != 0 || found.PlaintextBytes != 0 || found.Sealed() != nil {
		t.Errorf("other addresses' packets were judged: %+v, %v", found, err)
	}
}

func TestReadCutShort(t *testing.T) {
	whole := capture(t, packet{1, 80, 99, true, nil}, packet{1, 80, 100, false, []byte("hello")}).Bytes()
	found, err := Read(bytes.NewReader(whole[:len(whole)-3]), nil, nil)
	if err != nil || found.Packets != 1 {
		t.Errorf("%d packets, error %v: want 1, nil", found.Packets, err)
	}
	if _, err := Read(bytes.NewReader([]byte("no capture")), nil, nil); err == nil {
		t.Error("a file that is no capture was read")
	}
}
