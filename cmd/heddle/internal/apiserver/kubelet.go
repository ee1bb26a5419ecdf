package apiserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Exec runs a command in a pod, NAMESPACE/NAME.
type Exec func(ctx context.Context, pod string, command []string, in io.Reader, out, errOut io.Writer) error

// Kubelet makes a node whose kubelet answers pods/exec by run, until the test
// ends.
func (s *Server) Kubelet(t testing.TB, node string, run Exec) {
	t.Helper()
	kubelet := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // exec/NAMESPACE/POD/CONTAINER
		options, err := remotecommand.NewOptions(r)
		if err != nil || len(path) != 4 || path[0] != "exec" {
			http.Error(w, fmt.Sprintf("%s: %v", r.URL, err), http.StatusBadRequest)
			return
		}
		remotecommand.ServeExec(w, r, executor(run), path[1]+"/"+path[2], "", path[3], r.URL.Query()["command"], options, time.Minute, 10*time.Second, remotecommand.SupportedStreamingProtocols)
	}))
	t.Cleanup(func() {
		kubelet.CloseClientConnections()
		kubelet.Close()
	})
	s.Put(t, fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDRs: [10.244.1.0/24], podCIDR: 10.244.1.0/24}
status:
  addresses: [{type: InternalIP, address: 127.0.0.1}]
  daemonEndpoints: {kubeletEndpoint: {Port: %d}}
  nodeInfo: {kernelVersion: 6.12.0, operatingSystem: linux, machineID: "", systemUUID: "", bootID: "", osImage: "", containerRuntimeVersion: "", kubeletVersion: "", kubeProxyVersion: "", architecture: ""}
`, node, kubelet.Listener.Addr().(*net.TCPAddr).Port))
}

type executor Exec

// ExecInContainer implements remotecommand.Executor.
func (e executor) ExecInContainer(ctx context.Context, name, _, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return e(ctx, name, cmd, in, out, errOut)
}
