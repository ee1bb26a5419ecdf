package kernel

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// refuseVacant lets the kernel refuse the pods' connections to services that nobody
// serves, as the View of the moment has them, until ctx is done: then nobody is
// refused there any more. What the kernel does not know the proxy refuses, after it
// has accepted.
func (d *Datapath) refuseVacant(ctx context.Context, store *mesh.Store) {
	list := vacancies{datapath: d}
	defer list.set(nil)
	hold := time.NewTicker(bpf.VacantFor / 4)
	defer hold.Stop()
	for {
		view, replaced := store.Snapshot()
		list.set(view.Vacant(d.name))
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case <-replaced:
				waiting = false
			case <-hold.C:
				list.hold()
			}
		}
	}
}

// vacancies is what the kernel has been told.
type vacancies struct {
	datapath *Datapath
	told     bool // and services is what of
	services []netip.AddrPort
	full     bool // has been said
}

// set tells the kernel unless it knows.
func (v *vacancies) set(services []netip.AddrPort) {
	if v.told && slices.Equal(v.services, services) {
		return
	}
	left, err := v.datapath.node.SetVacant(services)
	if err != nil {
		v.datapath.log.Warn("services that nobody serves accept connections and reset them, instead of refusing", "error", err)
	}
	if left > 0 && !v.full {
		v.datapath.log.Warn("too many services have no endpoint: some accept connections and reset them, instead of refusing", "services", len(services), "left", left)
	}
	v.told, v.services, v.full = err == nil, services, left > 0
}

// hold keeps the list from running out; one that is empty may.
func (v *vacancies) hold() {
	if !v.told {
		v.set(v.services)
	} else if len(v.services) > 0 {
		if err := v.datapath.node.HoldVacant(); err != nil {
			v.datapath.log.Warn("services that nobody serves accept connections and reset them, instead of refusing", "error", err)
		}
	}
}
