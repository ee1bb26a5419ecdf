package kube

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// update rewrites the "want" files of the golden tests:
// go test ./internal/kube -update
var update = flag.Bool("update", false, "rewrite golden files")

// TestGolden reads every archive of testdata as a folder. Its file "want" has
// what comes out: the model and the warnings, or the problems. Archives in good
// must compile, those in bad must not. Policies about UDP are taken in udp.txtar only.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	folder, want := fstest.MapFS{}, ""
	at := -1
	for i, f := range archive.Files {
		if f.Name == "want" {
			want, at = string(f.Data), i
			continue
		}
		folder[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	got, ok := outcome(t, folder, filepath.Base(file) == "udp.txtar")
	if good := strings.Contains(file, "/good/"); good != ok {
		t.Errorf("compiled: %v, want %v", ok, good)
	}
	if *update {
		if at < 0 {
			archive.Files = append(archive.Files, txtar.File{Name: "want"})
			at = len(archive.Files) - 1
		}
		archive.Files[at].Data = []byte(got)
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got (go test ./internal/kube -update accepts it):\n%s", diff)
	}
}

// outcome returns what a folder comes to, as text, and whether it compiled.
func outcome(t *testing.T, folder fstest.MapFS, udp bool) (string, bool) {
	objs, err := LoadFolder(folder)
	if err != nil {
		return problemText(t, err), false
	}
	objs.UDPByIdentity = udp
	compiled, err := Compile(objs)
	if err != nil {
		return problemText(t, err), false
	}
	var b bytes.Buffer
	dump(&b, compiled)
	for _, w := range compiled.Warnings {
		fmt.Fprintln(&b, "warning:", w)
	}
	if _, err := compiled.View("r"); err != nil {
		t.Errorf("compiled, but makes no view: %v", err)
	}
	return b.String(), true
}

func problemText(t *testing.T, err error) string {
	var b strings.Builder
	problems := Problems(err)
	if len(problems) == 0 {
		t.Errorf("error without problems: %v", err)
	}
	for _, p := range problems {
		if !strings.Contains(err.Error(), p.Error()) {
			t.Errorf("error does not say %v", p)
		}
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

// dump writes the model as people would say it, one line per fact.
func dump(b *bytes.Buffer, c *Compiled) {
	s := &c.Settings
	fmt.Fprintf(b, "mesh %s ranges=%v egress=%v", s.TrustDomain, s.ClusterRanges, egressName(s.Egress))
	for _, ns := range slices.Sorted(maps.Keys(s.EgressNamespaces)) {
		fmt.Fprintf(b, " egress[%s]=%v", ns, egressName(s.EgressNamespaces[ns]))
	}
	for _, ns := range slices.Sorted(maps.Keys(s.UDPEgress)) {
		fmt.Fprintf(b, " udp[%s]=%v%v", ns, s.UDPEgress[ns].Allow, s.UDPEgress[ns].Ports)
	}
	fmt.Fprintf(b, " revoked=%v\n", s.RevokedIdentities)
	for _, w := range c.Workloads {
		fmt.Fprintf(b, "workload %v node=%s identity=%v addresses=%v labels=%v enrolled=%v ready=%v netns=%q mode=%v",
			w.Key, w.Node, w.Identity, w.Addresses, w.Labels, w.Enrolled, w.Ready, w.NetNS, w.Mode)
		for _, port := range slices.Sorted(maps.Keys(w.PortModes)) {
			fmt.Fprintf(b, " mode[%d]=%v", port, w.PortModes[port])
		}
		fmt.Fprintf(b, " probes=%v\n", w.ProbePorts)
		dumpPolicies(b, "  udp ", w.Datagrams)
	}
	for _, svc := range c.Services {
		fmt.Fprintf(b, "service %v hostname=%s addresses=%v ports=%v endpoints=%v\n", svc.Key, svc.Hostname(), svc.Addresses, svc.Ports, svc.Endpoints)
		if svc.Waypoint != (mesh.Key{}) {
			fmt.Fprintf(b, "  waypoint %v bypass=%v\n", svc.Waypoint, svc.Bypass)
		}
		for _, port := range svc.UDPPorts {
			fmt.Fprintf(b, "  udp port %v\n", port)
		}
	}
	for i := range c.Policies {
		dumpPolicies(b, "", []*mesh.Policy{&c.Policies[i]})
	}
	dumpNetwork(b, c)
}

func dumpPolicies(b *bytes.Buffer, indent string, policies []*mesh.Policy) {
	for _, p := range policies {
		fmt.Fprintf(b, "%spolicy %v %v selector=%v\n", indent, p.Key, p.Action, p.Selector)
		for i, r := range p.Rules {
			fmt.Fprintf(b, "%s  rule %d from=%+v to=%s\n", indent, i, r.From, destinations(r.To))
		}
	}
}

func dumpNetwork(b *bytes.Buffer, c *Compiled) {
	names := map[string]string{"": ""} // of sets, which are hashes
	for _, s := range c.Network.Sets {
		if names[s.Set] == "" {
			names[s.Set] = fmt.Sprintf("set%d", len(names))
		}
		fmt.Fprintf(b, "%s shard %d of %d: %v\n", names[s.Set], s.Index, s.Count, s.Members)
	}
	for _, p := range c.Network.Policies {
		fmt.Fprintf(b, "network policy %v selector=%v\n", p.Name, p.Selector)
		for i, d := range []*netpolicy.Direction{p.Ingress, p.Egress} {
			if d == nil {
				continue
			}
			fmt.Fprintf(b, "  isolates %s\n", []string{"ingress", "egress"}[i])
			for _, r := range d.Rules {
				for _, peer := range r.Peers {
					if peer.Set == "" {
						fmt.Fprintf(b, "    peer %v except=%v\n", peer.Block, peer.Except)
						continue
					}
					name, some := names[peer.Set]
					if !some {
						name = "nobody"
					}
					fmt.Fprintf(b, "    peer %s\n", name)
				}
				fmt.Fprintf(b, "    ports %v\n", r.Ports)
			}
		}
	}
}

func egressName(m mesh.EgressMode) string {
	if m == mesh.EgressDeny {
		return "DENY"
	}
	return "ALLOW"
}

// destinations shows what requests are about where something is said of them.
func destinations(all []mesh.Destination) string {
	var texts []string
	for _, to := range all {
		text := fmt.Sprintf("{Ports:%v NotPorts:%v Requests:<nil>}", to.Ports, to.NotPorts)
		if to.Requests != nil {
			text = fmt.Sprintf("{Ports:%v NotPorts:%v Requests:%+v}", to.Ports, to.NotPorts, *to.Requests)
		}
		texts = append(texts, text)
	}
	return "[" + strings.Join(texts, " ") + "]"
}
