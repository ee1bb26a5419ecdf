package install

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// TestCiliumDatapath: netkit pairs have no end that the gate watches (agent/steer), so a
// check does not call them good.
func TestCiliumDatapath(t *testing.T) {
	for mode, good := range map[string]bool{"": true, "veth": true, "netkit": false, "netkit-l2": false} {
		r := health.New()
		checkCilium(map[string]string{"cni-exclusive": "false", "datapath-mode": mode}, "kube-system", r)
		if r.OK != good {
			t.Errorf("%q: %+v", mode, r.Findings)
		}
		for _, f := range r.Findings {
			if f.Name == "Cilium datapath" && (!strings.Contains(f.Detail, mode) || !strings.Contains(f.Remedy, "bpf.datapathMode=veth")) {
				t.Errorf("%+v", f)
			}
		}
	}
}
