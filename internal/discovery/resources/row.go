package resources

import (
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// row is one resource that is held, with what is in it. An agent has one for
// every workload of the mesh: what can be made anew is not kept, and what many
// have in common is kept once.
type row struct {
	name string
	// object is a *mesh.Settings, *mesh.Service, *mesh.Workload, *mesh.Policy,
	// *netpolicy.Policy, *netpolicy.Shard or *route.Route, which Views share: read only.
	object any
	// odd is the body, where encoding the object would give another: it was
	// made by an operator that knows more. Usually nil.
	odd     *[]byte
	version digest
	size    uint32 // bytes of the body
	kind    Kind
}

// newRow takes over what was decoded. Of its object nothing else may be in use.
func newRow(d *decoded, t *texts) row {
	r := row{name: d.Name, kind: d.Kind, version: d.digest, size: uint32(len(d.Body))}
	switch {
	case d.settings != nil:
		r.object = d.settings
	case d.service != nil:
		t.service(d.service, d.Name)
		r.object = d.service
	case d.workload != nil:
		t.workload(d.workload, d.Name)
		r.object = d.workload
	case d.policy != nil:
		r.object = d.policy
	case d.network != nil:
		r.object = d.network
	case d.shard != nil:
		d.shard.Set = d.Name[:len(d.shard.Set)] // a part of the name
		r.object = d.shard
	case d.route != nil:
		r.object = d.route
	}
	if again, err := r.encode(); err != nil || again.Version != d.Version {
		r.odd = &d.Body
	}
	return r
}

func (r *row) encode() (*Resource, error) {
	switch object := r.object.(type) {
	case *mesh.Settings:
		return EncodeSettings(object)
	case *mesh.Service:
		return EncodeService(object)
	case *mesh.Workload:
		return EncodeWorkload(object)
	case *mesh.Policy:
		return EncodePolicy(object)
	case *netpolicy.Policy:
		return EncodeNetworkPolicy(object)
	case *netpolicy.Shard:
		return EncodeAddressSet(object)
	case *route.Route:
		return EncodeRoute(object)
	}
	return nil, fmt.Errorf("encode %s %s: nothing is in it", r.kind, r.name)
}

// resource returns it as it came.
func (r *row) resource() (*Resource, error) {
	if r.odd != nil {
		return &Resource{Ref: r.ref(), Body: *r.odd}, nil
	}
	again, err := r.encode()
	if err == nil && again.Version != r.version.String() {
		err = fmt.Errorf("encode %s %s: it was changed after it came", r.kind, r.name)
	}
	return again, err
}

// changes adds what is in the row to what is different in a View, which has no routes.
func (r *row) changes(c *mesh.Change, n *mesh.Network) {
	switch object := r.object.(type) {
	case *mesh.Settings:
		c.Settings = object
	case *mesh.Service:
		c.Services = append(c.Services, object)
	case *mesh.Workload:
		c.Workloads = append(c.Workloads, object)
	case *mesh.Policy:
		c.Policies = append(c.Policies, object)
	case *netpolicy.Policy:
		n.Policies = append(n.Policies, *object)
	case *netpolicy.Shard:
		n.Sets = append(n.Sets, *object)
	}
}

func (r *row) ref() Ref { return Ref{Kind: r.kind, Name: r.name, Version: r.version.String()} }

func compareRows(a, b row) int {
	return CompareRefs(Ref{Kind: a.kind, Name: a.name}, Ref{Kind: b.kind, Name: b.name})
}

// maxTexts bounds what is kept to be shared. Beyond it, sharing begins anew: what
// was shared stays as it is.
const maxTexts = 1 << 16

// texts keeps one of each text that many objects have in common.
type texts struct {
	plain map[string]string
	ids   map[string]spiffeid.ID
}

func newTexts() *texts { return &texts{plain: map[string]string{}, ids: map[string]spiffeid.ID{}} }

func (t *texts) text(s string) string {
	if kept, ok := t.plain[s]; ok {
		return kept
	}
	if len(t.plain) >= maxTexts {
		clear(t.plain)
	}
	t.plain[s] = s
	return s
}

func (t *texts) id(id spiffeid.ID) spiffeid.ID {
	if kept, ok := t.ids[id.String()]; ok {
		return kept
	}
	if len(t.ids) >= maxTexts {
		clear(t.ids)
	}
	t.ids[id.String()] = id
	return id
}

// workload shares what a workload has in common with others, and brings it into
// the form that a View has it in.
func (t *texts) workload(w *mesh.Workload, name string) {
	w.Key = keyIn(name, w.Key)
	w.ServiceAccount, w.Node, w.Zone, w.Identity = t.text(w.ServiceAccount), t.text(w.Node), t.text(w.Zone), t.id(w.Identity)
	w.Addresses = slices.Clip(mesh.PlainAddresses(w.Addresses))
}

func (t *texts) service(s *mesh.Service, name string) {
	s.Key = keyIn(name, s.Key)
	s.Addresses, s.Endpoints = mesh.PlainAddresses(s.Addresses), slices.Clip(mesh.SortedKeys(s.Endpoints))
	for i := range s.Endpoints {
		s.Endpoints[i].Namespace = t.text(s.Endpoints[i].Namespace)
	}
	for i := range s.Ports {
		s.Ports[i].Name = t.text(s.Ports[i].Name)
		for j := range s.Ports[i].Only {
			s.Ports[i].Only[j].Namespace = t.text(s.Ports[i].Only[j].Namespace)
		}
		for _, e := range s.Ports[i].Elsewhere {
			for j := range e.Endpoints {
				e.Endpoints[j].Namespace = t.text(e.Endpoints[j].Namespace)
			}
		}
	}
}

// keyIn returns a key as a part of the name that it gives.
func keyIn(name string, key mesh.Key) mesh.Key {
	at := len(key.Namespace)
	return mesh.Key{Namespace: name[:at], Name: name[at+1:]}
}
