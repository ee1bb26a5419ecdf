package cluster

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/e2e/cluster/machine"
)

const containerdSocket = "/run/containerd/containerd.sock"

// object is a JSON object, as configuration files have them.
type object = map[string]any

// machineSpec is what all machines have.
func (c *Cluster) machineSpec(name string) machine.Spec {
	return machine.Spec{
		Name: name, Dir: filepath.Join(c.plan.dir(), name),
		Cgroup: "cluster-" + c.plan.Options.Name + "/" + name,
		Netns:  "cluster-" + c.plan.Options.Name + "-" + name,
		Shares: map[string]string{programsShare: c.programs.Dir, pkiShare: string(c.pki())},
		Sysctls: map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
			// Addresses do not change hands, and tests do not wait for them.
			"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0",
		},
		Files: map[string]string{
			// Empty: pods with dnsPolicy Default must not have the host's servers.
			"/etc/resolv.conf": "# no name servers\n",
			"/etc/hosts":       c.hostsFile(name),
			"/etc/hostname":    name + "\n",
		},
	}
}

func (c *Cluster) hostsFile(name string) string {
	lines := "127.0.0.1 localhost\n::1 localhost\n"
	for _, address := range c.plan.addresses(name) {
		lines += fmt.Sprintf("%s %s\n", address, name)
	}
	return lines
}

// workerSpec is a machine that runs pods.
func (c *Cluster) workerSpec(worker string) (machine.Spec, error) {
	spec := c.machineSpec(worker)
	// Cluster CNIs (flannel's, Calico's, Cilium's) write their file at every start, over
	// what was made of it.
	spec.BootFiles = map[string]string{}
	for _, f := range []struct {
		to     map[string]string
		path   string
		config object
	}{
		{spec.BootFiles, "/etc/cni/net.d/10-pods.conflist", c.podNetwork(worker)},
		{spec.Files, "/etc/kubernetes/kubelet.json", c.kubeletConfig(worker)},
		{spec.Files, "/etc/kubernetes/kube-proxy.json", c.proxyConfig(worker)},
	} {
		data, err := json.MarshalIndent(f.config, "", "  ")
		if err != nil {
			return spec, fmt.Errorf("write %s: %w", f.path, err)
		}
		f.to[f.path] = string(data) + "\n"
	}
	spec.Files["/etc/containerd/config.toml"] = containerdConfig
	spec.Copies = map[string]string{}
	for _, plugin := range build.Plugins() {
		spec.Copies["/opt/cni/bin/"+plugin] = programsShare + "/cni/" + plugin
	}
	spec.Folders = []string{"/etc/kubernetes/manifests", "/run/netns", "/var/log/pods", "/var/log/containers"}
	// Not overlays: containerd mounts overlays of its own in there.
	spec.Disks = map[string]string{"/var/lib/containerd": "containerd", "/var/lib/kubelet": "kubelet"}
	// The kubelet insists on these values, and would set them for the whole host.
	spec.Masks = map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
	spec.Programs = []machine.Program{
		{Name: "containerd", Args: []string{"containerd", "--config=/etc/containerd/config.toml"}},
		{Name: "kubelet", After: containerdSocket, Args: []string{kubeProgram, "kubelet", "--config=/etc/kubernetes/kubelet.json",
			"--kubeconfig=" + kubeconfigOf("kubelet-"+worker), "--hostname-override=" + worker,
			"--node-ip=" + listed(c.plan.addresses(worker))}},
		{Name: "kube-proxy", Args: []string{kubeProgram, "kube-proxy", "--config=/etc/kubernetes/kube-proxy.json"}},
	}
	return spec, nil
}

// podNetwork routes each pod by itself, as kindnet does: no bridge, so that no
// br_netfilter is needed, and no masquerading, so that servers see their clients.
func (c *Cluster) podNetwork(worker string) object {
	var routes []object
	var ranges [][]object // a pod has an address of each
	for _, subnet := range c.plan.podRanges(worker) {
		routes = append(routes, object{"dst": everything(subnet.Addr()).String()})
		ranges = append(ranges, []object{{"subnet": subnet.String()}})
	}
	return object{
		"cniVersion": "1.0.0", "name": "pods",
		"plugins": []object{
			{"type": "ptp", "mtu": linkMTU, "ipMasq": false, "ipam": object{
				"type": "host-local", "dataDir": "/run/cni-ipam", // gone after a boot, as the pods are
				"routes": routes, "ranges": ranges,
			}},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}
}

func (c *Cluster) kubeletConfig(worker string) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs", "failCgroupV1": false, "failSwapOn": false,
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": inPKI("ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},
		"tlsCertFile":   inPKI("kubelet-" + worker + ".crt"), "tlsPrivateKeyFile": inPKI("kubelet-" + worker + ".key"),
		"clusterDNS": c.plan.dnsAddresses(), "clusterDomain": clusterDomain,
		"resolvConf":    "/etc/resolv.conf",
		"staticPodPath": "/etc/kubernetes/manifests", "volumePluginDir": "/var/lib/kubelet/volumeplugins",
		// The host's disk is not this node's to judge, and an image that is deleted
		// cannot be pulled again.
		"evictionHard": object{
			"memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"oomScoreAdj": 0, "nodeStatusUpdateFrequency": "5s", "podCIDR": listed(c.plan.podRanges(worker)),
	}
}

func (c *Cluster) proxyConfig(worker string) object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": kubeconfigOf("proxy")},
		"mode":             c.plan.Options.ProxyMode, "clusterCIDR": listed(c.plan.allPods()),
		"hostnameOverride": worker, "oomScoreAdj": 0,
		// These limits are the host's, and cannot be set in a network namespace.
		"conntrack": object{"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

// containerdConfig is of version 2, which containerd 2 reads too.
// restrict_oom_score_adj: root without CAP_SYS_RESOURCE, as in many virtual
// machines and containers, cannot lower the value, and every pod would fail.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + build.PauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`
