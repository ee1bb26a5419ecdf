package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	webUID = "0f7ed1a2-8a2e-4a06-9d5f-4d6a3b1c9e01"
	dbUID  = "11111111-2222-3333-4444-555555555555"
)

// fakeRuntime is a container runtime as the interface's own generated code has it.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	mu       sync.Mutex
	sandbox  []*runtimeapi.PodSandbox
	status   map[string]*runtimeapi.PodSandboxStatusResponse
	statuses int
	fail     error
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Filter.GetState() == nil || r.Filter.State.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, grpcstatus.Error(codes.InvalidArgument, "not asked for those that are ready")
	}
	return &runtimeapi.ListPodSandboxResponse{Items: f.sandbox}, f.fail
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses++
	s, ok := f.status[r.PodSandboxId]
	if !ok || !r.Verbose {
		return nil, grpcstatus.Errorf(codes.NotFound, "sandbox %q, verbose %v", r.PodSandboxId, r.Verbose)
	}
	return s, nil
}

// add lets the runtime say that a pod's sandbox has a process.
func (f *fakeRuntime) add(name, uid string, pid int, netNS string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := "sandbox-" + name
	meta := &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: uid, Attempt: 3}
	f.sandbox = append(f.sandbox, &runtimeapi.PodSandbox{
		Id: id, Metadata: meta, CreatedAt: 1e9, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}, RuntimeHandler: "runc",
	})
	f.status[id] = &runtimeapi.PodSandboxStatusResponse{
		Status: &runtimeapi.PodSandboxStatus{Id: id, Metadata: meta, Network: &runtimeapi.PodSandboxNetworkStatus{
			Ip: "10.0.0.7", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::7"}},
		}},
		Info: map[string]string{"other": "{", "info": fmt.Sprintf(
			`{"pid":%d,"processStatus":"running","runtimeSpec":{"ociVersion":"1","linux":{"namespaces":[{"type":"pid"},{"type":"network","path":%q}]}}}`, pid, netNS)},
		Timestamp: 5,
	}
}

func serve(t *testing.T) (*fakeRuntime, *Client, *bytes.Buffer) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRuntime{status: map[string]*runtimeapi.PodSandboxStatusResponse{}}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, f)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) }) // Stop ends it
	var log bytes.Buffer
	c, err := New(socket, "/proc", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		served.Wait()
	})
	return f, c, &log
}

// process starts a process in a pod's cgroup and in a network namespace.
func process(t *testing.T, ns *testenv.NetNS, podFolder string) int {
	t.Helper()
	mount, _, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(mount, fmt.Sprintf("heddle-cri-%d", os.Getpid()), podFolder, "sandbox")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	start := func() error { return cmd.Start() }
	if ns != nil {
		start = func() error { return ns.Do(cmd.Start) }
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		for d := dir; filepath.Dir(d) != mount; d = filepath.Dir(d) {
			testenv.Eventually(t, 5*time.Second, "cgroup can be removed", func() bool {
				err := os.Remove(d)
				return err == nil || errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "not empty") || d != dir
			})
		}
		_ = os.Remove(filepath.Join(mount, fmt.Sprintf("heddle-cri-%d", os.Getpid()))) // another test may use it
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestRunning(t *testing.T) {
	testenv.NeedRoot(t)
	f, c, log := serve(t)
	web, db, thief := testenv.NewNetNS(t, "cri"), testenv.NewNetNS(t, "cri"), testenv.NewNetNS(t, "cri")
	systemd := "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(webUID, "-", "_") + ".slice"
	webPID := process(t, web, systemd)
	f.add("web", webUID, webPID, strings.Replace(web.Path, "/run", "/var/run", 1))
	f.add("db", dbUID, process(t, db, "kubepods/besteffort/pod"+dbUID), "/run/netns/gone")
	f.add("host", dbUID, process(t, nil, "kubepods/x"), "")
	// A process that only says that it is db's, and one of another pod.
	f.add("liar", dbUID, process(t, thief, "system.slice"), db.Path)
	f.add("thief", dbUID, webPID, db.Path)
	f.add("dead", dbUID, 1<<22-1, db.Path)
	f.mu.Lock()
	f.sandbox = append(f.sandbox, &runtimeapi.PodSandbox{Id: "gone", Metadata: &runtimeapi.PodSandboxMetadata{Name: "gone", Namespace: "shop", Uid: "x"}},
		&runtimeapi.PodSandbox{Id: "stopped", State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY, Metadata: &runtimeapi.PodSandboxMetadata{Name: "stopped", Namespace: "shop", Uid: "x"}})
	f.mu.Unlock()

	places, err := c.Running(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]cni.Place{}
	for _, p := range places {
		byName[p.Key.Name] = p
	}
	if len(byName) != 2 {
		t.Errorf("found %v, want web and db", places)
	}
	if p := byName["web"]; p.UID != webUID || p.Sandbox != "sandbox-web" || len(p.Addresses) != 2 || p.Addresses[0].String() != "10.0.0.7" ||
		!strings.HasSuffix(p.NetNS, web.Path) || p.Created.Unix() != 1 || p.Key.Namespace != "shop" {
		t.Errorf("web is %+v", p)
	}
	if p := byName["db"]; !strings.HasPrefix(p.NetNS, "/proc/") {
		t.Errorf("the runtime's path leads nowhere, and db is in %s", p.NetNS)
	}
	for _, want := range []string{"shop/liar", "no pod's cgroup", "shop/thief", "not " + dbUID, "shop/dead", "hostPID", "shop/gone"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	if strings.Contains(log.String(), "shop/host") {
		t.Errorf("a pod in the node's namespace is nothing to complain of:\n%s", log)
	}
	// The second look asks about those only that were not verified, and says
	// nothing twice.
	said, asked := log.Len(), f.statuses
	if again, err := c.Running(t.Context()); err != nil || len(again) != 2 {
		t.Errorf("again: %v, %v", again, err)
	}
	if log.Len() != said || f.statuses-asked != 4 {
		t.Errorf("asked %d times, and said %q", f.statuses-asked, log.String()[said:])
	}
}

// TestSandboxesOfNoPod: what somebody runs with crictl, without the texts of a pod, keeps
// no pod from being known, and is said once.
func TestSandboxesOfNoPod(t *testing.T) {
	f, c, log := serve(t)
	pid := os.Getpid()
	f.add("host", dbUID, pid, "") // in the node's network: looked at, and no complaint
	f.mu.Lock()
	f.sandbox = append([]*runtimeapi.PodSandbox{{Id: "bare"}, {Id: "no-uid", Metadata: &runtimeapi.PodSandboxMetadata{Name: "by-hand", Namespace: "shop"}},
		{Id: "no-namespace", Metadata: &runtimeapi.PodSandboxMetadata{Name: "by-hand", Uid: dbUID}}, {Metadata: &runtimeapi.PodSandboxMetadata{Name: "no-id"}}}, f.sandbox...)
	f.mu.Unlock()
	for range 2 {
		if places, err := c.Running(t.Context()); err != nil || len(places) > 0 {
			t.Fatalf("%v, %v", places, err)
		}
	}
	if f.statuses != 1 {
		t.Errorf("asked for details %d times, want once: of the pod", f.statuses)
	}
	if n := strings.Count(log.String(), "is no pod of kubelet's"); n != 4 || strings.Count(log.String(), "sandbox=bare") != 1 {
		t.Errorf("said %d times, want once of each:\n%s", n, log)
	}
}

func TestRuntimeDoesNotAnswer(t *testing.T) {
	f, c, _ := serve(t)
	f.mu.Lock()
	f.fail = grpcstatus.Error(codes.Unavailable, "starting")
	f.mu.Unlock()
	if _, err := c.Running(t.Context()); err == nil || !strings.Contains(err.Error(), "--cri-socket") || !strings.Contains(err.Error(), "starting") {
		t.Errorf("%v", err)
	}
	f.mu.Lock()
	f.fail, f.sandbox = nil, make([]*runtimeapi.PodSandbox, maxSandboxes+1)
	for i := range f.sandbox {
		f.sandbox[i] = &runtimeapi.PodSandbox{}
	}
	f.mu.Unlock()
	if _, err := c.Running(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 10000 sandboxes") {
		t.Errorf("a list that is too long: %v", err)
	}
}

// TestOddSandboxes: one that cannot be read keeps no other from being known, is said once,
// and takes nobody's name.
func TestOddSandboxes(t *testing.T) {
	testenv.NeedRoot(t)
	f, c, log := serve(t)
	long := strings.Repeat("x", maxText+1)
	web := testenv.NewNetNS(t, "cri")
	f.add("web", webUID, process(t, web, "kubepods/besteffort/pod"+webUID), web.Path)
	f.mu.Lock()
	f.sandbox = append([]*runtimeapi.PodSandbox{
		{Id: long}, {Id: long},
		{Id: "long-name", Metadata: &runtimeapi.PodSandboxMetadata{Name: long, Namespace: "shop", Uid: dbUID}},
		{Id: "sandbox-web", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: long, Uid: webUID}},
		{Id: "long-uid", State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY, Metadata: &runtimeapi.PodSandboxMetadata{Name: "ended", Namespace: "shop", Uid: long}},
	}, f.sandbox...)
	f.mu.Unlock()
	for range 2 {
		places, err := c.Running(t.Context())
		if err != nil || len(places) != 1 || places[0].Key.String() != "shop/web" || places[0].UID != webUID {
			t.Fatalf("%v, %v, want web", places, err)
		}
	}
	if f.statuses != 1 {
		t.Errorf("asked for details %d times, want once: of web", f.statuses)
	}
	if n := strings.Count(log.String(), "sandbox is left out"); n != 4 || !strings.Contains(log.String(), "long-name (odd)") || !strings.Contains(log.String(), "4097 bytes are more than 4096") || log.Len() > 8<<10 {
		t.Errorf("said %d times, want once of each:\n%s", n, log)
	}
}

// TestOddBytes: an entry of the list that is no message at all is one odd sandbox.
func TestOddBytes(t *testing.T) {
	good, err := proto.Marshal(&runtimeapi.PodSandbox{Id: "good"})
	if err != nil {
		t.Fatal(err)
	}
	var list []byte
	for _, item := range [][]byte{{0x0a, 0x7f}, good, {0x12, 0x01, 0xff}} {
		list = protowire.AppendBytes(protowire.AppendTag(list, 1, protowire.BytesType), item)
	}
	all, err := decodeList(list)
	if err != nil || len(all) != 3 || all[0].odd == "" || all[1].id != "good" || all[1].odd != "" || all[2].odd == "" || all[0].id == all[2].id {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := decodeList(append(list, 0x0a, 0x7f)); err == nil {
		t.Error("a list that is cut off was read")
	}
}

func TestPodUID(t *testing.T) {
	static := "0123456789abcdef0123456789abcdef"
	under := strings.ReplaceAll(webUID, "-", "_")
	for name, c := range map[string]struct{ cgroups, uid string }{
		"v2, systemd":              {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-abc.scope\n", webUID},
		"v2, systemd, guaranteed":  {"0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-abc.scope\n", webUID},
		"v2, cgroupfs":             {"0::/kubepods/besteffort/pod" + webUID + "/abc\n", webUID},
		"v2, seen from a pod":      {"0::/../../kubepods-besteffort-pod" + under + ".slice/cri-containerd-abc.scope\n", webUID},
		"v2, kind":                 {"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/x\n", webUID},
		"v1, cgroupfs":             {"12:cpu,cpuacct:/kubepods/burstable/pod" + webUID + "/abc\n1:name=systemd:/kubepods/burstable/pod" + webUID + "/abc\n0::/\n", webUID},
		"v1, hybrid":               {"3:memory:/kubepods/pod" + static + "/x\n0::/system.slice/containerd.service\n", static},
		"a pod's own folder":       {"0::/kubepods/pod" + webUID + "/abc/pod" + dbUID + "\n", webUID},
		"two pods":                 {"2:cpu:/kubepods/pod" + webUID + "/x\n1:memory:/kubepods/pod" + dbUID + "/x\n", ""},
		"none":                     {"0::/system.slice/ssh.service\n", ""},
		"empty":                    {"", ""},
		"not a UID":                {"0::/kubepods/podx\n", ""},
		"no line":                  {"pod" + webUID, ""},
		"a name that ends with it": {"0::/tripod" + webUID + "/x\n", ""},
	} {
		uid, err := cgroup.PodUID(c.cgroups)
		if uid != c.uid || (err == nil) != (c.uid != "") {
			t.Errorf("%s: %q, %v; want %q", name, uid, err, c.uid)
		}
	}
}

// FuzzMessages compares what is read by hand with what the generated code reads.
func FuzzMessages(f *testing.F) {
	fake := &fakeRuntime{status: map[string]*runtimeapi.PodSandboxStatusResponse{}}
	fake.add("web", webUID, 7, "/run/netns/web")
	list, err := proto.Marshal(&runtimeapi.ListPodSandboxResponse{Items: fake.sandbox})
	if err != nil {
		f.Fatal(err)
	}
	answer, err := proto.Marshal(fake.status["sandbox-web"])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list, answer)
	f.Fuzz(func(t *testing.T, list, answer []byte) {
		var want runtimeapi.ListPodSandboxResponse
		if got, err := decodeList(list); err == nil && proto.Unmarshal(list, &want) == nil {
			i := 0
			for _, item := range want.Items {
				if item.State != runtimeapi.PodSandboxState_SANDBOX_READY {
					continue
				}
				if i >= len(got) {
					t.Fatalf("sandbox %d: %v, want %v", i, got, item)
				}
				if got[i].odd != "" {
					i++
					continue
				}
				if got[i].id != item.Id || got[i].uid != item.Metadata.GetUid() || got[i].key.Name != item.Metadata.GetName() {
					t.Fatalf("sandbox %d: %v, want %v", i, got, item)
				}
				i++
			}
		}
		if _, err := decodeStatus(answer); err == nil {
			_, _ = cgroup.PodUID(string(answer)) // must not panic
		}
	})
}
