package world

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// clientID and serverID are the identities of pods: each of them has its own, as
// in a mesh, and each node's Envoy has those of its node's pods.
func clientID(i int) string { return fmt.Sprintf(clientIDs+"c%d", i) }
func serverID(i int) string { return fmt.Sprintf(serverIDs+"s%d", i) }

const (
	clientIDs = "spiffe://bench.heddle.dev/ns/load/sa/"
	serverIDs = "spiffe://bench.heddle.dev/ns/serve/sa/"
)

// EnvoyBinary returns the path of the Envoy that e2e/interop tests with, and
// gets it first when it is not there.
func EnvoyBinary(root string) (string, error) {
	out, err := exec.Command(filepath.Join(root, "e2e/interop/envoy.sh")).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("get Envoy: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// prepareEnvoy writes certificates and configurations, and gives each client's
// pod the servers' addresses as its own: what it sends to them comes to Envoy's
// listener in the pod over lo, by no redirection at all.
func (w *World) prepareEnvoy() error {
	if err := writeCertificates(w.cfg.Scratch); err != nil {
		return err
	}
	for i := range Clients {
		for s := range Servers {
			if err := inNetNS(podNetNS(w.name(), fmt.Sprintf("c%d", i)), "ip", "address", "add", serverAddr(s).String()+"/32", "dev", "lo"); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(w.cfg.Scratch, "n1.yaml"), []byte(outboundYAML(w.name(), w.cfg.Scratch)), 0o600),
		os.WriteFile(filepath.Join(w.cfg.Scratch, "n2.yaml"), []byte(inboundYAML(w.name(), w.cfg.Scratch)), 0o600),
	)
}

func (w *World) startEnvoys(ctx context.Context) error {
	binary, err := EnvoyBinary(w.cfg.Root)
	if err != nil {
		return err
	}
	for _, n := range w.mesh.Plan.Nodes {
		log := filepath.Join(w.cfg.Scratch, "envoy-"+n.Name+".log")
		cmd := exec.Command("nsenter", "--net=/run/netns/"+n.NetNS, binary, "-c", filepath.Join(w.cfg.Scratch, n.Name+".yaml"),
			"--concurrency", fmt.Sprint(runtime.NumCPU()), "--use-dynamic-base-id", "--log-level", "info")
		p, err := w.spawner.start(cmd, log)
		if err != nil {
			return err
		}
		w.envoys = append(w.envoys, p)
		err = eventually(ctx, 20*time.Second, "Envoy of "+n.Name+" serves", func() error {
			out, err := os.ReadFile(log)
			if err == nil && !strings.Contains(string(out), "starting main dispatch loop") {
				err = fmt.Errorf("it said: %s", out[max(0, len(out)-1000):])
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *World) stopEnvoys() {
	for _, p := range w.envoys {
		p.stop()
	}
	w.envoys = nil
}

// Windows and circuit breakers of both Envoys: as large as a single large
// transfer wants them, and never in the way.
const (
	h2Options = "allow_connect: true, max_concurrent_streams: %d, initial_stream_window_size: 4194304, initial_connection_window_size: 16777216"
	breakers  = "circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}"
)

// tlsYAML is one side's mutual TLS 1.3, indented for its place.
func tlsYAML(scratch, mine, peer, indent string) string {
	return strings.ReplaceAll(fmt.Sprintf(`common_tls_context:
  alpn_protocols: [h2]
  tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
  tls_certificates: [{certificate_chain: {filename: %[1]s/%[2]s.pem}, private_key: {filename: %[1]s/%[2]s-key.pem}}]
  validation_context:
    trusted_ca: {filename: %[1]s/root.pem}
    match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: %[3]q}}]
`, scratch, mine, peer), "\n", "\n"+indent)
}

// outboundYAML has a listener and a cluster for each client's pod. Where the
// cluster connects to follows from the address that the client meant.
func outboundYAML(mesh, scratch string) string {
	var listeners, clusters strings.Builder
	for i := range Clients {
		fmt.Fprintf(&listeners, `  - name: c%[1]d
    address: {socket_address: {address: 0.0.0.0, port_value: %[2]d, network_namespace_filepath: /run/netns/%[3]s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.set_filter_state
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
          on_new_connection:
          - object_key: envoy.network.transport_socket.original_dst_address
            format_string: {text_format_source: {inline_string: "%%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%%:15008"}}
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: out
          cluster: c%[1]d
          idle_timeout: 0s
          tunneling_config: {hostname: "%%DOWNSTREAM_LOCAL_ADDRESS%%"}
`, i, Port, podNetNS(mesh, fmt.Sprintf("c%d", i)))
		fmt.Fprintf(&clusters, `  - name: c%[1]d
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 5s
    %[2]s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {%[3]s}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        %[4]s
`, i, breakers, fmt.Sprintf(h2Options, 100), tlsYAML(scratch, fmt.Sprintf("c%d", i), serverIDs, "        "))
	}
	return "static_resources:\n  listeners:\n" + listeners.String() + "  clusters:\n" + clusters.String()
}

// inboundYAML has a listener in each server's pod. It dials the application from
// inside the pod, as Heddle does.
func inboundYAML(mesh, scratch string) string {
	var listeners, clusters strings.Builder
	for s := range Servers {
		netns := "/run/netns/" + podNetNS(mesh, fmt.Sprintf("s%d", s))
		fmt.Fprintf(&listeners, `  - name: s%[1]d
    address: {socket_address: {address: 0.0.0.0, port_value: 15008, network_namespace_filepath: %[2]s}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          %[3]s
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: HTTP2
          stream_idle_timeout: 0s
          http2_protocol_options: {%[4]s}
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config:
            virtual_hosts:
            - name: app
              domains: ["%[5]s"]
              routes: [{match: {connect_matcher: {}}, route: {cluster: s%[1]d, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]
`, s, netns, tlsYAML(scratch, fmt.Sprintf("s%d", s), clientIDs, "          "), fmt.Sprintf(h2Options, 1000), Address(s))
		fmt.Fprintf(&clusters, `  - name: s%[1]d
    type: STATIC
    connect_timeout: 5s
    %[2]s
    upstream_bind_config: {source_address: {address: 0.0.0.0, port_value: 0, network_namespace_filepath: %[3]s}}
    load_assignment: {cluster_name: s%[1]d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[4]s, port_value: %[5]d}}}}]}]}
`, s, breakers, netns, serverAddr(s), Port)
	}
	return "static_resources:\n  listeners:\n" + listeners.String() + "  clusters:\n" + clusters.String()
}

// writeCertificates makes a root and the pods' certificates, of the kind that
// Heddle's have.
func writeCertificates(dir string) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "root.pem"), "CERTIFICATE", der); err != nil {
		return err
	}
	for i := range Clients {
		if err := writeLeaf(filepath.Join(dir, fmt.Sprintf("c%d", i)), clientID(i), root, rootKey); err != nil {
			return err
		}
	}
	for i := range Servers {
		if err := writeLeaf(filepath.Join(dir, fmt.Sprintf("s%d", i)), serverID(i), root, rootKey); err != nil {
			return err
		}
	}
	return nil
}

func writeLeaf(base, id string, root *x509.Certificate, rootKey *ecdsa.PrivateKey) error {
	uri, err := url.Parse(id)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(base+".pem", "CERTIFICATE", der), writePEM(base+"-key.pem", "PRIVATE KEY", private))
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
