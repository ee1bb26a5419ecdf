package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/e2e/bench/world"
)

// subject is one of the two that are compared.
type subject struct {
	name string
	// files are its configuration, by their paths in its folder, where /turn redirects to a host
	// that has turn in its name. The first of them has the routes.
	files func(p *proxy, turn int) [][2]string
	// program is its path, args are what it is started with.
	program func(b *bench) (string, error)
	args    func(p *proxy) []string
}

func subjects() []subject {
	return []subject{
		{"heddle", heddleFiles, func(b *bench) (string, error) {
			path := b.bin
			if !filepath.IsAbs(path) {
				path = filepath.Join(b.root, path)
			}
			path = filepath.Join(path, "heddle-waypoint")
			if _, err := os.Stat(path); err != nil {
				return "", fmt.Errorf("%w; remedy: make build", err)
			}
			return path, nil
		}, heddleArgs},
		{"envoy", envoyFiles, func(b *bench) (string, error) { return world.EnvoyBinary(b.root) }, envoyArgs},
	}
}

// proxy is a subject that runs.
type proxy struct {
	subject
	*process
	bench  *bench
	folder string
	port   int
	turns  int // how often its routes were changed
	// plain and two are ports of its server, by HTTP/1.1 and by HTTP/2; most is how many requests it may have under way, 0
	// for as many as come.
	plain, two, most int
}

// proxy is a subject that does not run yet. More tells it from others of the same.
func (b *bench) proxy(s subject, more string) *proxy {
	return &proxy{subject: s, bench: b, folder: filepath.Join(b.scratch, s.name+more), plain: b.server.plain, two: b.server.two}
}

func (p *proxy) binary(b *bench) string {
	path, _ := p.program(b) // it has run
	return path
}

func (p *proxy) address() string { return fmt.Sprintf("127.0.0.1:%d", p.port) }

// access is its access log.
func (p *proxy) access() string { return filepath.Join(p.folder, "access.log") }

// truncate empties the access log, which is appended to.
func (p *proxy) truncate() error { return os.Truncate(p.access(), 0) }

// start starts it with configuration and log of its own, and waits until it serves.
func (p *proxy) start(ctx context.Context) error {
	var err error
	if p.port, err = freePort(); err != nil {
		return err
	}
	for _, file := range p.files(p, 0) {
		path := filepath.Join(p.folder, file[0])
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(file[1]), 0o644)); err != nil {
			return err
		}
	}
	program, err := p.program(p.bench)
	if err != nil {
		return err
	}
	if p.process, err = spawn(exec.Command(program, p.args(p)...), filepath.Join(p.folder, "log")); err != nil {
		return err
	}
	err = p.await(ctx, func() error { return get(ctx, p.address(), "/", body, false) })
	if err != nil {
		p.stop()
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// stop may be called of one that was not started.
func (p *proxy) stop() {
	if p.process != nil {
		p.process.stop()
	}
}

// turn changes the routes, by a file that takes another one's place.
func (p *proxy) turn() (host string, err error) {
	p.turns++
	file := p.files(p, p.turns)[0]
	next := filepath.Join(p.folder, "next")
	if err := os.WriteFile(next, []byte(file[1]), 0o644); err != nil {
		return "", err
	}
	return turnHost(p.turns), os.Rename(next, filepath.Join(p.folder, file[0]))
}

func turnHost(turn int) string { return fmt.Sprintf("turn-%d.example.org", turn) }

// get asks once, on a connection of its own, by HTTP/1.1 or by HTTP/2.
func get(ctx context.Context, address, path, want string, two bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!two)
	transport.Protocols.SetUnencryptedHTTP2(two)
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err == nil && (response.StatusCode != 200 || string(text) != want) {
		err = fmt.Errorf("GET %s: status %d, %q", path, response.StatusCode, text)
	}
	return err
}

// check looks that the routes are what they are to be, that a call of gRPC gets its message, and that all
// of it is in the access log.
func (p *proxy) check(ctx context.Context) error {
	for _, path := range []string{"/", "/two/", "/shop/7/"} {
		if err := get(ctx, p.address(), path, body, path != "/shop/7/"); err != nil {
			return err
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+p.address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	calling, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var said wrapperspb.StringValue
	if err := conn.Invoke(calling, "/bench.Echo/Say", wrapperspb.String("a question"), &said); err != nil || said.GetValue() != answer {
		return fmt.Errorf("a call: %q, %w", said.GetValue(), err)
	}
	return p.await(ctx, func() error {
		log, err := os.ReadFile(p.access())
		for _, path := range []string{`"/two/"`, `"/shop/7/"`, `"/bench.Echo/Say"`} {
			if err == nil && !strings.Contains(string(log), path) {
				err = fmt.Errorf("the access log has no %s", path)
			}
		}
		return err
	})
}

// decoys are routes that others' requests match, beside those that are asked for.
const decoys = 8

// mesh is where the model has the server: an address that only --reach makes sense of.
const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: bench.heddle.dev
  clusterRanges: [10.0.0.0/8]
  defaults: {peerAuthentication: PERMISSIVE}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {clusterIP: 10.96.0.9, selector: {app: waypoint}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: front}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: two}
spec: {clusterIP: 10.96.0.11, selector: {app: web}, ports: [{name: h2c, port: 80, targetPort: 8082}]}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web-1, labels: {app: web}}
spec: {node: n1, serviceAccount: web, addresses: [10.1.0.7]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: front}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
`

func heddleFiles(_ *proxy, turn int) [][2]string {
	var b strings.Builder
	b.WriteString(meshYAML)
	for i := range decoys {
		fmt.Fprintf(&b, "  - matches: [{path: {type: PathPrefix, value: /shop/%[1]d}, headers: [{name: x-tenant, value: t%[1]d}]}]\n    backendRefs: [{name: front, port: 80}]\n", i)
	}
	fmt.Fprintf(&b, `  - matches: [{path: {type: Exact, value: /turn}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: %s, statusCode: 302}}]
  - matches: [{path: {type: PathPrefix, value: /bench.Echo}}]
    backendRefs: [{name: two, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /two}}]
    backendRefs: [{name: two, port: 80}]
  - backendRefs: [{name: front, port: 80}]
`, turnHost(turn))
	return [][2]string{{"mesh/mesh.yaml", b.String()}}
}

func heddleArgs(p *proxy) []string {
	args := []string{"--waypoint", "shop/waypoint", "--config", filepath.Join(p.folder, "mesh"), "--listen", p.address(), "--metrics", "127.0.0.1:0",
		"--access-log", p.access(), "--access-log-mask", "peer", "--loops", fmt.Sprint(runtime.NumCPU()), "--direct", "10.96.0.10:80",
		"--reach", fmt.Sprintf("10.1.0.7:8081=127.0.0.1:%d,10.1.0.7:8082=127.0.0.1:%d", p.plain, p.two)}
	if p.most > 0 {
		args = append(args, "--max-requests", fmt.Sprint(p.most))
	}
	return args
}

func envoyArgs(p *proxy) []string {
	return []string{"-c", filepath.Join(p.folder, "envoy.yaml"), "--concurrency", fmt.Sprint(runtime.NumCPU()), "--use-dynamic-base-id", "--log-level", "warning"}
}

func envoyFiles(p *proxy, turn int) [][2]string {
	var routes strings.Builder
	for i := range decoys {
		fmt.Fprintf(&routes, "    - {name: \"rules[%[1]d]\", match: {prefix: /shop/%[1]d, headers: [{name: x-tenant, string_match: {exact: t%[1]d}}]}, route: {cluster: front}}\n", i)
	}
	fmt.Fprintf(&routes, `    - {name: "rules[8]", match: {path: /turn}, redirect: {host_redirect: %s, response_code: FOUND}}
    - {name: "rules[9]", match: {prefix: /bench.Echo}, route: {cluster: two}}
    - {name: "rules[10]", match: {prefix: /two}, route: {cluster: two}}
    - {name: "rules[11]", match: {prefix: /}, route: {cluster: front}}
`, turnHost(turn))
	most := p.most
	if most == 0 {
		most = 100_000
	}
	return [][2]string{
		{"routes/routes.yaml", fmt.Sprintf(envoyRoutes, turn, routes.String())},
		{"envoy.yaml", fmt.Sprintf(envoyYAML, p.folder, p.port, envoyCluster("front", p.plain, most, ""), envoyCluster("two", p.two, most, `
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 100}}`))},
	}
}

func envoyCluster(name string, port, most int, more string) string {
	return fmt.Sprintf(`  - name: %[1]s
    type: STATIC
    connect_timeout: 5s
    lb_policy: LEAST_REQUEST
    circuit_breakers: {thresholds: [{max_connections: %[4]d, max_pending_requests: %[4]d, max_requests: %[4]d}]}%[3]s
    load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`, name, port, more, most)
}

const envoyRoutes = `version_info: "%d"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes:
%s`

// The fields of the access log are heddle-waypoint's.
const envoyYAML = `node: {id: bench, cluster: bench}
static_resources:
  listeners:
  - name: front
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: AUTO
          use_remote_address: true
          http2_protocol_options: {max_concurrent_streams: 100}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: %[1]s/access.log
              log_format:
                json_format: {time: "%%START_TIME%%", client: "%%DOWNSTREAM_REMOTE_ADDRESS%%", service: front, route: "%%ROUTE_NAME%%", backend: "%%UPSTREAM_CLUSTER%%",
                  workload: "%%UPSTREAM_HOST%%", method: "%%REQ(:METHOD)%%", host: "%%REQ(:AUTHORITY)%%", path: "%%REQ(:PATH)%%", user_agent: "%%REQ(USER-AGENT)%%",
                  status: "%%RESPONSE_CODE%%", received_bytes: "%%BYTES_RECEIVED%%", sent_bytes: "%%BYTES_SENT%%", seconds: "%%DURATION%%",
                  tries: "%%UPSTREAM_REQUEST_ATTEMPT_COUNT%%", reason: "%%RESPONSE_FLAGS%%"}
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          rds:
            route_config_name: routes
            config_source:
              resource_api_version: V3
              path_config_source: {path: %[1]s/routes/routes.yaml, watched_directory: {path: %[1]s/routes}}
  clusters:
%[3]s%[4]s`
