package certs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func answer(now time.Time) *meshpb.CertificatesResponse {
	at := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	return &meshpb.CertificatesResponse{TrustDomain: "m",
		Authority: []*meshpb.AuthorityCertificate{{Sha256: []byte{1}, Kind: "root", Serial: "ab12", Key: "ECDSA P-256", Signs: true, Trusted: true, NotBeforeNs: at(-time.Hour), NotAfterNs: at(9000 * time.Hour)}},
		Nodes: []*meshpb.NodeCertificates{{Node: "n1", Connected: true, Report: &meshpb.TrustReport{Certificates: []*meshpb.HeldCertificate{
			{Identity: "spiffe://m/ns/shop/sa/web", Serial: "cd34", Issuer: []byte{1}, Key: "ECDSA P-256", NotBeforeNs: at(-time.Hour), NotAfterNs: at(20 * time.Hour), RenewalNs: at(10 * time.Hour)}}}}},
	}
}

// TestWhatIsNotWell changes one thing of what is well.
func TestWhatIsNotWell(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	leaf := func(a *meshpb.CertificatesResponse) *meshpb.HeldCertificate {
		return a.GetNodes()[0].GetReport().GetCertificates()[0]
	}
	for says, change := range map[string]func(*meshpb.CertificatesResponse){
		"": func(*meshpb.CertificatesResponse) {},
		"root ab12, which signs, expires in 29 days; remedy: `heddle certs rotate --root`": func(a *meshpb.CertificatesResponse) {
			a.Authority[0].NotAfterNs = at(29*24*time.Hour + time.Hour)
		},
		"root ab12 expires 3 h ago; remedy: take it out of ca.crt": func(a *meshpb.CertificatesResponse) {
			a.Authority[0].Signs, a.Authority[0].NotAfterNs = false, at(-3*time.Hour)
		},
		"root ab12, which signs, expires in 2 h, and SPIRE has given no other": func(a *meshpb.CertificatesResponse) {
			a.Issuer, a.Authority[0].NotBeforeNs, a.Authority[0].NotAfterNs = "SPIRE", at(-22*time.Hour), at(2*time.Hour)
		},
		"the CA is not what SPIRE has: it is away": func(a *meshpb.CertificatesResponse) { a.Issuer, a.Problem = "SPIRE", "it is away" },
		"trust domain other: its bundle is not refreshed: nobody answers; the last good one is believed, and its last root expires in 3 h": func(a *meshpb.CertificatesResponse) {
			a.Federation = []*meshpb.FederatedBundle{{TrustDomain: "other", Error: "nobody answers", Roots: []*meshpb.AuthorityCertificate{
				{Serial: "1", NotAfterNs: at(3 * time.Hour)}, {Serial: "2", NotAfterNs: at(time.Hour)}}}}
		},
		"trust domain other: there is no bundle, and nobody of it is believed: nobody answers": func(a *meshpb.CertificatesResponse) {
			a.Federation = []*meshpb.FederatedBundle{{TrustDomain: "other", Error: "nobody answers"}}
		},
		"trust domain other: all of its roots have expired": func(a *meshpb.CertificatesResponse) {
			a.Federation = []*meshpb.FederatedBundle{{TrustDomain: "other", Roots: []*meshpb.AuthorityCertificate{{Serial: "1", NotAfterNs: at(-time.Hour)}}}}
		},
		"newest keys of JWT-SVIDs are not in use: jwt.key: nonsense; remedy": func(a *meshpb.CertificatesResponse) { a.JwtProblem = "jwt.key: nonsense" },
		"key 1234567890ab of JWT-SVIDs was to be replaced 2 days ago, and signs on; remedy": func(a *meshpb.CertificatesResponse) {
			a.JwtKeys = []*meshpb.JWTKey{{Id: "1234567890abcdef", State: "signs", UntilNs: at(-50 * time.Hour)}, {Id: "b", State: "retired", UntilNs: at(-50 * time.Hour)}}
		},
		"newest keys are not in use: tls.crt": func(a *meshpb.CertificatesResponse) { a.Problem = "tls.crt: nonsense" },
		"node n1: its agent is not connected": func(a *meshpb.CertificatesResponse) { a.Nodes[0].Connected = false },
		"node n1: its agent has not reported": func(a *meshpb.CertificatesResponse) { a.Nodes[0].Report = nil },
		"web expires in 5 h and is not renewed": func(a *meshpb.CertificatesResponse) {
			leaf(a).NotBeforeNs, leaf(a).NotAfterNs = at(-19*time.Hour), at(5*time.Hour)
		},
		"web expires in 20 h and cannot be renewed: the operator is far away": func(a *meshpb.CertificatesResponse) { leaf(a).Error = "the operator is far away" },
	} {
		a := answer(now)
		change(a)
		r := Of(a, now, defaultWithin)
		if says == "" {
			if !r.OK || len(r.Problems) > 0 || r.Nodes[0].Certificates[0].Issuer != "ab12" || r.Nodes[0].Certificates[0].ExpiresInSeconds != 72000 || r.Authority[0].PostQuantum {
				t.Errorf("%+v", r)
			}
			continue
		}
		var out bytes.Buffer
		if err := r.Print(&out, false); err != nil {
			t.Error(err)
		}
		if r.OK || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], says) || !strings.Contains(out.String(), says) {
			t.Errorf("%q: %v\n%s", says, r.Problems, out.String())
		}
	}
}

// TestRemedies has each kind of certificate end soon, alone and with the root of what signs.
func TestRemedies(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	const (
		toRoot, toIntermediate = "`heddle certs rotate --root`", "`heddle certs rotate --intermediate`"
		complete               = "complete the rotation (`heddle certs rotate --wait`)"
		renew, steps           = "cmctl renew", "docs/certificates.md has the steps"
		outOfCA, outOfRoots    = "take it out of ca.crt", "take it out of roots.crt"
	)
	certs := map[string]*meshpb.AuthorityCertificate{
		"root":   {Kind: "root", Anchors: true, Trusted: true},
		"signer": {Kind: "intermediate", Signs: true, Trusted: true},
		"middle": {Kind: "intermediate", Trusted: true},
		"old":    {Kind: "root", Trusted: true},
		"own":    {Kind: "root", Trusted: true, Further: true},
		"self":   {Kind: "root", Anchors: true, Signs: true, Trusted: true},
		"kept":   {Kind: "root", Anchors: true, Trusted: true, Further: true},
	}
	for _, c := range []struct {
		soon, keeper, rotating string
		want                   []string // of each that ends soon; "": it is well
	}{
		{"self", "", "", []string{toRoot}},
		{"signer", "", "", []string{toIntermediate}},
		{"root", "", "", []string{toRoot}},
		{"kept", "", "", []string{toRoot}},
		{"signer root", "", "", []string{toRoot, toRoot}},
		{"middle", "", "", []string{toRoot}},
		{"old", "", "", []string{outOfCA}},
		{"own", "", "", []string{outOfRoots}},
		{"own root", "", "", []string{outOfRoots, toRoot}},
		{"signer root old own", "", "root", []string{complete, complete, complete, outOfRoots}},
		{"middle", "", "intermediate", []string{complete}},
		{"signer root old", "", "intermediate", []string{complete + ", then " + toRoot, complete + ", then " + toRoot, outOfCA}},
		{"signer", "heddle-system/ca", "", []string{renew}},
		{"signer root", "heddle-system/ca", "", []string{steps, steps}},
		{"root", "heddle-system/ca", "", []string{steps}},
		{"self", "heddle-system/ca", "", []string{steps}},
		{"kept", "heddle-system/ca", "", []string{steps}},
		{"own", "heddle-system/ca", "", []string{outOfRoots}},
	} {
		a := &meshpb.CertificatesResponse{CertManager: c.keeper, Rotation: &meshpb.RotationState{Kind: c.rotating}}
		names := strings.Fields(c.soon)
		for _, name := range names {
			cert := proto.CloneOf(certs[name])
			cert.Serial, cert.NotBeforeNs, cert.NotAfterNs = name, now.Add(-80*24*time.Hour).UnixNano(), now.Add(10*24*time.Hour).UnixNano()
			a.Authority = append(a.Authority, cert)
		}
		r := Of(a, now, defaultWithin)
		if len(r.Problems) != len(names) {
			t.Errorf("%+v: %q", c, r.Problems)
			continue
		}
		for i, problem := range r.Problems {
			says := " " + names[i] + " expires in 10 days; remedy: "
			if a.Authority[i].GetSigns() {
				says = " " + names[i] + ", which signs, expires in 10 days; remedy: "
			}
			if _, remedy, ok := strings.Cut(problem, says); !ok || !strings.HasPrefix(remedy, c.want[i]) && (c.keeper == "" || !strings.Contains(remedy, c.want[i])) || remedy == complete+", then "+toRoot && c.want[i] == complete {
				t.Errorf("%s of %+v: %s", names[i], c, problem)
			}
		}
	}
}

// TestWhatCertManagerReplaces: an intermediate that it renews when a third of it is left is
// well as long as that is not late.
func TestWhatCertManagerReplaces(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	const day = 24 * time.Hour
	for _, c := range []struct {
		left time.Duration
		well bool
	}{{29 * day, true}, {23 * day, true}, {22 * day, false}} {
		signer := &meshpb.AuthorityCertificate{Kind: "intermediate", Signs: true, NotBeforeNs: now.Add(c.left - 90*day).UnixNano(), NotAfterNs: now.Add(c.left).UnixNano()}
		root := &meshpb.AuthorityCertificate{Kind: "root", Anchors: true, NotAfterNs: now.Add(900 * day).UnixNano()}
		a := &meshpb.CertificatesResponse{CertManager: "heddle-system/ca", Authority: []*meshpb.AuthorityCertificate{signer, root}}
		if r := Of(a, now, defaultWithin); r.OK != c.well {
			t.Errorf("%v left: %v", c.left, r.Problems)
		}
	}
}

// TestWhatSPIREReplaces: what SPIRE has signed may last hours only.
func TestWhatSPIREReplaces(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	a := answer(now)
	a.Authority[0].NotBeforeNs, a.Authority[0].NotAfterNs = now.Add(-21*time.Hour).UnixNano(), now.Add(3*time.Hour).UnixNano()
	if r := Of(a, now, defaultWithin); r.OK {
		t.Error("3 h are left of a CA that people replace, and all is well")
	}
	a.Issuer = "SPIRE"
	if r := Of(a, now, defaultWithin); !r.OK {
		t.Errorf("%v", r.Problems)
	}
}

func TestWhatIsAskedFor(t *testing.T) {
	for _, c := range []struct {
		w    what
		want meshpb.RotateCertificatesRequest_Action
		kind string
		bad  bool
	}{
		{what{root: true}, meshpb.RotateCertificatesRequest_ACTION_BEGIN, "root", false},
		{what{intermediate: true, wait: 1}, meshpb.RotateCertificatesRequest_ACTION_BEGIN, "intermediate", false},
		{what{abort: true}, meshpb.RotateCertificatesRequest_ACTION_ABORT, "", false},
		{what{force: true, dry: true}, meshpb.RotateCertificatesRequest_ACTION_FORCE, "", false},
		{what{wait: 1}, 0, "", false},
		{what{}, 0, "", true}, {what{dry: true}, 0, "", true}, {what{root: true, intermediate: true}, 0, "", true},
		{what{root: true, force: true}, 0, "", true}, {what{root: true, dry: true, wait: 1}, 0, "", true},
	} {
		r, err := c.w.request()
		if c.bad != errors.Is(err, reach.ErrUsage) || r.GetAction() != c.want || r.GetKind() != c.kind || r.GetDryRun() != (c.w.dry && !c.bad) {
			t.Errorf("%+v: %v, %v", c.w, r, err)
		}
	}
}

// operator is one whose rotation is complete when it was looked at a few times.
type operator struct {
	meshpb.UnimplementedOperatorAdminServer
	looked atomic.Int32
	begun  atomic.Bool
}

func (o *operator) Certificates(context.Context, *meshpb.CertificatesRequest) (*meshpb.CertificatesResponse, error) {
	a := answer(time.Now())
	a.Rotation = &meshpb.RotationState{Ended: "completed", EndedNs: int64(time.Hour)}
	if o.begun.Load() {
		a.Rotation.EndedNs = int64(2 * time.Hour)
		if o.looked.Add(1) < 3 {
			a.Rotation = &meshpb.RotationState{Kind: "root", Stage: "reissue", Nodes: 2, Done: 1, EndedNs: int64(time.Hour), Waiting: []*meshpb.RotationWait{{Part: "node", Name: "n2", Reason: "is late"}}}
		}
	}
	return a, nil
}

func (o *operator) RotateCertificates(_ context.Context, r *meshpb.RotateCertificatesRequest) (*meshpb.RotateCertificatesResponse, error) {
	if r.GetAction() != meshpb.RotateCertificatesRequest_ACTION_BEGIN {
		return nil, status.Error(codes.FailedPrecondition, "rotation refused: nothing to do; remedy: none")
	}
	o.begun.Store(!r.GetDryRun())
	return &meshpb.RotateCertificatesResponse{Rotation: &meshpb.RotationState{Kind: r.GetKind(), Stage: "distribute", Nodes: 2, Done: 2, EndedNs: int64(time.Hour)}}, nil
}

// TestRotateAndWait runs the command against an operator that answers.
func TestRotateAndWait(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "op.sock")
	fake := &operator{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- admin.Serve(ctx, socket, func(s *grpc.Server) { meshpb.RegisterOperatorAdminServer(s, fake) }, slog.New(slog.DiscardHandler))
	}()
	defer func() { cancel(); <-done }()
	testenv.Eventually(t, 10*time.Second, "the operator answers", func() bool {
		c, err := admin.Dial(t.Context(), socket)
		return err == nil && c.Close() == nil
	})
	run := func(output string, args ...string) (out, log string, err error) {
		var o, l bytes.Buffer
		cmd := Command(Program{Out: &o, Log: &l, Mesh: &reach.Mesh{Operator: socket, Timeout: 10 * time.Second}, Output: &output, NotWell: errors.New("not well")})
		cmd.SetArgs(args)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err = cmd.ExecuteContext(t.Context())
		return o.String(), l.String(), err
	}
	if out, _, err := run("table"); err != nil || !strings.Contains(out, "spiffe://m/ns/shop/sa/web") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _, err := run("table", "rotate", "--root", "--dry-run"); err != nil || !strings.Contains(out, "is possible: 2 of 2 nodes are ready") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, _, err := run("table", "rotate", "--abort"); err == nil || !strings.Contains(err.Error(), "remedy") {
		t.Errorf("abort of nothing: %v", err)
	}
	out, log, err := run("json", "rotate", "--root", "--wait")
	if err != nil || !strings.Contains(log, "n2: is late") {
		t.Fatalf("%v\n%s%s", err, out, log)
	}
	var r Rotation
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Kind != "" || r.Ended != "completed" {
		t.Errorf("%v: %+v", err, r)
	}
	fake.looked.Store(-1000)
	if _, _, err := run("table", "rotate", "--wait=1500ms"); err == nil || !strings.Contains(err.Error(), "it goes on by itself") {
		t.Errorf("a wait that is too short: %v", err)
	}
}
