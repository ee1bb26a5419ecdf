package chain

import (
	"fmt"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// Check says for the agent's status where heddle-cni is, and warns when pods may
// start without it: it is in the cluster's own file, which other tools write.
func (i *Installer) Check() *meshpb.Check {
	i.mu.Lock()
	defer i.mu.Unlock()
	check := &meshpb.Check{Name: "CNI configuration"}
	switch {
	case i.problem != nil && i.file == "":
		check.Detail = "new pods are not held back: " + i.problem.Error()
		check.Remedy = "mend what it names; the agent tries again by itself"
	case i.problem != nil:
		check.Detail = fmt.Sprintf("new pods are held back, and get the network that %s has, which may be out of date: %v", i.file, i.problem)
		check.Remedy = "mend what it names; the agent tries again by itself"
	case i.inPlace.why != "":
		check.Warning = true
		check.Detail = fmt.Sprintf("heddle-cni is in %s itself, and not in a copy of it: %s; %s", i.file, i.inPlace.why, opens)
		check.Remedy = i.inPlace.remedy
	default:
		check.Ok, check.Detail = true, "heddle-cni is in "+i.file
	}
	return check
}
