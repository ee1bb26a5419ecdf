// Package kubernetes is the world of scenarios on real Kubernetes: a cluster of
// e2e/cluster on which Heddle is installed. It neither brings the cluster up nor
// installs Heddle, and reads no scenario; e2e/product does the one, package scenario
// the other.
//
// A World may run several scenarios at the same time, but for those that kill agents:
// each has a namespace of its own.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/scenario"
	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/e2e/wire"
)

// pause is between two looks at something that is waited for.
const pause = 100 * time.Millisecond

// Options say where things are.
type Options struct {
	// Cluster has the nodes n1 and n2, and Heddle on those with the label NodeLabel.
	Cluster *cluster.Cluster
	// Image is the one of e2e/product/workload, which the nodes have.
	Image string
	// Heddle is the command line on this machine, OnNode the same on each node.
	Heddle, OnNode string
}

// World is a cluster with Heddle.
type World struct {
	Options
	http *http.Client
	api  dynamic.Interface
	// exec runs a command on a node.
	exec func(ctx context.Context, node string, args ...string) (string, error)

	away struct {
		sync.Mutex
		nodes map[string]bool // whose agent was killed
	}
}

var _ scenario.World = (*World)(nil)

// New returns the world of a cluster. Close ends its connections.
func New(o Options) (*World, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", o.Cluster.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("scenarios on cluster %s: %w", o.Cluster.Name(), err)
	}
	w, err := connect(o, cfg)
	if err != nil {
		return nil, fmt.Errorf("scenarios on cluster %s: %w", o.Cluster.Name(), err)
	}
	w.exec = func(ctx context.Context, node string, args ...string) (string, error) {
		n, err := o.Cluster.Node(node)
		if err != nil {
			return "", err
		}
		return n.Exec(ctx, args...)
	}
	return w, nil
}

func connect(o Options, cfg *rest.Config) (*World, error) {
	cfg.QPS = -1 // scenarios run side by side, and wait by asking
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	api, err := dynamic.NewForConfigAndClient(cfg, client)
	if err != nil {
		return nil, err
	}
	w := &World{Options: o, http: client, api: api}
	w.away.nodes = map[string]bool{}
	return w, nil
}

// Close ends the connections to the API server.
func (w *World) Close() {
	utilnet.CloseIdleConnectionsFor(w.http.Transport) // a Client does not look below what client-go wraps
}

// Name is how a drawing calls the world.
func (w *World) Name() string { return "Kubernetes" }

// Deploy makes service accounts and pods, and waits until kubelet says that they run.
// A failure has what their events say.
func (w *World) Deploy(ctx context.Context, namespace string, workloads []script.Workload) error {
	if err := w.makeNamespace(ctx, namespace); err != nil {
		return err
	}
	for _, d := range workloads {
		for _, object := range w.pod(namespace, d) {
			if err := w.put(ctx, namespace, object); err != nil {
				return err
			}
		}
	}
	err := await(ctx, func() error {
		pods, err := list[corev1.Pod](ctx, w, pods, namespace)
		if err != nil {
			return err
		}
		var waiting []error
		for _, d := range workloads {
			waiting = append(waiting, runs(pods, d.Name))
		}
		return errors.Join(waiting...)
	})
	if err != nil {
		return errors.Join(err, w.events(context.WithoutCancel(ctx), namespace))
	}
	return nil
}

// events returns what Kubernetes says of a namespace's pods, as an error.
func (w *World) events(ctx context.Context, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	all, err := list[corev1.Event](ctx, w, events, namespace)
	if err != nil {
		return err
	}
	var said []error
	for _, e := range all {
		if e.Type == corev1.EventTypeWarning {
			said = append(said, fmt.Errorf("event of %s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message))
		}
	}
	return errors.Join(said...)
}

// Label sets heddle.dev/mesh.
func (w *World) Label(ctx context.Context, namespace, workload, value string) error {
	if err := w.makeNamespace(ctx, namespace); err != nil {
		return err
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, meshLabel, value)
	if workload == "" {
		return w.patch(ctx, namespaces, "", namespace, patch)
	}
	return w.patch(ctx, pods, namespace, workload, patch)
}

// Apply makes or replaces the objects of a file, by server-side apply.
func (w *World) Apply(ctx context.Context, namespace string, file script.File) error {
	if err := w.makeNamespace(ctx, namespace); err != nil {
		return err
	}
	for _, o := range file.Objects {
		if err := w.put(ctx, namespace, o.Fields); err != nil {
			return err
		}
	}
	return nil
}

// Delete takes the objects of a file away.
func (w *World) Delete(ctx context.Context, namespace string, file script.File) error {
	var errs []error
	for _, o := range file.Objects {
		kind, err := resource(o.Kind)
		if err == nil {
			err = w.api.Resource(kind).Namespace(namespace).Delete(ctx, o.Name, metav1.DeleteOptions{})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Address is that of a pod, or of a Service.
func (w *World) Address(ctx context.Context, namespace, name string) (netip.Addr, error) {
	pod, err := get[corev1.Pod](ctx, w, pods, namespace, name)
	text := pod.Status.PodIP
	if apierrors.IsNotFound(err) {
		var service corev1.Service
		service, err = get[corev1.Service](ctx, w, services, namespace, name)
		text = service.Spec.ClusterIP
	}
	if err != nil {
		return netip.Addr{}, err
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return addr, fmt.Errorf("%s/%s has no address: %w", namespace, name, err)
	}
	return addr, nil
}

// Command runs the program in a pod, through the API server and kubelet.
func (w *World) Command(ctx context.Context, namespace, workload string, args ...string) (*exec.Cmd, error) {
	return w.Cluster.KubectlCommand(ctx, append([]string{"-n", namespace, "exec", workload, "--", "/program"}, args...)...), nil
}

// Flows are asked for as a user does: through the API server, of all agents.
func (w *World) Flows(ctx context.Context, namespace string) ([]scenario.Flow, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, w.Heddle, "flows", "--kubeconfig", w.Cluster.Kubeconfig(), "-n", namespace, "--last", "1000", "-o", "json").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(failed.Stderr)))
		}
		return nil, fmt.Errorf("heddle flows: %w", err)
	}
	return scenario.ReadFlows(strings.NewReader(string(out)))
}

// Capture records the network that the nodes meet in.
func (w *World) Capture(context.Context) (func(string, netip.Addr) (wire.Findings, error), error) {
	between, err := w.Cluster.Node("cp")
	if err != nil {
		return nil, err
	}
	running, err := wire.Start(between.Netns(), "br0")
	if err != nil {
		return nil, err
	}
	return func(marker string, judged netip.Addr) (wire.Findings, error) {
		return running.Stop(marker, func(a netip.Addr) bool { return a == judged })
	}, nil
}

// Clear takes the namespace away, and returns when its pods are gone. The namespace
// itself goes some seconds later, as Gone tells; until then it cannot be made again.
func (w *World) Clear(ctx context.Context, namespace string) error {
	err := w.api.Resource(namespaces).Delete(ctx, namespace, metav1.DeleteOptions{})
	if apierrors.IsConflict(err) { // it is on its way
		err = nil
	}
	if ignoreNotFound(err) != nil {
		return err
	}
	// The namespace's own end begins with five seconds in which nothing happens
	// (kubernetes pkg/controller/namespace, namespaceDeletionGracePeriod).
	err = w.api.Resource(pods).Namespace(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if ignoreNotFound(err) != nil {
		return err
	}
	return await(ctx, func() error {
		left, err := list[corev1.Pod](ctx, w, pods, namespace)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("pod %s of namespace %s is still there", left[0].Name, namespace)
		}
		return err
	})
}

// Gone returns when a namespace is not there.
func (w *World) Gone(ctx context.Context, namespace string) error {
	return await(ctx, func() error {
		_, err := w.api.Resource(namespaces).Get(ctx, namespace, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("namespace %s is still there", namespace)
		}
		return ignoreNotFound(err)
	})
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// await looks again and again until what is waited for is so, or ctx is over: then
// its error says what the last look found that ctx did not cut short.
func await(ctx context.Context, look func() error) error {
	var found error
	for {
		err := look()
		if err == nil {
			return nil
		}
		if found == nil || ctx.Err() == nil {
			found = err
		}
		select {
		case <-ctx.Done():
			return found
		case <-time.After(pause):
		}
	}
}
