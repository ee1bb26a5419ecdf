package show

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// FlowJSON is a flow as -o json prints it, one object per line. Durations are
// seconds.
type FlowJSON struct {
	ID            uint64       `json:"id"`
	Time          time.Time    `json:"time"`
	Duration      float64      `json:"duration"`
	Direction     string       `json:"direction"`
	Source        endpointJSON `json:"source"`
	Destination   endpointJSON `json:"destination"`
	Service       string       `json:"service,omitempty"`
	Node          string       `json:"node"`
	Verdict       string       `json:"verdict"`
	Reason        string       `json:"reason"`
	Policy        string       `json:"policy,omitempty"`
	Rule          *int32       `json:"rule,omitempty"`
	Audited       []string     `json:"audited,omitempty"`
	BytesSent     uint64       `json:"bytesSent"`
	BytesReceived uint64       `json:"bytesReceived"`
	Timing        timingJSON   `json:"timing"`
	wireJSON
	Packets  uint64 `json:"packets,omitempty"`
	Protocol uint32 `json:"protocol,omitempty"`
	Detail   string `json:"detail,omitempty"`
}

// requestJSON is what is told of a request at a waypoint.
type requestJSON struct {
	Method     string `json:"method,omitempty"`
	Path       string `json:"path,omitempty"`
	Status     uint32 `json:"status"`
	Route      string `json:"route,omitempty"`
	Backend    string `json:"backend,omitempty"`
	Tries      uint32 `json:"tries"`
	FirstError string `json:"firstError,omitempty"`
}

func toRequest(r *meshpb.FlowRequest) *requestJSON {
	if r == nil {
		return nil
	}
	return &requestJSON{r.GetMethod(), r.GetPath(), r.GetStatus(), r.GetRoute(), r.GetBackend(), r.GetTries(), r.GetFirstError()}
}

type endpointJSON struct {
	Workload string `json:"workload,omitempty"`
	Identity string `json:"identity,omitempty"`
	Address  string `json:"address,omitempty"`
}

type timingJSON struct {
	Handshake float64 `json:"handshake,omitempty"`
	Connect   float64 `json:"connect,omitempty"`
	RTT       float64 `json:"rtt,omitempty"`
}

type wireJSON struct {
	Waypoint    string       `json:"waypoint,omitempty"`
	Retransmits uint32       `json:"retransmits"`
	Secured     *securedJSON `json:"secured,omitempty"`
	Request     *requestJSON `json:"request,omitempty"`
	Transport   string       `json:"transport"`
}

// securedJSON is what secures the tunnel connection.
type securedJSON struct {
	KeyExchange     string           `json:"keyExchange"`
	PostQuantum     bool             `json:"postQuantum"`
	PeerCertificate *certificateJSON `json:"peerCertificate,omitempty"`
}

type certificateJSON struct {
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
}

func toSecured(s *meshpb.FlowSecured) *securedJSON {
	if s == nil {
		return nil
	}
	j := &securedJSON{KeyExchange: s.GetKeyExchange(), PostQuantum: secured.PostQuantum(s.GetKeyExchange())}
	if s.GetPeerSerial() != "" {
		j.PeerCertificate = &certificateJSON{s.GetPeerSerial(), time.Unix(0, s.GetPeerNotAfterNs()).UTC()}
	}
	return j
}

// ToJSON returns the JSON form of a flow.
func ToJSON(f *meshpb.Flow) FlowJSON {
	seconds := func(ns int64) float64 { return time.Duration(ns).Seconds() }
	end := func(e *meshpb.FlowEndpoint) endpointJSON {
		return endpointJSON{Workload: e.GetWorkload(), Identity: e.GetIdentity(), Address: e.GetAddress()}
	}
	return FlowJSON{
		ID: f.GetId(), Time: time.Unix(0, f.GetStartNs()).UTC(), Duration: seconds(f.GetDurationNs()), Direction: f.GetDirection(),
		Source: end(f.GetSource()), Destination: end(f.GetDestination()), Service: f.GetService(), Node: f.GetNode(),
		Verdict: f.GetVerdict(), Reason: f.GetReason(), Policy: f.GetPolicy(), Rule: f.Rule, Audited: f.GetAudited(),
		BytesSent: f.GetBytesSent(), BytesReceived: f.GetBytesReceived(),
		Timing:   timingJSON{seconds(f.GetHandshakeNs()), seconds(f.GetConnectNs()), seconds(f.GetRttNs())},
		wireJSON: wireJSON{f.GetWaypoint(), f.GetRetransmits(), toSecured(f.GetSecured()), toRequest(f.GetRequest()), f.GetTransport()}, Packets: f.GetPackets(), Protocol: f.GetProtocol(), Detail: f.GetDetail(),
	}
}

// FlowPrinter prints flows, as a table or as JSON.
type FlowPrinter struct {
	out   io.Writer
	json  bool
	wide  bool
	table *Table
}

// NewFlowPrinter returns a FlowPrinter: JSON, one object per line, or a table
// with more columns when wide.
func NewFlowPrinter(out io.Writer, color, json, wide bool) *FlowPrinter {
	header := []string{"TIME", "VERDICT", "REASON", "DIRECTION", "SOURCE", "DESTINATION", "TRANSPORT", "SENT", "RECEIVED", "DURATION"}
	if wide {
		header = append(header, "NODE", "SERVICE", "SOURCE IDENTITY", "DESTINATION IDENTITY", "CONNECT", "HANDSHAKE", "RTT", "RETRANS", "KEY EXCHANGE", "PEER CERTIFICATE", "DETAIL")
	}
	p := &FlowPrinter{out: out, json: json, wide: wide, table: NewTable(out, color, header...)}
	p.table.Widen(12, 7, 19, 9, 20, 24, 9, 8, 8, 8)
	return p
}

// Print shows a flow, or holds it back until Flush.
func (p *FlowPrinter) Print(f *meshpb.Flow) error {
	if p.json {
		enc := json.NewEncoder(p.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(ToJSON(f))
	}
	p.table.Add(p.row(f)...)
	return nil
}

// Flush shows what Print held back.
func (p *FlowPrinter) Flush() error {
	if p.json {
		return nil
	}
	return p.table.Flush()
}

func (p *FlowPrinter) row(f *meshpb.Flow) []Cell {
	mark := Plain
	switch f.GetVerdict() {
	case "deny":
		mark = Red
	case "allow":
		mark = Green
	case "audit":
		mark = Yellow
	}
	sent, received := Bytes(f.GetBytesSent()), Bytes(f.GetBytesReceived())
	if f.GetDirection() == "kernel" {
		sent, received = Packets(f.GetPackets()), ""
	}
	if f.GetDirection() == "outbound" && f.GetPackets() > 1 && f.GetProtocol() != flow.ProtocolUDP {
		sent, received = fmt.Sprintf("%d times", f.GetPackets()), "" // the kernel refused them
	}
	destination := endText(f.GetDestination())
	if s := f.GetService(); s != "" && !p.wide {
		if f.GetWaypoint() != "" {
			s += " by waypoint"
		}
		destination += " (" + s + ")"
	}
	if f.GetProtocol() == flow.ProtocolUDP {
		destination += " UDP"
	}
	detail := f.GetDetail()
	if f.GetRequest() != nil {
		destination, detail = requestText(f), requestDetail(f.GetRequest())
	}
	if f.GetDirection() == "dns" {
		sent, received = fmt.Sprintf("%d queries", f.GetPackets()), ""
		if !p.wide {
			destination += ", " + f.GetDetail()
		}
	}
	row := []Cell{
		{time.Unix(0, f.GetStartNs()).Format("15:04:05.000"), Dim}, {f.GetVerdict(), mark}, {reasonText(f), mark},
		Text(f.GetDirection()), Text(endText(f.GetSource())), Text(destination), transportCell(f.GetTransport()),
		Text(sent), Text(received), Text(Duration(time.Duration(f.GetDurationNs()))),
	}
	if p.wide {
		row = append(row, Text(f.GetNode()), Text(f.GetService()), Text(f.GetSource().GetIdentity()), Text(f.GetDestination().GetIdentity()),
			Text(Duration(time.Duration(f.GetConnectNs()))), Text(Duration(time.Duration(f.GetHandshakeNs()))),
			Text(Duration(time.Duration(f.GetRttNs()))), Text(fmt.Sprint(f.GetRetransmits())),
			Text(f.GetSecured().GetKeyExchange()), Text(certificateText(f.GetSecured())), Text(detail))
	}
	return row
}

// requestText is what was asked for and answered, and by whom.
func requestText(f *meshpb.Flow) string {
	r := f.GetRequest()
	text := cmp.Or(r.GetMethod(), "a request") + " " + cmp.Or(r.GetPath(), f.GetService())
	switch {
	case flow.IsConnection(r.GetMethod()):
	case r.GetStatus() == 0:
		text += " no answer"
	default:
		text += fmt.Sprintf(" %d", r.GetStatus())
	}
	if r.GetTries() > 1 {
		text += fmt.Sprintf(" after %d tries", r.GetTries())
	}
	if to := endText(f.GetDestination()); to != "" {
		text += " by " + to
	}
	return text
}

// requestDetail is the route, the backend, and why the first try failed.
func requestDetail(r *meshpb.FlowRequest) string {
	parts := slices.DeleteFunc([]string{r.GetRoute(), r.GetBackend(), r.GetFirstError()}, func(s string) bool { return s == "" })
	return strings.Join(parts, ", ")
}

// certificateText is the peer's certificate, as `heddle certs` names it, and its end.
func certificateText(s *meshpb.FlowSecured) string {
	if s.GetPeerSerial() == "" {
		return ""
	}
	return s.GetPeerSerial() + " until " + time.Unix(0, s.GetPeerNotAfterNs()).Format("2006-01-02 15:04")
}

// reasonText is the reason, the policy and rule that decided, and those that audit.
func reasonText(f *meshpb.Flow) string {
	text := decidedText(f)
	if audited := f.GetAudited(); len(audited) > 0 {
		text += ", audited by " + strings.Join(audited, ", ")
	}
	return text
}

func decidedText(f *meshpb.Flow) string {
	if f.GetPolicy() == "" {
		return f.GetReason()
	}
	if f.Rule == nil {
		return f.GetReason() + " " + f.GetPolicy()
	}
	return fmt.Sprintf("%s %s[%d]", f.GetReason(), f.GetPolicy(), f.GetRule())
}

// endText names an end by its workload where that is known, with the port where
// there is one.
func endText(e *meshpb.FlowEndpoint) string {
	addr, err := netip.ParseAddrPort(e.GetAddress())
	switch {
	case err != nil && e.GetWorkload() == "":
		return e.GetAddress()
	case err != nil || addr.Port() == 0 && e.GetWorkload() != "":
		return e.GetWorkload()
	case addr.Port() == 0:
		return addr.Addr().String()
	case e.GetWorkload() == "":
		return addr.String()
	default:
		return fmt.Sprintf("%s:%d", e.GetWorkload(), addr.Port())
	}
}

// transportCell marks plaintext: it is allowed, and worth a look.
func transportCell(transport string) Cell {
	if transport == "plaintext" {
		return Cell{transport, Yellow}
	}
	return Text(transport)
}
