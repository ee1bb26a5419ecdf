package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/e2e/wire"
)

// World is where scenarios run: a mesh of two nodes, with the workloads of each
// scenario in a namespace of its own. Each Run calls its methods from one goroutine;
// a World that runs several scenarios at a time has to be safe for that. Errors are such
// that a person can act on them; no method retries longer than its context lives.
type World interface {
	// Name is how a drawing calls the world.
	Name() string
	// Deploy starts workloads, each with its own service account, the label app with
	// its name, and e2e/product/workload as an echo server. It makes the namespace
	// if need be, without a label, and returns when all of them run; they may not
	// listen yet, nor be in the mesh.
	Deploy(ctx context.Context, namespace string, workloads []script.Workload) error
	// Label sets heddle.dev/mesh on a workload, or on the namespace if workload is
	// "". It makes the namespace if need be.
	Label(ctx context.Context, namespace, workload, value string) error
	// Enrolled names the workloads of the namespace that agents say are in the mesh.
	Enrolled(ctx context.Context, namespace string) ([]string, error)
	// Apply makes or replaces the objects of a file, Delete takes them away. They
	// return before agents act on it, and do not wait for that.
	Apply(ctx context.Context, namespace string, file script.File) error
	Delete(ctx context.Context, namespace string, file script.File) error
	// Address is that of a workload or a Service of the namespace.
	Address(ctx context.Context, namespace, name string) (netip.Addr, error)
	// Command is e2e/product/workload with arguments, to be run in a workload's pod.
	Command(ctx context.Context, namespace, workload string, args ...string) (*exec.Cmd, error)
	// Flows are what `heddle flows -o json` shows of the namespace. Nodes whose agent
	// does not run are left out.
	Flows(ctx context.Context, namespace string) ([]Flow, error)
	// Capture starts to record what crosses between the nodes. stop ends it and
	// judges the packets to and from an address; marker is text to look for.
	Capture(ctx context.Context) (stop func(marker string, judged netip.Addr) (wire.Findings, error), err error)
	// KillAgent ends the agent of a node without warning; it stays away until
	// StartAgent, which returns when it answers.
	KillAgent(ctx context.Context, node string) error
	StartAgent(ctx context.Context, node string) error
	// Clear takes the namespace away with all that is in it.
	Clear(ctx context.Context, namespace string) error
}

// Flow is what a scenario reads of `heddle flows -o json`.
type Flow struct {
	Time time.Time `json:"time"`
	// Duration is in seconds.
	Duration    float64  `json:"duration"`
	Direction   string   `json:"direction"`
	Source      Endpoint `json:"source"`
	Destination Endpoint `json:"destination"`
	Service     string   `json:"service"`
	Node        string   `json:"node"`
	Verdict     string   `json:"verdict"`
	Reason      string   `json:"reason"`
	Policy      string   `json:"policy"`
	Transport   string   `json:"transport"`
	Packets     uint64   `json:"packets"`
}

// Endpoint is one end of a Flow.
type Endpoint struct {
	Workload string `json:"workload"`
	Identity string `json:"identity"`
	Address  string `json:"address"`
}

// addr is the endpoint's address without its port; invalid when there is none.
func (e Endpoint) addr() netip.Addr {
	if both, err := netip.ParseAddrPort(e.Address); err == nil {
		return both.Addr()
	}
	alone, err := netip.ParseAddr(e.Address)
	if err != nil {
		return netip.Addr{}
	}
	return alone
}

// port is the endpoint's port; 0 when there is none.
func (e Endpoint) port() uint16 {
	both, err := netip.ParseAddrPort(e.Address)
	if err != nil {
		return 0
	}
	return both.Port()
}

// ReadFlows reads what `heddle flows -o json` prints: objects, one after the other.
func ReadFlows(r io.Reader) ([]Flow, error) {
	var flows []Flow
	for dec := json.NewDecoder(r); ; {
		var f Flow
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return flows, nil
		} else if err != nil {
			return flows, fmt.Errorf("read flows: %w", err)
		}
		flows = append(flows, f)
	}
}

// EnrolledIn reads from `heddle check -o json` which workloads of a namespace are
// enrolled. failed is how the command ended: a check that finds something wrong
// fails, and still says who is enrolled.
func EnrolledIn(checked, namespace string, failed error) ([]string, error) {
	var report struct {
		Findings []struct {
			Name string `json:"name"`
			OK   bool   `json:"ok"`
		} `json:"findings"`
	}
	if err := json.Unmarshal([]byte(checked), &report); err != nil {
		return nil, errors.Join(failed, fmt.Errorf("read what `heddle check` says: %w", err))
	}
	var names []string
	for _, f := range report.Findings {
		if name, ours := strings.CutPrefix(f.Name, "pod "+namespace+"/"); ours && f.OK {
			names = append(names, name)
		}
	}
	return names, nil
}
