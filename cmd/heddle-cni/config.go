package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// minTimeout and maxTimeout bound what a question may be told to take: kubelet
// gives a sandbox four minutes (KubeletConfiguration's runtimeRequestTimeout,
// doubled), and the plugins before need some of them.
const minTimeout, maxTimeout = time.Second, 90 * time.Second

// config is the plugin's own part of a CNI configuration, as the agent writes
// it, and what the plugins before said.
type config struct {
	AgentSocket   string `json:"agentSocket"`
	NamespaceList string `json:"namespaceList"`
	// TimeoutSeconds bounds one question.
	TimeoutSeconds int `json:"timeoutSeconds"`
	// PassNamespaces never wait for the agent: Heddle's own, and the cluster's.
	PassNamespaces []string        `json:"passNamespaces"`
	PrevResult     json.RawMessage `json:"prevResult"`

	timeout   time.Duration
	addresses []netip.Addr // of PrevResult
}

func parseConfig(stdin []byte) (*config, error) {
	c := config{AgentSocket: cniwire.DefaultSocket, NamespaceList: cniwire.DefaultList}
	if err := json.Unmarshal(stdin, &c); err != nil {
		return nil, err
	}
	for _, p := range []struct{ field, path string }{{"agentSocket", c.AgentSocket}, {"namespaceList", c.NamespaceList}} {
		if !path.IsAbs(p.path) {
			return nil, fmt.Errorf("%s: %.200q is not an absolute path; remedy: leave it out, or let the agent write the configuration", p.field, p.path)
		}
	}
	c.timeout = cniwire.DefaultTimeout
	if c.TimeoutSeconds != 0 {
		// Bounded first: as a duration the product may overflow.
		c.timeout = time.Duration(min(max(c.TimeoutSeconds, 1), int(maxTimeout/time.Second))) * time.Second
	}
	c.timeout = min(max(c.timeout, minTimeout), maxTimeout)
	var err error
	c.addresses, err = addressesOf(c.PrevResult)
	return &c, err
}

// errNoResult: what the plugin is given to pass on is missing.
var errNoResult = errors.New("prevResult is missing: " + cniwire.PluginType + " works as the last plugin of a chain only; remedy: let the agent install it")

// addressesOf reads the pod's addresses from a result of CNI 0.3.0 or newer:
// those of interfaces inside the sandbox, or all when no interface is named.
func addressesOf(result json.RawMessage) ([]netip.Addr, error) {
	if len(result) == 0 || string(result) == "null" {
		return nil, nil
	}
	var r struct {
		Interfaces []struct {
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []struct {
			Address   string `json:"address"`
			Interface *int   `json:"interface"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(result, &r); err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	var addrs []netip.Addr
	for i, ip := range r.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n].Sandbox == "" {
			continue // the host's end
		}
		prefix, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, fmt.Errorf("prevResult.ips[%d].address: %w", i, err)
		}
		addrs = append(addrs, prefix.Addr().Unmap())
	}
	return addrs, nil
}

// pod is what CNI_ARGS says of a pod.
type pod struct{ namespace, name, uid string }

// parseArgs reads CNI_ARGS, KEY=VALUE;KEY=VALUE. What is not Kubernetes' is
// ignored; without a namespace and a name the sandbox is no pod.
func parseArgs(args string) (p pod, isPod bool) {
	for arg := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(arg, "=")
		switch strings.TrimSpace(key) {
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	// One of the two makes a pod: half of a name must not open a way around.
	return p, p.namespace != "" || p.name != ""
}
