package cni

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/heddle-mesh/heddle/agent/netns"
)

// openNetNS opens a pod's network namespace. Runtimes say /var/run/netns, which
// on a node leads to /run/netns; in the agent's own view it need not.
func openNetNS(path string) (*netns.Namespace, error) {
	ns, err := netns.Open(path)
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok && errors.Is(err, fs.ErrNotExist) {
		return netns.Open("/run/" + rest)
	}
	return ns, err
}

func leadsTo(path string, id netns.ID) bool {
	ns, err := netns.Open(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	return ns.ID() == id
}
