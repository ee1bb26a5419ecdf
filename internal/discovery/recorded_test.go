package discovery

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// What the ends of each version of the stream said of the same mesh: agents.bin and
// operator.bin are the messages of a node that connects with nothing and follows one
// change, last-good.bin is what it kept. They are played for ever, also when this
// version would say it otherwise, for as long as an end of that version may be there;
// they are written only when they are missing and HEDDLE_RECORD is set.
//
// v1 is what NetworkPolicies came with. Since v2, a node that has nothing is told first
// what all are told, and then its own in messages apart: a workload of its own twice.
var recordings = []string{"v1", "v2"}

// recordedViews are what they are about, before the change and after it.
func recordedViews(t *testing.T) [2]*mesh.View {
	t.Helper()
	return [2]*mesh.View{networkView(t, 10), networkView(t, 300)}
}

// conversation is what one side said: each message with its length before it, as
// four bytes, the highest first.
type conversation struct {
	sync.Mutex
	agent, operator []byte
}

func framed(all, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(all, uint32(len(body))), body...)
}

func unframed[M any, P interface {
	*M
	proto.Message
}](t *testing.T, all []byte) (messages []P) {
	t.Helper()
	for len(all) > 4 {
		n := binary.BigEndian.Uint32(all)
		m := P(new(M))
		if err := proto.Unmarshal(all[4:4+n], m); err != nil {
			t.Fatal(err)
		}
		messages, all = append(messages, m), all[4+n:]
	}
	return messages
}

// record is an operator's stream whose messages are kept.
type record struct {
	grpc.ServerStream
	kept *conversation
}

func (r record) RecvMsg(m any) error {
	if err := r.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.(proto.Message))
	r.kept.Lock()
	defer r.kept.Unlock()
	r.kept.agent = framed(r.kept.agent, body)
	return err
}

func (r record) SendMsg(m any) error {
	body, err := newCodec().Marshal(m) // what is sent may be encoded already
	if err != nil {
		return err
	}
	r.kept.Lock()
	r.kept.operator = framed(r.kept.operator, body.Materialize())
	r.kept.Unlock()
	return r.ServerStream.SendMsg(m)
}

// converse is what this version's ends say to each other, and what the agent keeps.
func converse(t *testing.T) (agent, operator, lastGood []byte) {
	t.Helper()
	var kept conversation
	o := startOperator(t, nil, grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, serve grpc.StreamHandler) error {
		return serve(srv, record{s, &kept})
	}))
	views, dir := recordedViews(t), t.TempDir()
	o.Publish(snapshotOf(t, views[0], 1))
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	a.awaitEpoch(t, 1)
	o.Publish(snapshotOf(t, views[1], 2))
	a.awaitEpoch(t, 2)
	testenv.Eventually(t, time.Minute, "the operator has heard the last answer", func() bool {
		nodes := o.Nodes()
		return len(nodes) == 1 && nodes[0].Epoch == 2
	})
	a.stop()
	o.stop()
	lastGood, err := os.ReadFile(filepath.Join(dir, "last-good"))
	if err != nil {
		t.Fatal(err)
	}
	return kept.agent, kept.operator, lastGood
}

func TestRecord(t *testing.T) {
	agent, operator, lastGood := converse(t)
	newest := filepath.Join("testdata", recordings[len(recordings)-1])
	for name, said := range map[string][]byte{"agent.bin": agent, "operator.bin": operator, "last-good.bin": lastGood} {
		path := filepath.Join(newest, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && os.Getenv("HEDDLE_RECORD") != "" {
			if err := errors.Join(os.MkdirAll(newest, 0o755), os.WriteFile(path, said, 0o644)); err != nil {
				t.Fatal(err)
			}
		} else if err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(agent, recorded(t, filepath.Base(newest), "agent.bin")) || !reflect.DeepEqual(saidOf(unframed[discoveryv3.DeltaDiscoveryResponse](t, operator)),
		saidOf(unframed[discoveryv3.DeltaDiscoveryResponse](t, recorded(t, filepath.Base(newest), "operator.bin")))) {
		t.Errorf("this version's ends do not say what %s has: add a version to recordings, set HEDDLE_RECORD, and see that the tests of those before hold", newest)
	}
}

func recorded(t *testing.T, version, name string) []byte {
	t.Helper()
	said, err := os.ReadFile(filepath.Join("testdata", version, name))
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// saidOf is what an operator's messages say of resources up to each commit, by kind and
// name, in however many messages.
func saidOf(messages []*discoveryv3.DeltaDiscoveryResponse) (rounds []map[string]string) {
	all := map[string]string{}
	for _, m := range messages {
		if m.GetTypeUrl() == resources.KindCommit.TypeURL() { // it is signed, and has the revision's name
			rounds = append(rounds, maps.Clone(all))
			continue
		}
		for _, r := range m.GetResources() {
			all[m.GetTypeUrl()+" "+r.GetName()] = r.GetVersion() + fmt.Sprintf("%x", r.GetResource().GetValue())
		}
		for _, name := range m.GetRemovedResources() {
			delete(all, m.GetTypeUrl()+" "+name)
		}
	}
	return rounds
}

// TestRecordedAgents: an agent of each version gets from this version's operator
// what it got from its own, each resource to the byte and each round as a whole, as long
// as nobody uses what is new.
func TestRecordedAgents(t *testing.T) {
	for _, version := range recordings {
		t.Run(version, func(t *testing.T) {
			o := startOperator(t, nil)
			views := recordedViews(t)
			o.Publish(snapshotOf(t, views[0], 1))
			stream := raw(t, o, "n1")
			answers := map[string]*discoveryv3.DeltaDiscoveryRequest{} // how it answers, by type
			for _, m := range unframed[discoveryv3.DeltaDiscoveryRequest](t, recorded(t, version, "agent.bin")) {
				if m.GetResponseNonce() != "" {
					answers[m.GetTypeUrl()] = m
				} else if err := stream.Send(m); err != nil {
					t.Fatal(err)
				}
			}
			var got []*discoveryv3.DeltaDiscoveryResponse
			for commits := 0; commits < 2; {
				msg, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, msg)
				answer := answers[msg.GetTypeUrl()]
				if answer == nil {
					t.Fatalf("told of %s, of which that version was not told", msg.GetTypeUrl())
				}
				answer.ResponseNonce = msg.GetNonce()
				if err := stream.Send(answer); err != nil {
					t.Fatal(err)
				}
				if msg.GetTypeUrl() == resources.KindCommit.TypeURL() {
					commits++
					o.Publish(snapshotOf(t, views[1], 2))
				}
			}
			want := saidOf(unframed[discoveryv3.DeltaDiscoveryResponse](t, recorded(t, version, "operator.bin")))
			if len(want) != 2 || len(want[0]) < 4 {
				t.Fatalf("%d rounds were recorded: %v", len(want), want)
			}
			if diff := cmp.Diff(want, saidOf(got)); diff != "" {
				t.Errorf("is told otherwise than that version's operator told it (-that version +this):\n%s", diff)
			}
		})
	}
}

// player is an operator that says what was recorded, message by message, each once
// the one before is acknowledged.
type player struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	says    []*discoveryv3.DeltaDiscoveryResponse
	knows   map[string]bool // resource types
	refused chan error      // what the agent refused
}

func (p *player) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for asked := ""; asked != resources.KindCommit.TypeURL(); {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if asked = m.GetTypeUrl(); !p.knows[asked] {
			return status.Errorf(codes.InvalidArgument, "unknown resource type %q", asked)
		}
	}
	if err := stream.SendHeader(metadata.Pairs("heddle-node", "n1")); err != nil {
		return err
	}
	for _, m := range p.says {
		if err := stream.Send(m); err != nil {
			return err
		}
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if answer.GetErrorDetail() != nil {
			select {
			case p.refused <- errors.New(answer.GetErrorDetail().GetMessage()):
			default: // there is one already
			}
		}
	}
	<-stream.Context().Done()
	return nil
}

func startPlayer(t *testing.T, says []*discoveryv3.DeltaDiscoveryResponse) (*player, *operatorEnd) {
	t.Helper()
	p := &player{says: says, knows: map[string]bool{}, refused: make(chan error, 1)}
	for _, k := range resources.AgentKinds() {
		p.knows[k.TypeURL()] = true
	}
	p.knows[resources.KindCommit.TypeURL()] = true
	end := &operatorEnd{listener: bufconn.Listen(64 << 10), grpc: grpc.NewServer(ServerOptions()...), served: make(chan error, 1)}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(end.grpc, p)
	go func() { end.served <- end.grpc.Serve(end.listener) }()
	t.Cleanup(func() {
		end.grpc.Stop()
		if err := <-end.served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return p, end
}

// TestRecordedOperators: this version's agent understands an operator of each
// version, keeps what it says, and starts from what an agent of that version kept.
func TestRecordedOperators(t *testing.T) {
	for _, version := range recordings {
		t.Run(version, func(t *testing.T) {
			p, o := startPlayer(t, unframed[discoveryv3.DeltaDiscoveryResponse](t, recorded(t, version, "operator.bin")))
			dir := t.TempDir()
			a := startAgent(t, o, "n1", lastGoodIn(dir))
			a.awaitEpoch(t, 2)
			select {
			case err := <-p.refused:
				t.Error(err)
			default:
			}
			if !admits(t, a.store.View(), "ns0", "10.9.0.200") || admits(t, a.store.View(), "ns0", "192.0.2.1") {
				t.Error("a NetworkPolicy of that version does not mean what it meant")
			}
			a.stop()
			kept := recorded(t, version, "last-good.bin")
			if now, err := os.ReadFile(filepath.Join(dir, "last-good")); err != nil || !bytes.Equal(now, kept) {
				t.Errorf("what is kept is not what that version's agent kept, who must start from it after a downgrade: %v", err)
			}
			boot := t.TempDir()
			if err := os.WriteFile(filepath.Join(boot, "last-good"), kept, 0o600); err != nil {
				t.Fatal(err)
			}
			b := startAgent(t, nil, "n1", lastGoodIn(boot))
			testenv.Eventually(t, time.Minute, "it starts from what that version's agent kept", func() bool { return b.Status().FromLastGood && b.Status().Epoch == 2 })
		})
	}
}

// withFieldOfTomorrow is a resource with a field that this version does not know.
func withFieldOfTomorrow(body []byte) []byte {
	return protowire.AppendVarint(protowire.AppendTag(body, 1999, protowire.VarintType), 1)
}

// versionOf is that of a resource, as every version of the protocol has it: the first
// half of a hash over the kind, the name, each with its length before, and the body.
func versionOf(k resources.Kind, name string, body []byte) string {
	h := sha256.New()
	for _, part := range []string{k.TypeURL(), name} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// TestFieldsOfTomorrow: of how to reach a workload or a service, what this version
// does not know is left; of what is enforced, it is refused, said, and what was in
// force stays.
func TestFieldsOfTomorrow(t *testing.T) {
	for _, kind := range resources.AgentKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			o := startOperator(t, nil)
			view := networkView(t, 10)
			if kind == resources.KindService || kind == resources.KindPolicy {
				view = viewOf(t, shape{workloads: 2, services: 2, policies: 2, nodes: []string{"n1"}})
			}
			o.Publish(snapshotOf(t, view, 1))
			stream := raw(t, o, "n1")
			for _, k := range resources.AgentKinds() {
				if err := stream.Send(ask("n1", k, "*")); err != nil {
					t.Fatal(err)
				}
			}
			if err := stream.Send(ask("n1", resources.KindCommit, "*")); err != nil {
				t.Fatal(err)
			}
			found := tomorrow(t, stream, kind)
			if found != nil && (kind == resources.KindService || kind == resources.KindWorkload) {
				t.Errorf("refused: %v", found)
			}
			if kind != resources.KindService && kind != resources.KindWorkload && (found == nil || !strings.Contains(found.Error(), "upgrade the agent")) {
				t.Errorf("what is enforced, and not known, is not refused: %v", found)
			}
		})
	}
}

// tomorrow stages what an operator says, with a field more in one resource of a kind.
func tomorrow(t *testing.T, stream discoveryStream, kind resources.Kind) error {
	t.Helper()
	staged, changed := resources.NewStaging(nil), false
	for {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		k, err := resources.KindOf(msg.GetTypeUrl())
		if err != nil {
			t.Fatal(err)
		}
		if k == resources.KindCommit {
			if !changed {
				t.Fatalf("no %s was told", kind)
			}
			return nil
		}
		if k == kind && len(msg.GetResources()) > 0 {
			r := msg.GetResources()[0]
			r.Resource.Value, changed = withFieldOfTomorrow(r.GetResource().GetValue()), true
			r.Version = versionOf(k, r.GetName(), r.GetResource().GetValue())
		}
		if err := stage(staged, k, msg); err != nil {
			return err
		}
		if err := answer(stream, msg, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKindsOfTomorrow: an agent that asks for a kind of resource that this version's
// operator does not know is told so, in the way that makes it ask for the others.
func TestKindsOfTomorrow(t *testing.T) {
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, networkView(t, 10), 1))
	stream := raw(t, o, "n1")
	asks := &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n1"}, TypeUrl: resources.KindSettings.TypeURL() + "OfTomorrow", ResourceNamesSubscribe: []string{"*"}}
	if err := stream.Send(asks); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("it is told %v", err)
	}
}
