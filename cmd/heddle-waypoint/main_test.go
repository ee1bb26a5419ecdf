package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// documented writes the folder that docs/waypoint.md shows, and returns the commands that it shows.
func documented(t *testing.T) (folder string, commands [][]string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/waypoint.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(yaml|sh)\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	folder = filepath.Join(t.TempDir(), "mesh")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if b[1] == "yaml" {
			if err := os.WriteFile(filepath.Join(folder, "shop.yaml"), []byte(b[2]), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for line := range strings.SplitSeq(strings.TrimSpace(strings.ReplaceAll(b[2], "\\\n", "")), "\n") {
			args := strings.Fields(line)
			for i := range args {
				if args[i] == "mesh" {
					args[i] = folder
				}
			}
			commands = append(commands, args[1:])
		}
	}
	if len(commands) != 3 {
		t.Fatalf("docs/waypoint.md shows %d commands", len(commands))
	}
	return folder, commands
}

// TestFIPS140 runs the program in each mode, asked as the operator asks its pods: by the environment.
func TestFIPS140(t *testing.T) {
	if folder := os.Getenv("TEST_WAYPOINT_FOLDER"); folder != "" {
		asked := func(name string) (string, bool) { return "true", name == "HEDDLE_FIPS140" }
		var out bytes.Buffer
		err := run(t.Context(), []string{"--waypoint", "shop/waypoint", "--config", folder, "--check"}, asked, &out, io.Discard)
		switch os.Getenv("TEST_WAYPOINT_FIPS140") {
		case "off":
			if !errors.Is(err, fips.ErrOff) || out.Len() != 0 {
				t.Errorf("%v %q", err, out.String())
			}
		default:
			if err != nil || out.String() != folder+": in order\n" {
				t.Errorf("%v %q", err, out.String())
			}
		}
		return
	}
	folder, _ := documented(t)
	for _, mode := range []string{"off", "on", "only"} {
		again := exec.Command("/proc/self/exe", "-test.run=^TestFIPS140$", "-test.v")
		again.Env = append(os.Environ(), "GODEBUG=fips140="+mode, "TEST_WAYPOINT_FOLDER="+folder, "TEST_WAYPOINT_FIPS140="+mode)
		if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestFIPS140")) {
			t.Errorf("%s: %v\n%s", mode, err, out)
		}
	}
}

func noEnvironment(string) (string, bool) { return "", false }

// TestDocumented: what the page shows serves, reloads, keeps what was good, and stops when it is told to.
func TestDocumented(t *testing.T) {
	folder, commands := documented(t)
	var out bytes.Buffer
	if err := run(t.Context(), commands[0], noEnvironment, &out, io.Discard); err != nil || out.String() != folder+": in order\n" {
		t.Fatalf("%v %q", err, out.String())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-For")) })}
	go func() { _ = app.Serve(l) }()
	defer app.Close()
	at, metrics := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	args := commands[1]
	for i := range args {
		args[i] = strings.NewReplacer("127.0.0.1:8080", at, "127.0.0.1:15020", metrics, "127.0.0.1:8081", l.Addr().String()).Replace(args[i])
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := &testenv.Log{}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, append(args, "--access-log", "-"), noEnvironment, log, log) }()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	get := func(url string) string {
		resp, err := client.Get(url)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s%s", resp.StatusCode, resp.Header.Get("Location"), body)
	}
	until := func(url, want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); get(url) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s, want %s\n%s", url, get(url), want, log.String())
			}
		}
	}
	until("http://"+metrics+"/readyz", "200 ready\n")
	until("http://"+at+"/", "200 127.0.0.1")
	until("http://"+at+"/old/x", "301 http://127.0.0.1/new/x")
	text := get("http://" + metrics + "/metrics")
	for _, want := range []string{`heddle_waypoint_requests_total{backend="shop/cart:80",code="2xx",route="HTTPRoute shop/cart rules[1]"}`, `heddle_fips140{module=`} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics have no %s:\n%s", want, text)
		}
	}
	file := filepath.Join(folder, "shop.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	change := func(from, to string) {
		if err := os.WriteFile(file, []byte(strings.Replace(string(good), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("replacePrefixMatch: /new", "replacePrefixMatch: /newer")
	until("http://"+at+"/old/x", "301 http://127.0.0.1/newer/x")
	change("trustDomain: example.org", "trustDomaim: example.org")
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), "spec.trustDomaim") && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
	}
	if !strings.Contains(log.String(), "shop.yaml:") || !strings.Contains(log.String(), "spec.trustDomaim") {
		t.Errorf("nothing names file and field: %s", log.String())
	}
	until("http://"+at+"/old/x", "301 http://127.0.0.1/newer/x")
	client.CloseIdleConnections()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not stop")
	}
	if !strings.Contains(log.String(), `"path":"/old/x","status":301`) && !strings.Contains(log.String(), `"path":"/old/x","user_agent":"Go-http-client/1.1","status":301`) {
		t.Errorf("the access log has no request: %s", log.String())
	}
}

// TestFlowsDocumented runs what the page shows of requests as flows, and looks at them.
func TestFlowsDocumented(t *testing.T) {
	_, commands := documented(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })}
	go func() { _ = app.Serve(l) }()
	defer app.Close()
	at, socket := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), filepath.Join(t.TempDir(), "w")
	args := commands[2]
	for i := range args {
		args[i] = strings.NewReplacer("127.0.0.1:8080", at, "127.0.0.1:15020", "127.0.0.1:0", "127.0.0.1:8081", l.Addr().String(), "/run/heddle/waypoint.sock", socket).Replace(args[i])
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := &testenv.Log{}
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, append(args, "--replica", "here", "--trace-endpoint", "http://127.0.0.1:1"), noEnvironment, log, log)
	}()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	testenv.Eventually(t, 20*time.Second, "it answers", func() bool {
		resp, err := client.Get("http://" + at + "/x?secret")
		return err == nil && resp.StatusCode == 200 && resp.Body.Close() == nil
	})
	var c *admin.Client
	testenv.Eventually(t, 20*time.Second, "the socket answers", func() (there bool) {
		var err error
		c, err = admin.Dial(t.Context(), socket)
		return err == nil
	})
	stream, err := c.Flows.Watch(t.Context(), &meshpb.WatchFlowsRequest{Last: 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if r := m.GetFlow().GetRequest(); err != nil || r.GetPath() != "/*" || r.GetStatus() != 200 || r.GetRoute() != "HTTPRoute shop/cart rules[1]" || m.GetFlow().GetNode() != "here" {
		t.Errorf("%v %v", m, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not stop")
	}
}

// TestFlags: what is wrong with them is said by their names.
func TestFlags(t *testing.T) {
	folder, _ := documented(t)
	for _, c := range []struct{ args, want string }{
		{"--config " + folder, "--waypoint"},
		{"--waypoint shop --config " + folder, "NAMESPACE/NAME"},
		{"--waypoint shop/waypoint", "--config"},
		{"--waypoint shop/waypoint --config " + folder + " --direct x", "--direct"},
		{"--waypoint shop/waypoint --config " + folder + " --reach a=b", "--reach a=b"},
		{"--waypoint shop/waypoint --config " + folder + " --access-log-sample 2", "from 0 to 1"},
		{"--waypoint shop/waypoint --config " + folder + " --access-log-mask nothing", "mask"},
		{"--waypoint shop/waypoint --config " + folder + " --flow-sample x=2", "--flow-sample"},
		{"--waypoint shop/waypoint --config " + folder + " --flow-records -1", "--flow-records"},
		{"--waypoint shop/waypoint --config " + folder + " --trace-sample shop/*x=1", "--trace-sample"},
		{"--waypoint shop/waypoint --config " + folder + " --trace-endpoint collector:4317", "http://HOST:PORT"},
		{"--waypoint shop/none --check --config " + folder, "there is no Service shop/none"},
		{"--waypoint shop/waypoint --check --config " + folder + "/none", "open configuration folder"},
		{"--waypoint shop/waypoint --log-level loud --config " + folder, "--log-level"},
	} {
		err := run(t.Context(), strings.Fields(c.args), noEnvironment, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.args, err, c.want)
		}
	}
}
