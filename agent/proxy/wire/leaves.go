package wire

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Retire returns the fingerprints of the SVIDs that pods have now, by the pods' names,
// and which tunnel connections were made with those that they had before, and no longer
// have. One that has none at the moment is compared with its next.
func Retire(view *mesh.View, from Identities, pods []mesh.Key, before map[string][32]byte) (now map[string][32]byte, retired []hbone.Match) {
	now = map[string][32]byte{}
	for _, pod := range pods {
		name := pod.String()
		if old, had := before[name]; had {
			now[name] = old
		}
		w, ok := view.Workload(pod)
		if !ok {
			continue
		}
		cert, err := from.Certificate(w.Identity)
		if err != nil {
			continue
		}
		current := hbone.Fingerprint(cert)
		if old, had := now[name]; had && old != current {
			retired = append(retired, hbone.Match{Source: name, LeafFingerprint: old})
		}
		now[name] = current
	}
	return now, retired
}

// Revoke returns the deny-list, and which tunnel connections are of identities that were
// not on it before: of peers, and of pods.
func Revoke(view *mesh.View, pods []mesh.Key, before map[spiffeid.ID]bool) (now map[spiffeid.ID]bool, ended []hbone.Match) {
	now = map[spiffeid.ID]bool{}
	for _, id := range view.Settings().RevokedIdentities {
		now[id] = true
		if before[id] {
			continue
		}
		ended = append(ended, hbone.Match{Peer: id})
		for _, pod := range pods {
			if w, ok := view.Workload(pod); ok && w.Identity == id {
				ended = append(ended, hbone.Match{Source: pod.String()})
			}
		}
	}
	return now, ended
}
