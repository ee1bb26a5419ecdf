package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/e2e/wire"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// meshYAML is what all scenarios share. The workloads are there for their nodes.
const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: scenarios.heddle.dev
  clusterRanges: ["10.244.0.0/16", "10.96.0.0/16"]
---
apiVersion: v1
kind: Namespace
metadata: {name: nodes}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: nodes, name: n1}
spec: {node: n1, addresses: [10.244.1.1]}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: nodes, name: n2}
spec: {node: n2, addresses: [10.244.2.1]}
`

// netns is a World of network namespaces: one mesh of `heddle local`, whose folder
// has a file for each scenario that runs.
type netns struct {
	t        *testing.T // of the scenario that runs
	bed      *testbed.Bed
	workload string // the program
	spaces   map[string]*space
	given    byte // addresses of pods and services so far
}

// space is one scenario's namespace.
type space struct {
	label string
	pods  []*pod
	files map[string]script.File
	// services are the addresses of Services, by name.
	services map[string]netip.Addr
}

// pod is a workload whose server runs.
type pod struct {
	script.Workload
	address netip.Addr
	stop    context.CancelFunc
	ended   chan struct{}
}

var _ World = (*netns)(nil)

func newNetns(t *testing.T) *netns {
	t.Helper()
	w := &netns{t: t, workload: filepath.Join(t.TempDir(), "workload"), spaces: map[string]*space{}, given: 9}
	testenv.Build(t, ".", w.workload, "../product/workload")
	w.bed = testbed.Up(t, "../..", "scenarios", meshYAML)
	return w
}

func (w *netns) Name() string { return "network namespaces" }

func (w *netns) space(name string) *space {
	if w.spaces[name] == nil {
		w.spaces[name] = &space{files: map[string]script.File{}, services: map[string]netip.Addr{}}
	}
	return w.spaces[name]
}

func (w *netns) Deploy(ctx context.Context, namespace string, workloads []script.Workload) error {
	s := w.space(namespace)
	for _, d := range workloads {
		w.given++
		s.pods = append(s.pods, &pod{Workload: d, address: netip.AddrFrom4([4]byte{10, 244, d.Node[1] - '0', w.given})})
	}
	// Before they are in the mesh their network namespaces have to be there.
	joins := slices.Clone(s.pods)
	for i := range joins {
		outside := *joins[i]
		if outside.stop == nil {
			outside.Label = "disabled"
		}
		joins[i] = &outside
	}
	if err := w.write(namespace, joins); err != nil {
		return err
	}
	w.bed.Restart(w.t)
	for _, p := range s.pods {
		if p.stop == nil {
			if err := w.serve(ctx, namespace, p); err != nil {
				return err
			}
		}
	}
	return w.write(namespace, s.pods)
}

func (w *netns) serve(ctx context.Context, namespace string, p *pod) error {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	cmd, err := w.Command(ctx, namespace, p.Name, "serve")
	if err != nil {
		stop()
		return err
	}
	if err := cmd.Start(); err != nil {
		stop()
		return fmt.Errorf("start the server of %s: %w", p.Name, err)
	}
	p.stop, p.ended = stop, make(chan struct{})
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // killed: its status says nothing
	}()
	return nil
}

// write puts the scenario's file into the folder, and refuses what does not compile.
func (w *netns) write(namespace string, pods []*pod) error {
	s := w.space(namespace)
	objects := []map[string]any{{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace, "labels": label(s.label)}}}
	for _, p := range pods {
		labels := label(p.Label)
		labels["app"] = p.Name
		objects = append(objects, map[string]any{
			"apiVersion": "heddle.dev/v1alpha1", "kind": "Workload",
			"metadata": map[string]any{"namespace": namespace, "name": p.Name, "labels": labels},
			"spec": map[string]any{
				"node": p.Node, "serviceAccount": p.Name, "addresses": []string{p.address.String()},
				"networkNamespace": "/run/netns/heddle-scenarios-" + namespace + "-" + p.Name,
			},
		})
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		for _, o := range s.files[name].Objects {
			objects = append(objects, w.object(s, o))
		}
	}
	var text bytes.Buffer
	for _, o := range objects {
		data, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "---\n%s", data)
	}
	w.bed.Write(w.t, namespace+".yaml", text.String())
	loaded, err := kube.LoadDir(w.bed.Folder)
	if err != nil {
		return err
	}
	_, err = kube.Compile(loaded)
	return err
}

func label(value string) map[string]any {
	if value == "" {
		return map[string]any{}
	}
	return map[string]any{"heddle.dev/mesh": value}
}

// object is an object as the mesh has it: nobody else gives Services an address.
func (w *netns) object(s *space, o script.Object) map[string]any {
	if o.Kind != "Service" {
		return o.Fields
	}
	if !s.services[o.Name].IsValid() {
		w.given++
		s.services[o.Name] = netip.AddrFrom4([4]byte{10, 96, 0, w.given})
	}
	fields := maps.Clone(o.Fields)
	spec, _ := fields["spec"].(map[string]any)
	spec = maps.Clone(spec)
	spec["clusterIPs"] = []string{s.services[o.Name].String()}
	fields["spec"] = spec
	return fields
}

func (w *netns) Label(_ context.Context, namespace, workload, value string) error {
	s := w.space(namespace)
	if workload == "" {
		s.label = value
	}
	for _, p := range s.pods {
		if p.Name == workload {
			p.Label = value
		}
	}
	return w.write(namespace, s.pods)
}

func (w *netns) Apply(_ context.Context, namespace string, file script.File) error {
	s := w.space(namespace)
	s.files[file.Name] = file
	return w.write(namespace, s.pods)
}

func (w *netns) Delete(_ context.Context, namespace string, file script.File) error {
	s := w.space(namespace)
	delete(s.files, file.Name)
	return w.write(namespace, s.pods)
}

func (w *netns) Enrolled(_ context.Context, namespace string) ([]string, error) {
	out, err := w.bed.Heddle("check", "--name", w.bed.Mesh.Plan.Name, "-o", "json")
	return EnrolledIn(out, namespace, err)
}

func (w *netns) Address(_ context.Context, namespace, name string) (netip.Addr, error) {
	s := w.space(namespace)
	if i := slices.IndexFunc(s.pods, func(p *pod) bool { return p.Name == name }); i >= 0 {
		return s.pods[i].address, nil
	}
	if address, ok := s.services[name]; ok {
		return address, nil
	}
	return netip.Addr{}, fmt.Errorf("there is no %s in %s", name, namespace)
}

func (w *netns) Command(ctx context.Context, namespace, workload string, args ...string) (*exec.Cmd, error) {
	return w.bed.Command(ctx, namespace+"/"+workload, append([]string{w.workload}, args...)...), nil
}

func (w *netns) Flows(_ context.Context, namespace string) ([]Flow, error) {
	var all []Flow
	for _, node := range script.Nodes() {
		if !w.bed.Mesh.Agents[node].Running() {
			continue
		}
		out, err := w.bed.Heddle("flows", "--socket", w.bed.Mesh.AgentSocket(node), "--last", "500", "-n", namespace, "-o", "json")
		if err != nil {
			return all, err
		}
		flows, err := ReadFlows(strings.NewReader(out))
		if err != nil {
			return all, err
		}
		all = append(all, flows...)
	}
	return all, nil
}

func (w *netns) Capture(context.Context) (func(string, netip.Addr) (wire.Findings, error), error) {
	c := w.bed.Capture(w.t)
	return func(marker string, judged netip.Addr) (wire.Findings, error) {
		return c.Stop(w.t, marker, func(a netip.Addr) bool { return a == judged }), nil
	}, nil
}

func (w *netns) KillAgent(_ context.Context, node string) error {
	w.bed.Kill(w.t, node)
	return nil
}

func (w *netns) StartAgent(ctx context.Context, node string) error {
	w.bed.StartAgentAlone(w.t, node)
	return poll(ctx, 30*time.Second, func(context.Context) error {
		_, err := w.bed.Heddle("check", "--socket", w.bed.Mesh.AgentSocket(node))
		return err
	})
}

func (w *netns) Clear(_ context.Context, namespace string) error {
	for _, p := range w.space(namespace).pods {
		if p.stop != nil {
			p.stop()
			<-p.ended
		}
	}
	delete(w.spaces, namespace)
	err := os.Remove(filepath.Join(w.bed.Folder, namespace+".yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it never came to that
	}
	return err
}
