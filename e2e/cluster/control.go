package cluster

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/heddle-mesh/heddle/e2e/cluster/machine"
	"github.com/heddle-mesh/heddle/e2e/cluster/pki"
)

// files of the public-key infrastructure, without their extension.
const (
	caFile             = "ca"
	frontProxyCAFile   = "front-proxy-ca"
	serviceAccountFile = "sa"
)

func (c *Cluster) pki() pki.Folder { return pki.Folder(filepath.Join(c.plan.dir(), "pki")) }

// Where a machine finds the host's folders, wherever they are there.
const (
	programsShare = "/run/cluster/programs"
	pkiShare      = "/run/cluster/pki"
	kubeProgram   = programsShare + "/kube"
)

// inPKI is the path of a file within the machines.
func inPKI(file string) string { return pkiShare + "/" + file }

func kubeconfigOf(user string) string { return inPKI(user + ".kubeconfig") }

// makePKI makes all keys and certificates. Node authorizer and built-in role
// bindings give these users their rights; nothing else has to.
func (c *Cluster) makePKI() error {
	folder := c.pki()
	ca, err := folder.NewAuthority(caFile)
	if err != nil {
		return err
	}
	frontProxy, err := folder.NewAuthority(frontProxyCAFile)
	if err != nil {
		return err
	}
	if err := folder.KeyPair(serviceAccountFile); err != nil {
		return err
	}
	if err := frontProxy.Issue("front-proxy-client", pki.Subject{Name: "front-proxy-client"}); err != nil {
		return err
	}
	const service = "kubernetes.default.svc"
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err := ca.Issue("apiserver", pki.Subject{
		Name:      "kube-apiserver",
		DNSNames:  []string{"kubernetes", "kubernetes.default", service, service + "." + clusterDomain, "localhost"},
		Addresses: slices.Concat(c.plan.addresses(controlPlane), c.plan.apiServiceAddresses(), []netip.Addr{loopback}),
	}); err != nil {
		return err
	}
	if err := ca.Issue("apiserver-kubelet-client", pki.Subject{Name: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}}); err != nil {
		return err
	}
	return c.makeUsers(ca)
}

func (c *Cluster) makeUsers(ca *pki.Authority) error {
	inside := "https://" + c.plan.apiAddress()
	for _, user := range []string{"controller-manager", "scheduler", "proxy"} {
		subject := pki.Subject{Name: "system:kube-" + user}
		if err := ca.Kubeconfig(c.pki().Path(user+".kubeconfig"), inside, c.plan.Options.Name, subject); err != nil {
			return err
		}
	}
	for _, worker := range c.plan.workers() {
		subject := pki.Subject{
			Name: "system:node:" + worker, Groups: []string{"system:nodes"},
			DNSNames: []string{worker}, Addresses: c.plan.addresses(worker),
		}
		if err := ca.Issue("kubelet-"+worker, subject); err != nil {
			return err
		}
		if err := ca.Kubeconfig(c.pki().Path("kubelet-"+worker+".kubeconfig"), inside, c.plan.Options.Name, subject); err != nil {
			return err
		}
	}
	outside := fmt.Sprintf("https://127.0.0.1:%d", c.plan.Options.APIPort)
	admin := pki.Subject{Name: c.plan.Options.Name + "-admin", Groups: []string{"system:masters"}}
	return ca.Kubeconfig(c.Kubeconfig(), outside, c.plan.Options.Name, admin)
}

// controlSpec is the machine that runs etcd and the control plane.
func (c *Cluster) controlSpec() machine.Spec {
	spec := c.machineSpec(controlPlane)
	spec.Forwards = []machine.Forward{{HostPort: c.plan.Options.APIPort, Target: c.plan.apiAddress()}}
	spec.Disks = map[string]string{"/var/lib/etcd": "etcd"}
	spec.Programs = []machine.Program{
		{Name: "etcd", Args: []string{kubeProgram, "etcd", "--data-dir=/var/lib/etcd/member"}},
		{Name: "kube-apiserver", Args: append([]string{kubeProgram, "kube-apiserver"}, c.apiServerFlags()...)},
		{Name: "kube-controller-manager", Args: append([]string{kubeProgram, "kube-controller-manager"}, c.controllerFlags()...)},
		{Name: "kube-scheduler", Args: append([]string{kubeProgram, "kube-scheduler"}, clientFlags("scheduler")...)},
	}
	return spec
}

func (c *Cluster) apiServerFlags() []string {
	return []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=" + c.plan.everywhere(), fmt.Sprintf("--secure-port=%d", apiPort),
		"--advertise-address=" + c.plan.address(controlPlane).String(),
		"--service-cluster-ip-range=" + listed(c.plan.allServices()),
		"--client-ca-file=" + inPKI("ca.crt"),
		"--tls-cert-file=" + inPKI("apiserver.crt"), "--tls-private-key-file=" + inPKI("apiserver.key"),
		"--kubelet-certificate-authority=" + inPKI("ca.crt"),
		"--kubelet-client-certificate=" + inPKI("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + inPKI("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
		"--service-account-key-file=" + inPKI("sa.pub"), "--service-account-signing-key-file=" + inPKI("sa.key"),
		"--requestheader-client-ca-file=" + inPKI("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + inPKI("front-proxy-client.crt"), "--proxy-client-key-file=" + inPKI("front-proxy-client.key"),
		// To the pods of webhooks and aggregated APIs: no kube-proxy runs here.
		"--enable-aggregator-routing=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
	}
}

func (c *Cluster) controllerFlags() []string {
	return append(clientFlags("controller-manager"),
		"--use-service-account-credentials",
		"--service-account-private-key-file="+inPKI("sa.key"), "--root-ca-file="+inPKI("ca.crt"),
		"--cluster-signing-cert-file="+inPKI("ca.crt"), "--cluster-signing-key-file="+inPKI("ca.key"),
		"--service-cluster-ip-range="+listed(c.plan.allServices()),
		// A node that is gone is noticed within a test's patience.
		"--node-monitor-period=2s", "--node-monitor-grace-period=20s",
	)
}

// clientFlags are those of a component that works through the API server.
func clientFlags(user string) []string {
	config := kubeconfigOf(user)
	return []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false", "--bind-address=127.0.0.1",
	}
}
