package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-mesh/heddle/internal/flow/history"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// history has one refused connection, unless the agent is idle.
func (f *fakeAgent) history(t *testing.T) *history.History {
	now := func() time.Time { return time.Now().Add(-f.age) }
	h := history.New(history.Config{Dir: t.TempDir(), Bounds: history.DefaultBounds(), Log: slog.New(slog.DiscardHandler), Now: now})
	if f.idle {
		return h
	}
	h.Add(sampleFlow(f.node, mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	return h
}

// TestDatagramsAreForecast: all that simulate and suggest say of a mesh in which policies are
// about UDP: who would break and be let in, to workloads and through a service, and what is
// needed.
func TestDatagramsAreForecast(t *testing.T) {
	const dir = "testdata/simulate/udp/"
	for _, tc := range []struct {
		golden, command string
		code            int
	}{
		{"simulate.txt", "simulate -f " + dir + "change.yaml", exitBreaks},
		{"simulate.json", "simulate -f " + dir + "change.yaml -o json", exitBreaks},
		{"suggest.yaml", "suggest shop", exitOK},
		{"suggest.json", "suggest shop -o json", exitOK},
		{"still.txt", "simulate -f " + dir + "suggest.yaml --delete AuthorizationPolicy/shop/web-quic", exitOK},
	} {
		want, err := os.ReadFile(dir + tc.golden)
		if err != nil {
			t.Fatal(err)
		}
		var out, log bytes.Buffer
		args := append([]string{"heddle"}, split(tc.command+" --udp-by-identity --against "+dir+"mesh --flows "+dir+"flows.json --state-dir "+t.TempDir())...)
		if code := run(t.Context(), args, &out, &log, false); code != tc.code || out.String() != string(want) {
			t.Errorf("%s: exit %d, %s\ngot\n%s\nwant\n%s", tc.command, code, log.String(), out.String(), want)
		}
	}
}

// in calls fn on a thread in a network namespace.
func in(path string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is of another namespace
		done <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			return errors.Join(netns.Set(ns), fn(), ns.Close())
		}()
	}()
	return <-done
}

// simulateOnMesh has the customer talk to the web server, and runs docs/simulate.md: what
// the agents have recorded needs what is suggested, and breaks under less.
func simulateOnMesh(t *testing.T, bin, name, folder string) {
	t.Helper()
	var server net.Listener
	if err := in("/run/netns/heddle-"+name+"-shop-web", func() (err error) {
		server, err = net.Listen("tcp", ":8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		c, err := server.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			err = errors.Join(err, c.Close())
		}
		served <- err
	}()
	if err := in("/run/netns/heddle-"+name+"-shop-customer", func() error {
		c, err := net.DialTimeout("tcp", "10.245.1.2:8080", 20*time.Second)
		if err != nil {
			return err
		}
		_, err = io.WriteString(c, "hello\n")
		line, read := bufio.NewReader(c).ReadString('\n')
		if line != "hello\n" {
			t.Errorf("the server said %q", line)
		}
		return errors.Join(err, read, c.Close())
	}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-served, server.Close()); err != nil {
		t.Fatal(err)
	}
	runSimulatePage(t, bin, name, folder)
}

func runSimulatePage(t *testing.T, bin, name, folder string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/simulate.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	wrapper := "#!/bin/sh\nexec " + filepath.Join(bin, "heddle") + " --name " + name + ` "$@"` + "\n"
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o700), os.WriteFile(filepath.Join(dir, "bin", "heddle"), []byte(wrapper), 0o700),
		os.Symlink(folder, filepath.Join(dir, "mesh"))); err != nil {
		t.Fatal(err)
	}
	shell := func(line string) (string, int) {
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", line)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	ran := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			ran++
			if out, code := shell(line); code != exitOK {
				t.Errorf("%s: exit %d:\n%s", line, code, out)
			}
		}
	}
	if ran < 4 {
		t.Errorf("docs/simulate.md has %d commands", ran)
	}
	text, err := os.ReadFile(filepath.Join(dir, "shop.yaml"))
	if err != nil || !strings.Contains(string(text), "- customer\n") || !strings.Contains(string(text), "- 8080\n") {
		t.Errorf("suggested: %v\n%s", err, text)
	}
	for _, offline := range []string{"", " --against mesh --flows flows.json"} {
		out, code := shell("sed s/8080/8081/ shop.yaml > less.yaml && heddle simulate -f less.yaml" + offline)
		if code != exitBreaks || !strings.Contains(out, "shop/customer") || !strings.Contains(out, "shop/web:8080") || !strings.Contains(out, "PolicyNoMatch") {
			t.Errorf("under less%s: exit %d:\n%s", offline, code, out)
		}
	}
}

// TestNothingToJudge: of a change, or of files, without an object it is not said that all is well, and routes that are
// passed over are named.
func TestNothingToJudge(t *testing.T) {
	const dir = "testdata/simulate/udp/"
	folder := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\nspec: {}\n"
	comment, routes := write("comment.yaml", "# nothing\n"), write("route.yaml", route)
	both := write("both.yaml", route+"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n")
	mesh := filepath.Join(folder, "mesh")
	if err := os.CopyFS(mesh, os.DirFS(dir+"mesh")); err != nil {
		t.Fatal(err)
	}
	write("mesh/route.yaml", strings.NewReplacer("name: web", "name: there", "HTTPRoute", "GRPCRoute").Replace(route))
	simulate := " --udp-by-identity --against " + mesh + " --flows " + dir + "flows.json --state-dir " + folder
	const deletes = "simulate --delete GRPCRoute/shop/there"
	for _, tc := range []struct {
		command string
		code    int
		says    string
	}{
		{"simulate -f " + comment + simulate, exitInvalid, "there is no object in " + comment},
		{"simulate -f " + t.TempDir() + simulate, exitInvalid, "there is no object in "},
		{"simulate -f " + routes + simulate, exitInvalid, "routes are not judged: HTTPRoute/shop/web; remedy"},
		{"simulate -f " + both + simulate, exitOK, "warning: routes are not judged: HTTPRoute/shop/web"},
		{"simulate -f " + both + " -o json" + simulate, exitOK, `"routes are not judged: HTTPRoute/shop/web"`},
		{"simulate -f " + routes + " -f " + dir + "change.yaml" + simulate, exitBreaks, "warning: routes are not judged: HTTPRoute/shop/web"},
		{"simulate -f " + dir + "change.yaml -f " + comment + simulate, exitBreaks, "warning: there is no object in " + comment},
		{"simulate -f " + routes + " --delete AuthorizationPolicy/shop/web-quic" + simulate, exitBreaks, "warning: routes are not judged: HTTPRoute/shop/web"},
		{deletes + simulate, exitInvalid, "nothing would change that is judged: routes are not judged: GRPCRoute/shop/there; remedy"},
		{deletes + " -f " + routes + simulate, exitInvalid, "routes are not judged: HTTPRoute/shop/web, GRPCRoute/shop/there; remedy"},
		{deletes + ",authorizationpolicy/shop/web-quic" + simulate, exitBreaks, "warning: routes are not judged: GRPCRoute/shop/there"},
		{"simulate --delete HTTPRoute/shop/there" + simulate, exitUsage, "there is no such object"},
		{"analyze -f " + comment, exitInvalid, "there is no object in " + comment},
		{"analyze -f " + t.TempDir(), exitInvalid, "there is no object in "},
		{"analyze -f " + both, exitOK, "Nothing is cut off."},
	} {
		var out, log bytes.Buffer
		if code := run(t.Context(), append([]string{"heddle"}, split(tc.command)...), &out, &log, false); code != tc.code || !strings.Contains(out.String()+log.String(), tc.says) {
			t.Errorf("%s: exit %d, want %d and %q:\n%s%s", tc.command, code, tc.code, tc.says, out.String(), log.String())
		}
	}
}

// TestNothingIsLeft: flags that leave nothing of what is recorded let no change pass, and where nothing is
// recorded, that is said.
func TestNothingIsLeft(t *testing.T) {
	old, _ := world(t, &fakeAgent{node: "n1", age: 5 * time.Hour}, &fakeAgent{node: "n2", idle: true})
	idle, _ := world(t, &fakeAgent{node: "n1", idle: true})
	none := t.TempDir()
	gone := filepath.Join(none, "gone.json") // of a namespace that is not there any more
	if err := os.WriteFile(gone, []byte(`{"hour":"2026-03-04T12:00:00Z","first":"2026-03-04T12:00:03Z","last":"2026-03-04T12:58:41Z","node":"n1","direction":"inbound","source":{"workload":"was/a"},"destination":{"workload":"shop/web"},"port":80,"verdict":"allow","reason":"NoPolicy","transport":"tunnel","count":1}
{"coverage":{"node":"n1"}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	const objects = " --against ../../e2e/demo/mesh"
	const breaking, flows = "simulate -f testdata/simulate/breaking.yaml" + objects, " --flows testdata/simulate/flows.json"
	const left, recorded = "nothing is left to judge by of what is recorded, which is from ", "no connection is recorded"
	for _, tc := range []struct {
		state, command string
		code           int
		says           string
	}{
		{none, breaking + flows + " -n shop", exitBreaks, "would break"},
		{none, breaking + flows + " -n shpo", exitUsage, "-n shpo: there is no such namespace"},
		{none, breaking + flows + " -n legacy", exitFailed, left + "2026-03-04 12:00Z to 2026-03-04 12:58Z"},
		{none, breaking + flows + " --since 1m -o json", exitFailed, left},
		{none, "suggest shop" + objects + flows + " --since 1m", exitFailed, left},
		{none, breaking + " -n was --flows " + gone, exitOK, "was/a"},
		{old, breaking + " --since 2h", exitFailed, left},
		{old, breaking, exitOK, "Nothing would break."},
		{old, breaking + " --since 1d12h", exitOK, "Nothing would break."},
		{old, "suggest shop" + objects + " --since 1w", exitOK, "kind: AuthorizationPolicy"},
		{old, breaking + " -n legacy", exitFailed, left},
		{old, "suggest shop" + objects + " --since 2h", exitFailed, left},
		{old, "history --since 2h -n nowhere", exitOK, "HOUR"},
		{idle, breaking, exitOK, "warning: " + recorded},
		{idle, breaking + " --since 2h -n shop", exitOK, "warning: " + recorded},
		{idle, breaking + " -n shpo", exitUsage, "-n shpo: there is no such namespace"},
		{idle, breaking + " -o json", exitOK, "\"" + recorded},
		{idle, "suggest shop" + objects, exitOK, "# - " + recorded},
	} {
		code, out, log := heddle(t, append(split(tc.command), "--state-dir", tc.state)...)
		if code != tc.code || !strings.Contains(out+log, tc.says) || code == exitFailed && out != "" {
			t.Errorf("%s: exit %d, want %d and %q:\n%s%s", tc.command, code, tc.code, tc.says, out, log)
		}
	}
}
