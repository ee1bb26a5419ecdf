package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/template"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
)

// How long each step may take on a machine that has other work, too.
const (
	apiPatience  = 2 * time.Minute
	nodePatience = 2 * time.Minute
	dnsPatience  = 2 * time.Minute
	loadPatience = 2 * time.Minute
	pollPause    = 100 * time.Millisecond
)

// poll asks until it is told yes, an error with yes, or the context ends. An error
// without yes is the reason why not yet: it is part of the error at the end.
func poll(ctx context.Context, ask func() (bool, error)) error {
	for {
		done, err := ask()
		if done {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pollPause):
		}
	}
}

// waitAPI waits until the API server says that it is ready.
func (c *Cluster) waitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	ca, err := os.ReadFile(c.pki().Path(caFile + ".crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	err = poll(ctx, func() (bool, error) {
		// Readiness is shown to anyone: the role system:public-info-viewer.
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/readyz", c.plan.Options.APIPort), nil)
		if err != nil {
			return true, err
		}
		response, err := client.Do(request)
		if err != nil {
			return false, err
		}
		response.Body.Close() // the status says it all
		return response.StatusCode == http.StatusOK, fmtStatus(response)
	})
	if err != nil {
		return fmt.Errorf("the API server is not ready: %w (its log: %s)", err, c.machines[controlPlane].Log("kube-apiserver"))
	}
	return nil
}

func fmtStatus(response *http.Response) error {
	if response.StatusCode == http.StatusOK {
		return nil
	}
	return errors.New("it answers " + response.Status)
}

// setPodRange waits until a worker registered, and gives it its ranges of pod
// addresses: those that the routes lead to.
func (c *Cluster) setPodRange(ctx context.Context, worker string) error {
	if err := c.waitAPI(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nodePatience)
	defer cancel()
	ranges := c.plan.podRanges(worker)
	patch, err := json.Marshal(object{"spec": object{"podCIDR": ranges[0], "podCIDRs": ranges}})
	if err != nil {
		return err
	}
	err = poll(ctx, func() (bool, error) {
		_, err := c.Kubectl(ctx, "", "patch", "node", worker, "-p", string(patch))
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("node %s does not register: %w (its log: %s)", worker, err, c.machines[worker].Log("kubelet"))
	}
	return nil
}

// kubernetesNode is what is read of a Node.
type kubernetesNode struct {
	Status struct {
		Conditions []struct {
			Type, Status, Message string
		}
		NodeInfo struct {
			BootID         string `json:"bootID"`
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
	}
}

func (n kubernetesNode) ready() (bool, string) {
	for _, condition := range n.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True", condition.Message
		}
	}
	return false, "the kubelet has not said whether"
}

func (c *Cluster) kubernetesNode(ctx context.Context, worker string) (kubernetesNode, error) {
	var node kubernetesNode
	out, err := c.Kubectl(ctx, "", "get", "node", worker, "-o", "json", "--request-timeout=5s")
	if err != nil {
		return node, err
	}
	if err := json.Unmarshal([]byte(out), &node); err != nil {
		return node, fmt.Errorf("read node %s: %w", worker, err)
	}
	return node, nil
}

// waitReady waits until a worker is Ready after its latest boot: until then the
// API server may still hold what the boot before said.
func (c *Cluster) waitReady(ctx context.Context, worker string) error {
	ctx, cancel := context.WithTimeout(ctx, nodePatience)
	defer cancel()
	bootID, err := c.machines[worker].BootID()
	if err != nil {
		return err
	}
	err = poll(ctx, func() (bool, error) {
		node, err := c.kubernetesNode(ctx, worker)
		if err != nil {
			return false, err
		}
		if node.Status.NodeInfo.BootID != bootID {
			return false, errors.New("the kubelet has not reported since the boot")
		}
		ready, message := node.ready()
		if !ready {
			return false, errors.New(message)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("node %s is not ready: %w (its log: %s)", worker, err, c.machines[worker].Log("kubelet"))
	}
	return nil
}

//go:embed dns.yaml
var dnsManifest string

func (c *Cluster) applyDNS(ctx context.Context) error {
	parsed, err := template.New("dns.yaml").Option("missingkey=error").Parse(dnsManifest)
	if err != nil {
		return err
	}
	var manifest strings.Builder
	addresses, err := json.Marshal(c.plan.dnsAddresses())
	if err != nil {
		return err
	}
	err = parsed.Execute(&manifest, map[string]string{
		"Domain": clusterDomain, "Image": build.CoreDNSImage, "Address": c.plan.dnsAddresses()[0].String(), "Addresses": string(addresses),
	})
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, manifest.String(), "apply", "-f", "-"); err != nil {
		return fmt.Errorf("install CoreDNS: %w", err)
	}
	return nil
}

func (c *Cluster) waitDNS(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout="+dnsPatience.String())
	if err != nil {
		return fmt.Errorf("CoreDNS is not ready: %w", err)
	}
	return nil
}
