// Command kube is every program of a Kubernetes cluster in one binary: the
// components share most of their packages, so that one link is far smaller and
// faster than seven. The first argument names the component, the rest is for it:
//
//	kube kube-apiserver --etcd-servers=...
//	kube kubectl get nodes
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client-go's metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info
	"k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func components() map[string]func() *cobra.Command {
	return map[string]func() *cobra.Command{
		"etcd":                    etcdCommand,
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": controllers.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kube-proxy":              proxy.NewProxyCommand,
		// The kubelet makes its own signal context; a second one panics.
		"kubelet": func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
		"kubectl": func() *cobra.Command { return cmd.NewDefaultKubectlCommand() },
	}
}

func main() {
	name := filepath.Base(os.Args[0]) // a link named kubectl is kubectl
	command, ok := components()[name]
	if !ok && len(os.Args) > 1 {
		// Before cobra reads them: a component's first argument is its own.
		name, os.Args = os.Args[1], os.Args[1:]
		command, ok = components()[name]
	}
	if !ok {
		fmt.Fprintf(os.Stderr, "usage: kube COMPONENT ARGUMENTS...\ncomponents: %s\n",
			strings.Join(slices.Sorted(maps.Keys(components())), ", "))
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}
