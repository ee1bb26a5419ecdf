package frozen_test

import (
	"bytes"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/proxy/frozen"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// secure is carried as later agents of version 1 write it, with what secures it.
func secure() *frozen.Connection {
	c := carried()
	c.Record.Secured = secured.Facts{Group: tls.X25519MLKEM768, Serial: "3f2a", NotAfter: 1700086400}.By()
	return c
}

// hopped is carried to a waypoint, as agents of version 1 write it that know of them and
// of AUDIT policies.
func hopped() *frozen.Connection {
	c := secure()
	c.Record.Waypoint, c.Record.Reason = mesh.Key{Namespace: "shop", Name: "waypoint"}, mesh.ReasonWaypoint
	c.Record.Verdict, c.Record.Audited = mesh.VerdictAudit, "shop/all,shop/web"
	return c
}

// inside is hopped, as agents of version 1 write it that say whether both ends were seen in the mesh.
func inside() *frozen.Connection {
	c := hopped()
	c.Inside = true
	return c
}

// carried has something in every field that the first agents of version 1 kept.
func carried() *frozen.Connection {
	return &frozen.Connection{
		Record: flow.Record{
			Start: time.Unix(1700000000, 123456789), Direction: flow.DirectionInbound, Wire: flow.Wire{Transport: flow.TransportTunnel},
			Source: flow.Endpoint{
				Workload: mesh.Key{Namespace: "shop", Name: "web"}, Identity: spiffeid.RequireFromString("spiffe://example.test/ns/shop/sa/web"),
				Addr: netip.MustParseAddrPort("[2001:db8::1]:4321"),
			},
			Destination: flow.Endpoint{
				Workload: mesh.Key{Namespace: "shop", Name: "db"}, Identity: spiffeid.RequireFromString("spiffe://example.test/ns/shop/sa/db"),
				Addr: netip.MustParseAddrPort("198.18.2.1:7001"),
			},
			Service: mesh.Key{Namespace: "shop", Name: "database"},
			Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: mesh.Key{Namespace: "shop", Name: "web-may"}, Rule: 2,
			Timing: flow.Timing{Handshake: time.Millisecond, Connect: 3 * time.Millisecond},
		},
		Sent: 1 << 40, Received: 7, Balanced: true, Probe: true,
	}
}

func TestRoundTrip(t *testing.T) {
	for _, change := range []func(*frozen.Connection){
		func(*frozen.Connection) {},
		func(c *frozen.Connection) { *c = *secure() },
		func(c *frozen.Connection) { *c = *inside() },
		func(c *frozen.Connection) {
			c.Record.Waypoint, c.Record.Reason = mesh.Key{Namespace: "shop", Name: "waypoint"}, mesh.ReasonWaypoint
		},
		func(c *frozen.Connection) {
			c.Record.Verdict, c.Record.Audited = mesh.VerdictAudit, "shop/all,shop/web"
		},
		func(c *frozen.Connection) {
			c.Record.Direction, c.Record.Transport = flow.DirectionLocal, flow.TransportSplice
		},
		func(c *frozen.Connection) {
			c.Record = flow.Record{
				Start: time.Unix(5, 0), Direction: flow.DirectionOutbound, Wire: flow.Wire{Transport: flow.TransportPlaintext},
				Verdict: mesh.VerdictAudit, Rule: -1, Reason: mesh.ReasonEgressAllowed,
				Source: flow.Endpoint{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:0")}, Destination: flow.Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:80")},
			}
		},
	} {
		want := carried()
		change(want)
		text, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := frozen.Decode(text)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if !got.Record.Start.Equal(want.Record.Start) {
			t.Errorf("started %v, want %v", got.Record.Start, want.Record.Start)
		}
		got.Record.Start = want.Record.Start
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
}

// golden is carried as version 1 wrote it, for ever: an agent of that version may
// be the one that gives.
//
//go:embed testdata/v1.json
var golden []byte

// goldenSecured is secure, written so for ever.
//
//go:embed testdata/v1-secured.json
var goldenSecured []byte

// goldenHopped is hopped, written so for ever.
//
//go:embed testdata/v1-hopped.json
var goldenHopped []byte

// goldenInside is inside, written so for ever.
//
//go:embed testdata/v1-inside.json
var goldenInside []byte

// TestGolden: what was written once is read, and written again with all that
// was in it.
func TestGolden(t *testing.T) {
	sameAs(t, golden, carried())
	sameAs(t, goldenSecured, secure())
	sameAs(t, goldenHopped, hopped())
	sameAs(t, goldenInside, inside())
}

// TestGoldenFields: inside sets every field there is, so that its recording has all of them. One that
// gets another name would be passed over by a reader of either version; one that is new needs a recording.
func TestGoldenFields(t *testing.T) {
	text, err := inside().Encode()
	var then, now map[string]any
	if err := errors.Join(err, json.Unmarshal(goldenInside, &then), json.Unmarshal(text, &now)); err != nil {
		t.Fatal(err)
	}
	for _, name := range frozen.Fields() {
		if then[name] == nil || now[name] == nil {
			t.Errorf("%s is %v in the recording, and would be written as %v", name, then[name], now[name])
		}
	}
}

func sameAs(t *testing.T, golden []byte, want *frozen.Connection) {
	t.Helper()
	got, err := frozen.Decode(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Record.Start.Equal(want.Record.Start) {
		t.Errorf("started %v, want %v", got.Record.Start, want.Record.Start)
	}
	got.Record.Start = want.Record.Start
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	text, err := want.Encode()
	var then, now map[string]any
	if err := errors.Join(err, json.Unmarshal(golden, &then), json.Unmarshal(text, &now)); err != nil {
		t.Fatal(err)
	}
	for field, value := range then {
		if !reflect.DeepEqual(now[field], value) {
			t.Errorf("%s is written as %v, and was as %v", field, now[field], value)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := carried().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := frozen.Decode(bytes.Replace(good, []byte(`{`), []byte(`{"later":{"more":[1]},`), 1)); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
	for name, change := range map[string][2]string{
		"another version": {`"version":1`, `"version":2`},
		"a direction":     {`"direction":"inbound"`, `"direction":"up"`},
		"kernel drops":    {`"direction":"inbound"`, `"direction":"kernel"`},
		"a local tunnel":  {`"direction":"inbound"`, `"direction":"local"`},
		"no transport":    {`"transport":"tunnel"`, `"transport":"none"`},
		"a refusal":       {`"verdict":"allow"`, `"verdict":"deny"`},
		"a reason":        {`"reason":"`, `"reason":"x`},
		"an address":      {`198.18.2.1:7001`, `198.18.2.1`},
		"no address":      {`198.18.2.1:7001`, ``},
		"a long zone":     {`198.18.2.1:7001`, `[fe80::1%abcdefghijklmnopq]:1`},
		"an identity":     {`spiffe://example.test/ns/shop/sa/db`, `example.test/db`},
		"a rule":          {`"rule":2`, `"rule":-2`},
		"time":            {`"startNs":1`, `"startNs":-1`},
		"a negative wait": {`"connectNs":`, `"connectNs":-`},
		"a long name":     {`database`, strings.Repeat("x", 600)},
		"too much":        {`database`, strings.Repeat("x", 20000)},
		"long audits":     {`"probe":`, `"audited":["` + strings.Repeat("x", 10000) + `"],"probe":`},
		"half of it":      {`"sent":`, ``},
	} {
		bad := bytes.Replace(good, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(bad, good) {
			t.Fatalf("%s: %q is not in %s", name, change[0], good)
		}
		if c, err := frozen.Decode(bad); err == nil {
			t.Errorf("%s: accepted as %+v", name, c)
		}
	}
}

// FuzzDecode: whatever is accepted can be written down again and means the same.
func FuzzDecode(f *testing.F) {
	good, err := carried().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(goldenSecured)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := frozen.Decode(text)
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := frozen.Decode(again)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%+v became %+v, %v", c, got, err)
		}
	})
}
