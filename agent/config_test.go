package agent_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent"
)

func TestDefaultsAreValid(t *testing.T) {
	cfg := agent.Defaults()
	cfg.Node, cfg.Log = "n1", slog.New(slog.DiscardHandler)
	if _, err := agent.New(cfg); err != nil {
		t.Error(err)
	}
}

// TestConfigurationErrorsNameFieldAndRemedy also shows that they come together.
func TestConfigurationErrorsNameFieldAndRemedy(t *testing.T) {
	for _, c := range []struct {
		change func(*agent.Config)
		want   []string
	}{
		{func(c *agent.Config) { c.Node = "" }, []string{"Node:", "--node"}},
		{func(c *agent.Config) { c.Node = "../etc" }, []string{"Node:", "--node"}},
		{func(c *agent.Config) { c.StateDir = "state" }, []string{"StateDir:", "--state-dir"}},
		{func(c *agent.Config) { c.AdminSocket = "/" + strings.Repeat("x", 200) }, []string{"AdminSocket:", "107"}},
		{func(c *agent.Config) { c.KeyDir = c.StateDir + "/keys" }, []string{"KeyDir:", "not be on disk"}},
		{func(c *agent.Config) { c.Metrics = "15020" }, []string{"Metrics:", "--metrics"}},
		{func(c *agent.Config) { c.Operator = "nowhere" }, []string{"Operator:", "--operator"}},
		{func(c *agent.Config) { c.Account.TokenFile = "/t" }, []string{"Account.RootsFile:", "--roots-file", "Operator:", "--operator"}},
		{func(c *agent.Config) { c.Account.RootsFile = "roots.pem" }, []string{"Account.TokenFile:", "Account.RootsFile:", "--token-file"}},
		{func(c *agent.Config) {
			c.Account, c.JoinToken = agent.AccountConfig{TokenFile: "/t", RootsFile: "/r"}, "x"
		}, []string{"JoinToken:", "--join-token-file"}},
		{func(c *agent.Config) { c.Engine = "steam" }, []string{"Engine:", `"steam"`, "--engine"}},
		{func(c *agent.Config) { c.Crypto = "homemade" }, []string{"Crypto:", `"homemade"`, "--crypto"}},
		{func(c *agent.Config) { c.Kernel.DNS = "on" }, []string{"Kernel.DNS:", `"on"`, "--dns"}},
		{func(c *agent.Config) { c.TakeOver = "maybe" }, []string{"TakeOver:", `"maybe"`, "--take-over"}},
		{func(c *agent.Config) { c.Kernel.Mark = 1 }, []string{"Kernel.Mark:", "--mark"}},
		{func(c *agent.Config) { c.Kernel.Mark, c.Kernel.MarkMask = 3, 1 }, []string{"Kernel.Mark:", "mask"}},
		{func(c *agent.Config) { c.Kernel.Kubelet = "kubelet.service" }, []string{"Kernel.Kubelet:", "--kubelet-cgroup"}},
		{func(c *agent.Config) { c.Budget.Connections = 0 }, []string{"Budget.Connections:", "--max-connections"}},
		{func(c *agent.Config) { c.Budget.PeerConnections = 0 }, []string{"Budget.PeerConnections:", "--max-peer-connections"}},
		{func(c *agent.Config) { c.Budget.Handshakes = 0 }, []string{"Budget.Handshakes:", "--max-handshakes"}},
		{func(c *agent.Config) { c.Budget.OutboundHandshakes = 0 }, []string{"Budget.OutboundHandshakes:", "--max-outbound-handshakes"}},
		{func(c *agent.Config) { c.Budget.BufferedBytes = 4096 }, []string{"Budget.BufferedBytes:", "--max-buffered-bytes"}},
		{func(c *agent.Config) { c.Flows.Records = -1 }, []string{"Flows.Records:", "--flow-records"}},
		{func(c *agent.Config) { c.Flows.History.MaxBytes = 5 }, []string{"Flows.History.MaxBytes:", "--history-bytes"}},
		{func(c *agent.Config) { c.Flows.History.Keep = time.Second }, []string{"Flows.History.Keep:", "--history-keep"}},
		{func(c *agent.Config) { c.Timeouts.Drain = 48 * time.Hour }, []string{"Timeouts.Drain:", "--drain"}},
		{func(c *agent.Config) { c.CNI.Socket = "cni.sock" }, []string{"CNI.Socket:", "--cni-socket", "--cri-socket"}},
		{func(c *agent.Config) { c.CNI.Runtime = "/run/x.sock" }, []string{"CNI.Runtime:", "--cni-socket"}},
		{func(c *agent.Config) { c.CNI.ConfDir, c.CNI.BinDir = "/etc/cni/net.d", "/opt/cni/bin" }, []string{"CNI.ConfDir:", "--cni-socket"}},
		{func(c *agent.Config) { c.CNI.Socket, c.CNI.Runtime, c.CNI.BinDir = "/a", "/b", "/c" }, []string{"CNI.ConfDir:", "--cni-conf-dir"}},
		{func(c *agent.Config) { c.Log = nil }, []string{"Log:"}},
		{func(c *agent.Config) { c.Node, c.Metrics = "", "x" }, []string{"Node:", "Metrics:"}},
	} {
		cfg := agent.Defaults()
		cfg.Node, cfg.Log = "n1", slog.New(slog.DiscardHandler)
		c.change(&cfg)
		_, err := agent.New(cfg)
		if err == nil {
			t.Errorf("accepted, want an error that says %q", c.want)
			continue
		}
		for _, word := range append(c.want, "remedy:") {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%v: does not say %q", err, word)
			}
		}
	}
}
