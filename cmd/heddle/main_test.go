package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fakeAgent is a node that is well, unless sick.
type fakeAgent struct {
	node string
	sick bool
	idle bool          // nobody has connected
	age  time.Duration // of its history; without one, there is a connection that is open, too
}

func (f *fakeAgent) Status(context.Context) (*meshpb.AgentStatus, error) {
	now := time.Now()
	s := &meshpb.AgentStatus{
		Node: f.node, Version: "v1", Fips140: "on, Go Cryptographic Module v1.0.0", StartedNs: now.Add(-time.Hour).UnixNano(),
		Configuration: &meshpb.ConfigurationStatus{Synced: true, Revision: "0123456789abcdef", Epoch: 3, Source: "operator"},
		Operator:      &meshpb.OperatorStatus{Target: "100.64.0.1:15012", Connected: true},
		Pods:          []*meshpb.PodStatus{{Workload: "shop/" + f.node, State: "enrolled", Mode: "STRICT"}},
		Certificates: []*meshpb.CertificateStatus{{Identity: "spiffe://m/ns/shop/sa/web", NotAfterNs: now.Add(time.Hour).UnixNano(), RenewalNs: now.UnixNano()},
			{Identity: "spiffe://demo.heddle.dev/ns/shop/sa/web", Serial: "ab12", NotAfterNs: now.Add(time.Hour).UnixNano(), RenewalNs: now.UnixNano()}},
		Checks: []*meshpb.Check{{Name: "open files", Ok: true, Detail: "the limit is 20000: enough for 5301 connections of one pod while others have none"}},
	}
	if f.sick {
		s.Configuration = &meshpb.ConfigurationStatus{}
		s.Operator = &meshpb.OperatorStatus{Target: "100.64.0.1:15012", Error: "connection refused"}
		s.Pods[0].State, s.Pods[0].Error = "failed", "XDP on the veth"
		s.Certificates = append(s.Certificates,
			&meshpb.CertificateStatus{Identity: "spiffe://m/a", Error: "operator is away"},
			&meshpb.CertificateStatus{Identity: "spiffe://m/b", NotAfterNs: now.Add(-time.Hour).UnixNano()},
			&meshpb.CertificateStatus{Identity: "spiffe://m/c", NotAfterNs: now.Add(time.Hour).UnixNano(), Error: "operator is away"})
		s.Checks = append(s.Checks, &meshpb.Check{Name: "gate of shop/x", Detail: "not first", Remedy: "remove the other program"},
			&meshpb.Check{Name: "CNI configuration", Warning: true, Detail: "in 00-multus.conf itself", Remedy: "drain the node"})
	}
	return s, nil
}

func (f *fakeAgent) Connections(context.Context) ([]flow.Record, error) {
	if f.idle || f.age > 0 {
		return nil, nil
	}
	return []flow.Record{sampleFlow(f.node, mesh.VerdictAllow, mesh.ReasonNoPolicy)}, nil
}

func (f *fakeAgent) Prove(_ context.Context, pod string) (*meshpb.ProveResponse, error) {
	if pod != "" && pod != "shop/"+f.node {
		return nil, fs.ErrNotExist
	}
	proof := &meshpb.PodProof{Workload: "shop/" + f.node, DropsUnreported: 2,
		Counters: []*meshpb.GateCounter{
			{Class: "tunnel", Direction: "outbound", Packets: 10, Bytes: 12345},
			{Class: "egress", Direction: "outbound", Packets: 2, Bytes: 99},
			{Class: "dropped", Direction: "inbound", Reason: "KernelUDP", Packets: 1, Bytes: 60},
		},
		Peers: []*meshpb.GatePeer{
			{Class: "egress", Direction: "outbound", Address: "192.0.2.7", Port: 443, Packets: 2, Bytes: 99},
			{Class: "dropped", Direction: "inbound", Reason: "KernelUDP", Address: "fd00::9", Port: 53, Protocol: 17, Packets: 1},
		}}
	if f.sick {
		proof.Error = "gate is not attached"
	}
	return &meshpb.ProveResponse{Node: f.node, Pods: []*meshpb.PodProof{proof}}, nil
}

func sampleFlow(node string, v mesh.Verdict, r mesh.Reason) flow.Record {
	return flow.Record{
		Start: time.Now().Add(-time.Second), Duration: time.Second, Node: node, Verdict: v, Reason: r, Rule: 0, Direction: flow.DirectionInbound,
		Policy: mesh.Key{Namespace: "shop", Name: "only-api"}, Wire: flow.Wire{Transport: flow.TransportTunnel}, BytesSent: 1234,
		Source: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "web"}, Addr: netip.MustParseAddrPort("10.244.2.5:4000"),
			Identity: spiffeid.RequireFromString("spiffe://demo.heddle.dev/ns/shop/sa/web")},
		Destination: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "db"}, Addr: netip.MustParseAddrPort("10.244.2.11:80")},
	}
}

// fakeOperator has one node and one token.
type fakeOperator struct {
	meshpb.UnimplementedOperatorAdminServer
}

func (fakeOperator) Status(_ context.Context, r *meshpb.OperatorStateRequest) (*meshpb.OperatorState, error) {
	var policies []*meshpb.OperatorPolicy
	if r.GetPolicies() {
		policies = append(policies, &meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Accepted: true, Nodes: 1, Live: 1})
	}
	return &meshpb.OperatorState{
		Policies: policies,
		Version:  "v1", Address: "100.64.0.1:15012",
		Configuration: &meshpb.OperatorConfiguration{Folder: "/mesh", Epoch: 3, Workloads: 2},
		Authority:     &meshpb.OperatorAuthority{TrustDomain: "m", RootNotAfterNs: time.Now().Add(1000 * time.Hour).UnixNano()},
		Nodes:         []*meshpb.OperatorNode{{Name: "n1", Connected: true, Epoch: 3}},
	}, nil
}

func (fakeOperator) Certificates(context.Context, *meshpb.CertificatesRequest) (*meshpb.CertificatesResponse, error) {
	now := time.Now()
	return &meshpb.CertificatesResponse{TrustDomain: "m",
		Authority: []*meshpb.AuthorityCertificate{{Sha256: []byte{1}, Kind: "root", Subject: "CN=Heddle mesh root", Serial: "ab12", Key: "ECDSA P-256", Signs: true, Trusted: true,
			NotBeforeNs: now.Add(-time.Hour).UnixNano(), NotAfterNs: now.Add(10000 * time.Hour).UnixNano()}},
		Nodes: []*meshpb.NodeCertificates{{Node: "n1", Connected: true, ReportedNs: now.UnixNano(), Report: &meshpb.TrustReport{Roots: [][]byte{{1}},
			Certificates: []*meshpb.HeldCertificate{{Identity: "spiffe://m/ns/shop/sa/web", Serial: "cd34", Issuer: []byte{1}, Key: "ECDSA P-256",
				NotBeforeNs: now.Add(-time.Hour).UnixNano(), NotAfterNs: now.Add(20 * time.Hour).UnixNano(), RenewalNs: now.Add(10 * time.Hour).UnixNano()}}}}},
		Rotation: &meshpb.RotationState{EndedNs: now.UnixNano(), Ended: "completed"},
	}, nil
}

func (fakeOperator) RotateCertificates(_ context.Context, r *meshpb.RotateCertificatesRequest) (*meshpb.RotateCertificatesResponse, error) {
	if r.GetAction() == meshpb.RotateCertificatesRequest_ACTION_ABORT {
		return nil, status.Error(codes.FailedPrecondition, "rotation refused: no rotation is under way")
	}
	return &meshpb.RotateCertificatesResponse{Rotation: &meshpb.RotationState{Kind: r.GetKind(), Stage: "distribute", Nodes: 2, Done: 1,
		Waiting: []*meshpb.RotationWait{{Part: "node", Name: "n2", Reason: "its agent is not connected", Forcible: true}}}}, nil
}

func (fakeOperator) CreateJoinToken(_ context.Context, r *meshpb.CreateJoinTokenRequest) (*meshpb.CreateJoinTokenResponse, error) {
	return &meshpb.CreateJoinTokenResponse{Token: "heddle-join:v1:" + r.GetNode(), Id: "0123456789ab", ExpiresNs: time.Now().UnixNano()}, nil
}

func (fakeOperator) ListJoinTokens(context.Context, *meshpb.ListJoinTokensRequest) (*meshpb.ListJoinTokensResponse, error) {
	return &meshpb.ListJoinTokensResponse{Tokens: []*meshpb.JoinToken{{Id: "0123456789ab", Node: "n3", State: "pending"}}}, nil
}

func (fakeOperator) RevokeJoinToken(_ context.Context, r *meshpb.RevokeJoinTokenRequest) (*meshpb.RevokeJoinTokenResponse, error) {
	if r.GetId() != "0123456789ab" {
		return nil, status.Error(codes.NotFound, "no such token")
	}
	return &meshpb.RevokeJoinTokenResponse{}, nil
}

// world is a local mesh on record whose programs are fakes. It returns the state
// folder, and the agents' rings.
func world(t *testing.T, agents ...*fakeAgent) (string, []*flow.Ring) {
	t.Helper()
	state, err := os.MkdirTemp("/tmp", "heddle-cli") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(state, "m")
	plan := map[string]any{"name": "m", "folder": "/mesh"}
	var nodes []any
	var rings []*flow.Ring
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(agents)+1)
	t.Cleanup(func() {
		cancel()
		for range len(agents) + 1 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.DiscardHandler)
	for _, a := range agents {
		nodes = append(nodes, map[string]any{"name": a.node, "netns": "heddle-m-" + a.node,
			"pods": []any{map[string]any{"workload": "shop/" + a.node, "netns": "/run/netns/none", "addresses": []string{"10.0.0.1"}}}})
		socket := filepath.Join(dir, "nodes", a.node, "agent.sock")
		if err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o700), os.WriteFile(filepath.Join(filepath.Dir(socket), "agent.log"), []byte("it started\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		ring := flow.NewRing(64)
		rings = append(rings, ring)
		server, err := admin.NewServer(admin.Config{Node: a.node, Socket: socket, Ring: ring, History: a.history(t), Agent: a, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- server.Run(ctx) }()
	}
	operatorSocket := filepath.Join(dir, "operator.sock")
	go func() {
		done <- admin.Serve(ctx, operatorSocket, func(s *grpc.Server) { meshpb.RegisterOperatorAdminServer(s, fakeOperator{}) }, log)
	}()
	plan["nodes"] = nodes
	operatorLog := filepath.Join(dir, "operator.log")
	record, err := json.Marshal(map[string]any{"plan": plan, "operator": map[string]any{"log": operatorLog}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "mesh.json"), record, 0o600), os.WriteFile(operatorLog, []byte("it started\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, a := range agents {
		awaitSocket(t, filepath.Join(dir, "nodes", a.node, "agent.sock"))
	}
	awaitSocket(t, operatorSocket)
	return state, rings
}

func awaitSocket(t *testing.T, path string) {
	t.Helper()
	testenv.Eventually(t, 5*time.Second, path+" answers", func() bool {
		c, err := admin.Dial(t.Context(), path)
		return err == nil && c.Close() == nil
	})
}

// heddle runs a command line and returns its exit code and output.
func heddle(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	var out, log bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	code := run(ctx, append([]string{"heddle"}, args...), &out, &log, false)
	return code, out.String(), log.String()
}

func TestExitCodes(t *testing.T) {
	well, _ := world(t, &fakeAgent{node: "n1"}, &fakeAgent{node: "n2"})
	sick, _ := world(t, &fakeAgent{node: "n1", sick: true})
	none := t.TempDir()
	const anywhere = "" // --state-dir is not given
	t.Setenv("KUBECONFIG", none+"/k")
	for _, tc := range []struct {
		state string
		args  string
		code  int
		want  string // in the output or the message
	}{
		{well, "check", 0, "All is well."},
		{sick, "check", 1, "remove the other program"},
		{sick, "check", 1, "1 warned"},
		{sick, "check", 1, "7 of"},
		{none, "check --name m", 3, "heddle local up"},
		{none, "flows --name m", 3, "no such mesh"},
		{none, "flows --socket " + none + "/s", 3, "no such socket"},
		{well, "flows --node n9", 2, "there are n1, n2"},
		{well, "flows --reason strict", 2, "did you mean StrictPlaintext"},
		{well, "flows -o yaml", 2, "use table or json"},
		{well, "flows --last -1", 2, "from 0 on"},
		{well, "flows extra", 2, "--help"},
		{well, "nonsense", 2, "unknown command"},
		{well, "flows --nonsense", 2, "unknown flag"},
		{well, "prove", 0, "12 kB"},
		{well, "prove shop/n2", 0, "KernelUDP: from fd00::9 to port 53"},
		{well, "prove shop/none", 1, "heddle check"},
		{well, "prove --attack shop/none", 2, "shop/n1, shop/n2"},
		{well, "prove --attack shop/n1 shop/n2", 2, "one too many"},
		{sick, "prove", 1, "gate is not attached"},
		{well, "join-token revoke x", 1, "no such token"},
		{well, "join-token create", 2, "accepts 1 arg"},
		{none, "join-token list --name m", 3, "no such mesh"},
		{none, "join-token list --operator-socket " + none + "/o", 3, "no such socket"},
		{well, "status", 0, "in sync"},
		{well, "status", 0, "v1 (FIPS 140-3)"},
		{well, "status -o json", 0, `"fips140": "on, Go Cryptographic Module v1.0.0"`},
		{well, "status --policies", 0, "NetworkPolicy shop/db"},
		{well, "status -o json", 0, `"kind": "NetworkPolicy"`},
		{sick, "status", 1, "not well: pod shop/n1 on node n1 is failed: XDP on the veth"},
		{none, "status --name m", 3, "no such mesh"},
		{none, "status --socket " + none + "/s", 3, "no such socket"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh", 0, "tunnel"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --socket " + well + "/m/nodes/n1/agent.sock", 0, "certificate of shop/web: ab12 until "},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --socket " + none + "/s", 0, "certificates and key exchange: agent: admin socket"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --method GET --path /x", 0, "request GET /x of web.shop"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --path /x", 0, "the request is not seen: "},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --path x", 2, "--path"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --header x", 2, "--header"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --host a/b", 2, "--host"},
		{none, "explain shop/customer shop/web --folder " + none + "/x --method TRACE", 2, "--method"},
		{none, "explain shop/customer shop/web --folder ../../e2e/demo/mesh --method=", 2, "--method is empty"},
		{none, "explain shop/customer shop/web:81 --folder ../../e2e/demo/mesh", 1, "no such port"},
		{none, "explain shop/customer shop/nobody --folder ../../e2e/demo/mesh", 2, "there are shop/api"},
		{none, "explain shop/customer shop/web --folder " + none + "/x", 5, "no such file"},
		{none, "explain shop/customer shop/web --folder testdata/invalid", 5, "spec.rules: has 65 entries, 64 are possible; take some out"},
		{none, "explain shop/customer shop/web --folder testdata/invalid -o json", 5, `"field": "spec.rules[0].to[0].ports[1]"`},
		{none, "explain shop/customer shop/web --name m", 3, "no such mesh"},
		{none, "analyze -f testdata/analyze", 1, "name: db-only-api-heddle-tunnel"},
		{none, "analyze -f testdata/analyze -n bank", 0, "Nothing is cut off."},
		{none, "analyze -f " + none + "/x", 5, "no such file"},
		{none, "explain shop/customer shop/web --folder " + none + "/x -o json", 5, `"valid": false`},
		{none, "validate " + none + "/nowhere -o json", 5, `"text": "read objects: stat `},
		{none, "analyze -f testdata/invalid", 5, "many.yaml: document 2: AuthorizationPolicy shop/many: spec.rules: has 65 entries"},
		{none, "suggest shop --against testdata/invalid", 5, "spec.rules: has 65 entries"},
		{none, "suggest shop --against " + none + "/x", 5, "no such file"},
		{none, "simulate -f testdata/simulate/policy.yaml --against testdata/invalid --flows testdata/simulate/flows.json", 5, "spec.rules: has 65 entries"},
		{none, "simulate -f testdata/invalid/many.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 5, "spec.rules: has 65 entries"},
		{none, "local up --dry-run --name x --file testdata/invalid", 5, "spec.rules: has 65 entries"},
		{none, "local up --dry-run --name x --file testdata/invalid/many.yaml", 5, "name the folder that it is in"},
		{none, "help nonsense", 2, `there is no command "nonsense" to help with: ` + "`heddle help` lists"},
		{none, "help local nonsense", 2, `there is no command "local nonsense"`},
		{none, "help local up", 0, "--create-pods"},
		{none, "completion nonsense", 2, `there is no completion for "nonsense": there are bash, fish, powershell and zsh`},
		{none, "completion", 0, "completion [command]"},
		{none, "analyze --name m", 2, "for Kubernetes clusters"},
		{well, "history", 0, "PolicyDeny shop/only-api[0]"},
		{well, "history -n bank -o json", 0, `{"coverage":{"node":"n2"`},
		{well, "history --since -1h", 2, "use a positive duration"},
		{well, "history --since 1w", 0, "HOUR"},
		{well, "history --since 7", 2, "\"7\" is no duration: write such as 30m, 12h, 7d, 1w or 1d12h"},
		{well, "flows --since 1d12h", 0, "VERDICT"},
		{well, "flows --since 7days", 2, "neither a duration (5m, 7d, 1d12h) nor a time"},
		{none, "history --name m", 3, "no such mesh"},
		{none, "simulate -f testdata/simulate/policy.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 0, "Nothing would break."},
		{none, "simulate -f testdata/simulate/breaking.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 4, "deny PolicyNoMatch"},
		{well, "simulate -f testdata/simulate/breaking.yaml --against ../../e2e/demo/mesh", 0, "Nothing would break."},
		{none, "simulate -f testdata/simulate/breaking.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json -n bank", 2, "-n bank: there is no such namespace"},
		{none, "simulate --against ../../e2e/demo/mesh --delete AuthorizationPolicy/shop/x --flows testdata/simulate/flows.json", 2, "no such object"},
		{none, "simulate --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 2, "nothing would change"},
		{none, "simulate -f testdata/simulate/misspelt.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 0, `picks no workload of namespace "shop"`},
		{none, "simulate -f testdata/simulate/misspelt.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json -o json", 0, `"warnings": [`},
		{none, "simulate -f testdata/simulate/policy.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/empty.yaml", 1, "line 1"},
		{none, "simulate -f testdata/simulate/policy.yaml --against ../../e2e/demo/mesh --flows /dev/null", 1, "is empty"},
		{none, "suggest shop --against ../../e2e/demo/mesh --flows /dev/null", 1, "is empty"},
		{none, "simulate -f testdata/simulate/flows.json --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 5, "apiVersion or kind"},
		{none, "simulate -f testdata/simulate/policy.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/policy.yaml", 1, "heddle history -o json"},
		{none, "simulate -f testdata/simulate/policy.yaml --name m", 3, "or name a folder with --against"},
		{none, "simulate -f testdata/simulate/udp/change.yaml --against testdata/simulate/udp/mesh --flows testdata/simulate/udp/flows.json", 5, "policies about UDP are off"},
		{none, "validate testdata/simulate/udp/mesh --experimental-udp", 0, "use --udp-by-identity"},
		{none, "simulate -f testdata/simulate/policy.yaml --against ../../e2e/demo/mesh --flows testdata/simulate/udp/flows.json", 0, "680 flows over UDP passed, and are not judged: give --udp-by-identity"},
		{none, "suggest shop --against ../../e2e/demo/mesh --flows testdata/simulate/udp/flows.json", 0, "no rule for 680 flows over UDP that passed: give --udp-by-identity"},
		{none, "suggest shop --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 0, "name: web-clients"},
		{none, "suggest legacy --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 1, "heddle enroll legacy"},
		{none, "suggest nowhere --against ../../e2e/demo/mesh --flows testdata/simulate/flows.json", 2, "there is no namespace nowhere among the objects"},
		{none, "suggest --against ../../e2e/demo/mesh", 2, "accepts 1 arg"},
		{none, "enroll shop --kubeconfig " + none + "/k", 3, "name one with --kubeconfig"},
		{none, "enroll", 2, "accepts 1 arg(s), received 0; use: heddle enroll NAMESPACE [flags]"},
		{none, "unenroll", 2, "; use: heddle unenroll NAMESPACE [flags]"},
		{none, "explain shop/web", 2, "; use: heddle explain SRC DST[:PORT] [flags]"},
		{none, "join-token create", 2, "; use: heddle join-token create NODE [flags]"},
		{none, "version x", 2, "; use: heddle version [flags]"},
		{well, "local status", 1, "ended"},
		{none, "local status --name m", 3, "no such mesh"},
		{none, "local down --name m", 0, "nothing to take down"},
		{well, "certs", 0, "ab12"},
		{none, "certs --name m", 3, "no such mesh"},
		{none, "certs --socket " + none + "/s", 3, "no operator: run this where it runs, name its socket with --operator-socket, or a cluster with --kubeconfig"},
		{none, "certs --operator-socket " + none + "/o", 3, "no such socket"},
		{well, "certs rotate", 2, "choose one of --root, --intermediate, --abort and --force"},
		{well, "certs rotate --root --abort", 2, "choose one of --root"},
		{well, "certs rotate --root --dry-run --wait", 2, "--dry-run begins nothing to --wait for"},
		{none, "local up", 2, "--file is needed"},
		{none, "local up --file " + none, 5, "Mesh"},
		{none, "local up --file " + none + "/nowhere", 5, "no such file"},
		{none, "validate " + none + "/nowhere", 5, "no such file"},
		{none, "validate testdata/invalid", 1, "many.yaml:10 (document 2): AuthorizationPolicy shop/many: spec.rules: has 65 entries, 64 are possible"},
		{none, "validate testdata/invalid -o json", 1, `"text": "port 80 is given twice"`},
		{none, "validate testdata/invalid/mesh.yaml", 1, `named "shop", or correct the name; or, when it is in another file, name the folder of both`},
		{none, "validate testdata/invalid/many.yaml", 1, "Mesh default: is missing; add an object of apiVersion heddle.dev/v1alpha1 and kind Mesh, with metadata.name, spec.trustDomain and spec.clusterRanges; or, when it is in another file"},
		{none, "validate ../../e2e/demo/mesh/00-mesh.yaml", 0, "Valid: 0 workloads"},
		{none, "validate main.go", 5, "main.go is not named .yaml, .yml or .json; remedy: name it so"},
		{well, "logs n1", 0, "it started"},
		{well, "logs n9", 2, "there are n1, n2"},
		{well, "exec shop/none -- true", 1, "shop/n1, shop/n2"},
		{well, "exec shop/n1", 2, "requires at least 2"},
		{well, "version", 0, "heddle dev"},
		{anywhere, "install --dry-run --set mesh.clusterRanges={10.0.0.0/8}", 0, "kind: DaemonSet"},
		{anywhere, "install --dry-run --set mesh.clusterRanges={10.0.0.0/8} -o json", 0, "\"kind\": \"List\""},
		{anywhere, "install --dry-run --set mesh.clusterRanges={10.244.0.0/16} --set fips140=true", 0, "value: fips140=on"},
		{anywhere, "install --dry-run --set mesh.clusterRanges={all}", 2, "/mesh/clusterRanges/0"},
		{anywhere, "install --set nope=1 --dry-run --kubeconfig " + none + "/k", 2, "additional properties 'nope' not allowed"},
		{anywhere, "install --set operator.replicas=x --kubeconfig " + none + "/k", 2, "/operator/replicas"},
		{anywhere, "upgrade --set nope=1 --dry-run=server --kubeconfig " + none + "/k", 2, "additional properties 'nope' not allowed"},
		{anywhere, "install --kubeconfig " + none + "/k", 3, "name one with --kubeconfig"},
		{anywhere, "check --cluster --kubeconfig " + none + "/k", 3, "name one with --kubeconfig"},
		// Flags that do nothing are refused, not taken no notice of.
		{none, "install", 2, "--state-dir does nothing with `heddle install`"},
		{anywhere, "install --node n1", 2, "--node does nothing with `heddle install`"},
		{anywhere, "upgrade --timeout 1s", 2, "--timeout does nothing with `heddle upgrade`"},
		{anywhere, "upgrade --socket x", 2, "--socket does nothing with `heddle upgrade`"},
		{anywhere, "install --name m", 2, "--name does nothing with `heddle install`"},
		{anywhere, "uninstall --operator-socket x", 2, "--operator-socket does nothing"},
		{anywhere, "uninstall --waypoint-socket x", 2, "--waypoint-socket does nothing"},
		{anywhere, "uninstall --udp-by-identity", 2, "--udp-by-identity does nothing"},
		{anywhere, "uninstall -o json", 2, "--output does nothing with `heddle uninstall`"},
		{anywhere, "install --dry-run --wait 1m", 2, "--wait does nothing with --dry-run=client"},
		{none, "check --cluster", 2, "--state-dir does nothing with `heddle check --cluster`"},
		{anywhere, "check --cluster --name m", 2, "--name does nothing with `heddle check --cluster`"},
		{anywhere, "check --cluster --socket x", 2, "--socket does nothing"},
		{anywhere, "check --cluster --operator-socket x", 2, "--operator-socket does nothing"},
		{well, "check --waypoint-socket x", 2, "--waypoint-socket does nothing with `heddle check`"},
		{well, "check --udp-by-identity", 2, "--udp-by-identity does nothing"},
		{well, "check --name m --kubeconfig x", 2, "--kubeconfig does nothing"},
		{well, "check --name m --context x", 2, "--context does nothing"},
		{well, "check --system-namespace x", 2, "--system-namespace does nothing"},
	} {
		args := append(strings.Fields(tc.args), "--state-dir", tc.state)
		if tc.state == anywhere {
			args = args[:len(args)-2]
		}
		code, out, log := heddle(t, args...)
		if strings.HasPrefix(tc.args, "exec") { // its flags come before the dashes
			code, out, log = heddle(t, append([]string{"--state-dir", tc.state}, strings.Fields(tc.args)...)...)
		}
		if code != tc.code || !strings.Contains(out+log, tc.want) {
			t.Errorf("heddle %s: exit %d, want %d with %q:\n%s%s", tc.args, code, tc.code, tc.want, out, log)
		}
	}
}

func TestFlowsOfAllNodes(t *testing.T) {
	state, rings := world(t, &fakeAgent{node: "n1"}, &fakeAgent{node: "n2"})
	for i := range 6 {
		rings[i%2].Add(sampleFlow([]string{"n1", "n2"}[i%2], mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	}
	code, out, _ := heddle(t, "flows", "--state-dir", state, "--last", "5")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 6 || !strings.HasPrefix(lines[0], "TIME") {
		t.Fatalf("exit %d, want a header and 5 flows:\n%s", code, out)
	}
	for _, want := range []string{"deny", "PolicyDeny shop/only-api[0]", "shop/web:4000", "shop/db:80", "1.2 kB"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("no %q in %q", want, lines[1])
		}
	}
	reason := strings.Index(lines[0], "REASON")
	if !strings.HasPrefix(lines[3][reason:], "PolicyDeny") {
		t.Errorf("columns are not aligned:\n%s", out)
	}
	_, out, _ = heddle(t, "flows", "--state-dir", state, "-o", "json", "--node", "n1", "--verdict", "deny")
	objects := 0
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); objects++ {
		var f struct{ Node, Reason, Policy string }
		if err := dec.Decode(&f); err != nil || f.Node != "n1" || f.Reason != "PolicyDeny" || f.Policy != "shop/only-api" {
			t.Errorf("%v: %+v", err, f)
		}
	}
	if objects != 3 || strings.Count(out, "\n") != 3 {
		t.Errorf("want 3 lines of an object each:\n%s", out)
	}
}

// TestFollowColours follows until a flow of each node has come.
func TestFollowColours(t *testing.T) {
	state, rings := world(t, &fakeAgent{node: "n1"}, &fakeAgent{node: "n2"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := &lines{added: make(chan struct{}, 64)}
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"heddle", "flows", "-f", "--wide", "--state-dir", state}, seen, seen, true)
	}()
	for _, r := range rings {
		r.Add(sampleFlow("x", mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	}
	for range 3 {
		select {
		case <-seen.added:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came")
		}
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("interrupted: exit %d", code)
	}
	if !strings.Contains(seen.String(), "\x1b[31mdeny\x1b[0m") || !strings.Contains(seen.String(), "spiffe://demo.heddle.dev/ns/shop/sa/web") {
		t.Errorf("neither colour nor identity:\n%q", seen.String())
	}
}

// lines tells of each write.
type lines struct {
	bytes.Buffer
	added chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	n, err := l.Buffer.Write(p)
	l.added <- struct{}{}
	return n, err
}

// TestJSONEverywhere has every command that prints anything print JSON.
func TestJSONEverywhere(t *testing.T) {
	state, rings := world(t, &fakeAgent{node: "n1"})
	rings[0].Add(sampleFlow("n1", mesh.VerdictAllow, mesh.ReasonNoPolicy))
	for _, args := range []string{"check", "flows", "connections", "prove", "join-token create n3", "join-token list", "join-token revoke 0123456789ab",
		"local status", "version", "status", "simulate -f testdata/simulate/policy.yaml --against ../../e2e/demo/mesh", "suggest shop --against ../../e2e/demo/mesh", "explain shop/customer shop/web --folder ../../e2e/demo/mesh", "analyze -f testdata/analyze", "validate ../../e2e/demo/mesh", "validate ../../internal", "local up --dry-run --file ../../e2e/demo/mesh --name x", "local down --name nosuch"} {
		_, out, log := heddle(t, append(strings.Fields(args), "-o", "json", "--state-dir", state)...)
		if !json.Valid([]byte(out)) {
			t.Errorf("heddle %s: no JSON:\n%s%s", args, out, log)
		}
	}
}
