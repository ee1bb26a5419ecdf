package health

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestRootExpires: the remedy promises what the page that it names says, no more.
func TestRootExpires(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/certificates.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "heddle certs rotate --root --wait") {
		t.Error("docs/certificates.md says otherwise: change the remedy with it")
	}
	for _, tc := range []struct {
		left time.Duration
		ok   bool
	}{{-time.Hour, false}, {29 * 24 * time.Hour, false}, {31 * 24 * time.Hour, true}} {
		r := New()
		r.authority("operator", &meshpb.OperatorAuthority{TrustDomain: "m", RootNotAfterNs: time.Now().Add(tc.left).UnixNano()})
		f := r.Findings[0]
		if r.OK != tc.ok || f.OK != tc.ok || !tc.ok && !strings.Contains(f.Remedy, "`heddle certs rotate --root --wait`") {
			t.Errorf("%v left: %+v", tc.left, f)
		}
	}
}

// TestIssuersRootExpires: one that SPIRE replaces by itself may last days only.
func TestIssuersRootExpires(t *testing.T) {
	for left, ok := range map[time.Duration]bool{-time.Hour: false, 2 * time.Hour: false, 3 * time.Hour: true} {
		r := New()
		now := time.Now()
		r.authority("operator", &meshpb.OperatorAuthority{TrustDomain: "m", Issuer: "SPIRE", RootNotBeforeNs: now.Add(left - 24*time.Hour).UnixNano(), RootNotAfterNs: now.Add(left).UnixNano()})
		if f := r.Findings[0]; r.OK != ok || f.OK != ok || !ok && (!strings.Contains(f.Remedy, "SPIRE") || strings.Contains(f.Remedy, "rotate")) {
			t.Errorf("%v left: %+v", left, f)
		}
	}
}

// TestRefusedObjectsAreNotWell: an object that is refused is not green, whatever else is
// in force, and is said once.
func TestRefusedObjectsAreNotWell(t *testing.T) {
	r := New()
	state := &meshpb.OperatorState{Configuration: &meshpb.OperatorConfiguration{Source: "kubernetes",
		Refusals: []string{"AuthorizationPolicy shop/p: spec: is too large"}, Warnings: []string{"AuthorizationPolicy shop/p: spec: is too large", "Service shop/web: picks nobody"}}}
	r.Operator("operator", state, nil)
	var refused, warnings []Finding
	for _, f := range r.Findings {
		switch f.Name {
		case "refused":
			refused = append(refused, f)
		case "warning":
			warnings = append(warnings, f)
		}
	}
	if r.OK || len(refused) != 1 || refused[0].OK || refused[0].Remedy == "" || len(warnings) != 1 || !warnings[0].OK || warnings[0].Detail != "Service shop/web: picks nobody" {
		t.Errorf("well %v; refused %+v, warnings %+v", r.OK, refused, warnings)
	}
}

// TestBehindIsNotWell: an agent may be behind for a minute, and while it is connected.
func TestBehindIsNotWell(t *testing.T) {
	r := New()
	hour := int64(time.Hour)
	r.Operator("operator", &meshpb.OperatorState{Configuration: &meshpb.OperatorConfiguration{Epoch: 5, Source: "kubernetes"}, Nodes: []*meshpb.OperatorNode{
		{Name: "n1", Connected: true, Epoch: 4, BehindNs: hour}, {Name: "n2", Connected: true, Epoch: 4, BehindNs: int64(time.Minute)},
		{Name: "n3", BehindNs: hour}, {Name: "n4", Connected: true, Epoch: 3, BehindNs: hour, Error: "is older"}}}, nil)
	found := map[string]Finding{}
	for _, f := range r.Findings {
		found[f.Name] = f
	}
	for node, want := range map[string]Finding{
		"n1": {Detail: "has not applied what was published 1h0m0s ago; it is at epoch 4"},
		"n2": {OK: true, Detail: "connected, applied epoch 4 of 5"}, "n3": {},
		"n4": {Detail: "has not applied what was published 1h0m0s ago; it is at epoch 3: is older"},
	} {
		if f := found["node "+node]; f.OK != want.OK || f.Detail != want.Detail || want.Detail != "" && !f.OK && f.Remedy == "" {
			t.Errorf("%s: %+v", node, f)
		}
	}
}

// TestWaypointsAreToldOf: what one has refused is not well, and what it goes by is said.
func TestWaypointsAreToldOf(t *testing.T) {
	r := New()
	r.Operator("operator", &meshpb.OperatorState{Configuration: &meshpb.OperatorConfiguration{Epoch: 5}, Waypoints: []*meshpb.OperatorNode{
		{Name: "shop/gate/a", Connected: true, Epoch: 5}, {Name: "shop/gate/b", Connected: true, Epoch: 4, Error: "no such route"}}}, nil)
	found := map[string]Finding{}
	for _, f := range r.Findings {
		found[f.Name] = f
	}
	if f := found["waypoint shop/gate/a"]; !f.OK || f.Detail != "connected, applied epoch 5 of 5" {
		t.Errorf("%+v", f)
	}
	if f := found["waypoint shop/gate/b"]; r.OK || f.OK || !strings.Contains(f.Detail, "no such route") || f.Remedy == "" {
		t.Errorf("%+v", f)
	}
}

func TestFederatedWorkloads(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		until     int64
		err, says string
		ok        bool
	}{
		{now.Add(time.Hour).UnixNano(), "", "2 workloads at 3 addresses may be connected to", true},
		{now.Add(time.Hour).UnixNano(), "no route", "2 workloads at 3 addresses may be connected to", true}, // `heddle certs` says that it is not refreshed
		{now.Add(-time.Hour).UnixNano(), "", "refused: all of its roots have expired", false},
		{0, "no route", "refused: there is no bundle of it; no route", false},
	} {
		r := New()
		r.federated("operator", []*meshpb.FederatedWorkloads{{TrustDomain: "a.test", Workloads: 2, Addresses: 3, RootsNotAfterNs: tc.until, Error: tc.err}})
		if f := r.Findings[0]; r.OK != tc.ok || f.OK != tc.ok || f.Name != "trust domain a.test" || !strings.Contains(f.Detail, tc.says) || !tc.ok && f.Remedy == "" {
			t.Errorf("%+v", f)
		}
	}
}

// TestMayNotBeAsked: of a program that this user may not ask it is not said that it is to be started.
func TestMayNotBeAsked(t *testing.T) {
	for _, c := range []struct {
		err        error
		want, says string
	}{
		{fmt.Errorf("%w: pods; remedy: ask an administrator", admin.ErrForbidden), "ask an administrator", "may not be asked: pods"},
		{errors.New("no answer in time"), "start", "no answer in time"},
		{errors.New("pod heddle-agent-1 of a node forbidden.example; remedy: look"), "start", "forbidden.example; remedy: look"}, // a word is no kind
	} {
		r := New()
		r.Agent("n1", nil, c.err)
		r.Operator("operator", nil, c.err)
		for _, f := range r.Findings {
			if f.OK || !strings.HasPrefix(f.Remedy, c.want) || !strings.HasSuffix(f.Detail, c.says) {
				t.Errorf("%v: %+v", c.err, f)
			}
		}
	}
}
