package observed

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// answer is of web on n1 to db-1 beside it, db-2 on n2, and one that is refused.
func answer() *explain.Answer {
	end := func(workload, identity, node string) explain.End {
		return explain.End{Workload: workload, Identity: identity, Node: node, Enrolled: true}
	}
	return &explain.Answer{Source: end("shop/web", "spiffe://m/web", "n1"), Endpoints: []explain.Endpoint{
		{End: end("shop/db-1", "spiffe://m/db", "n1"), Path: explain.PathSplice},
		{End: end("shop/db-2", "spiffe://m/db", "n2"), Path: explain.PathTunnel},
		{End: end("shop/db-3", "spiffe://m/db", "n3"), Path: explain.PathRefused},
	}}
}

func TestAdd(t *testing.T) {
	a := answer()
	if nodes := strings.Join(nodesOf(a), " "); nodes != "n1 n2 n1" {
		t.Errorf("asks %s", nodes)
	}
	at := func(second int64, from, to, exchange string) *meshpb.Flow {
		return &meshpb.Flow{StartNs: second * 1e9, Source: &meshpb.FlowEndpoint{Workload: from}, Destination: &meshpb.FlowEndpoint{Workload: to},
			Secured: &meshpb.FlowSecured{KeyExchange: exchange}}
	}
	held := func(identity, serial string) *meshpb.CertificateStatus {
		return &meshpb.CertificateStatus{Identity: identity, Serial: serial, NotAfterNs: 9e18}
	}
	add(a, &known{node: "n1", certificates: []*meshpb.CertificateStatus{held("spiffe://m/web", "a1"), held("spiffe://m/db", "b1"), held("spiffe://m/other", "c1")},
		flows: []*meshpb.Flow{at(20, "shop/web", "shop/db-2", "X25519MLKEM768"), at(10, "shop/web", "shop/db-2", "X25519"), at(30, "shop/db-2", "shop/web", "X25519"), at(40, "shop/web", "shop/db-2", "")}})
	add(a, &known{node: "n2", certificates: []*meshpb.CertificateStatus{held("spiffe://m/db", "b2"), held("spiffe://m/web", "a2")},
		flows: []*meshpb.Flow{at(15, "shop/web", "shop/db-2", "X25519")}})
	for e, want := range map[*explain.End]string{&a.Source: "a1", &a.Endpoints[0].End: "b1", &a.Endpoints[1].End: "b2"} {
		if e.Certificate == nil || e.Certificate.Serial != want || e.Certificate.NotAfter.IsZero() {
			t.Errorf("%s: certificate %+v, want %s", e.Workload, e.Certificate, want)
		}
	}
	if e := a.Endpoints[2]; e.Certificate != nil || e.Secured != nil || a.Endpoints[0].Secured != nil {
		t.Errorf("of a refused one %+v, of a splice %+v", e, a.Endpoints[0].Secured)
	}
	if s := a.Endpoints[1].Secured; s == nil || s.KeyExchange != "X25519MLKEM768" || !s.PostQuantum || s.At != time.Unix(20, 0).UTC() {
		t.Errorf("%+v", s)
	}
	var out bytes.Buffer
	if err := explain.Print(&out, false, a); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"certificate of shop/web: a1 until ", "certificate of shop/db-2: b2 until ", "key exchange with shop/db-2: X25519MLKEM768 (post-quantum), at "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestAgentsAway: what is not known is said, and nobody is asked for nothing.
func TestAgentsAway(t *testing.T) {
	m := &reach.Mesh{Socket: filepath.Join(t.TempDir(), "s"), Timeout: time.Second}
	a := answer()
	Add(context.Background(), m, a)
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "no such socket") {
		t.Errorf("%q", a.Notes)
	}
	a = answer()
	a.Endpoints = a.Endpoints[2:]
	if Add(context.Background(), m, a); len(a.Notes) != 0 {
		t.Errorf("%q", a.Notes)
	}
}
