package explain

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// maxNamed bounds the names that an error lists.
const maxNamed = 8

// findSource finds who connects. An address that is nobody's is a client outside
// the mesh. note is about a name that stands for several.
func findSource(view *mesh.View, text string) (src *mesh.Workload, client netip.Addr, note string, err error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		if w, ok := view.WorkloadAt(addr); ok {
			return w, addr.Unmap(), "", nil
		}
		return nil, addr.Unmap(), "no workload has the address of the source: it is taken for a client outside the mesh", nil
	}
	if strings.HasPrefix(text, "spiffe://") {
		return identified(view, text)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, client, "", fmt.Errorf("source %w", err)
	}
	found := workloadsOf(view, key)
	if len(found) == 0 {
		return nil, client, "", fmt.Errorf("source %s: no pod, Workload or Service has this name: %s", key, near(view, key.Namespace))
	}
	src = found[0]
	if len(found) > 1 {
		note = fmt.Sprintf("the source stands for %d pods: %s is taken", len(found), src.Key)
	}
	if len(src.Addresses) > 0 {
		client = src.Addresses[0]
	}
	return src, client, note, nil
}

// identified finds a workload that has an identity. One of another trust domain is anywhere:
// it has no address that a policy could name.
func identified(view *mesh.View, text string) (src *mesh.Workload, client netip.Addr, note string, err error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, client, "", fmt.Errorf("source %q: %w", text, err)
	}
	if view.Foreign(id) {
		return &mesh.Workload{Identity: id, Enrolled: true, Addresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}}, client,
			"the source is of another trust domain: what its own mesh says of it is not known here, nor its address", nil
	}
	for _, w := range view.Workloads() {
		if w.Identity == id && w.Enrolled && len(w.Addresses) > 0 {
			return w, w.Addresses[0], fmt.Sprintf("the source is whoever has the identity: %s is taken", w.Key), nil
		}
	}
	return nil, client, "", fmt.Errorf("source %s: no workload of the mesh has this identity", id)
}

// workloadsOf returns the workload of a name, or those of a service, or those
// whose names begin so: pods of a Deployment, a StatefulSet or a Job.
func workloadsOf(view *mesh.View, key mesh.Key) []*mesh.Workload {
	if w, ok := view.Workload(key); ok {
		return []*mesh.Workload{w}
	}
	var found []*mesh.Workload
	if s, ok := view.Service(key); ok {
		for _, endpoint := range s.Endpoints {
			if w, ok := view.Workload(endpoint); ok {
				found = append(found, w)
			}
		}
		return found
	}
	for _, w := range view.Workloads() {
		if w.Namespace == key.Namespace && strings.HasPrefix(w.Name, key.Name+"-") {
			found = append(found, w)
		}
	}
	return found
}

func parseKey(text string) (mesh.Key, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return mesh.Key{}, fmt.Errorf("%q: write NAMESPACE/NAME, an IP address, or the SPIFFE ID of a source", text)
	}
	return mesh.Key{Namespace: namespace, Name: name}, nil
}

// near lists what there is in a namespace.
func near(view *mesh.View, namespace string) string {
	var names []string
	for _, s := range view.Services() {
		if s.Namespace == namespace {
			names = append(names, s.Key.String())
		}
	}
	for _, w := range view.Workloads() {
		if w.Namespace == namespace {
			names = append(names, w.Key.String())
		}
	}
	switch {
	case len(names) == 0:
		return fmt.Sprintf("there is nothing in namespace %q", namespace)
	case len(names) > maxNamed:
		names = append(names[:maxNamed], "...")
	}
	return "there are " + strings.Join(names, ", ")
}

// target is what is dialled. The address is not valid for a headless service. note is about a name that stands for
// several pods.
type target struct {
	service *mesh.Service
	address netip.AddrPort
	note    string
}

func (t target) end() End {
	end := End{Port: t.address.Port()}
	if t.service != nil {
		end.Service = t.service.Key.String()
	}
	if t.address.Addr().IsValid() {
		end.Address = t.address.Addr().String()
	}
	return end
}

// findDestination finds what is dialled.
func findDestination(m *Model, text string) (target, error) {
	view := m.View
	if strings.HasPrefix(text, "spiffe://") {
		return foreignDestination(view, text)
	}
	name, port, err := cutPort(text)
	if err != nil {
		return target{}, err
	}
	if addr, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		service, _ := view.ServiceAt(addr)
		if port, err = portOf(service, port, text); err != nil {
			return target{}, err
		}
		return target{service: service, address: netip.AddrPortFrom(addr, port)}, nil
	}
	key, err := destinationKey(name)
	if err != nil {
		return target{}, fmt.Errorf("destination %w", err)
	}
	if to, ok := m.aliases[key]; ok {
		return target{}, aliased(view, key, to, port)
	}
	service, ok := view.Service(key)
	if ok {
		if port, err = portOf(service, port, text); err != nil {
			return target{}, err
		}
		addr := netip.Addr{}
		if len(service.Addresses) > 0 {
			addr = service.Addresses[0]
		}
		return target{service: service, address: netip.AddrPortFrom(addr, port)}, nil
	}
	found := workloadsOf(view, key)
	if len(found) == 0 && looksOutside(view, name, key) {
		return target{}, fmt.Errorf("destination %s: a host outside the mesh is not known by its name: write one of its addresses, as %s", text, addressed(port))
	}
	if len(found) == 0 {
		return target{}, fmt.Errorf("destination %s: no Service, pod or Workload has this name: %s", key, near(view, key.Namespace))
	}
	if len(found[0].Addresses) == 0 {
		return target{}, fmt.Errorf("destination %s has no address yet", found[0].Key)
	}
	if port, err = portOf(nil, port, text); err != nil {
		return target{}, err
	}
	to := target{address: netip.AddrPortFrom(found[0].Addresses[0], port)}
	if len(found) > 1 {
		to.note = fmt.Sprintf("the destination stands for %d pods: %s is taken", len(found), found[0].Key)
	}
	return to, nil
}

// cutPort cuts :PORT off; 0 when there is none.
func cutPort(text string) (name string, port uint16, err error) {
	if _, err := netip.ParseAddr(text); err == nil { // an IPv6 address has colons of its own
		return text, 0, nil
	}
	name, number, err := net.SplitHostPort(text)
	if err != nil {
		if strings.Contains(text, ":") {
			return "", 0, fmt.Errorf("destination %q: write NAMESPACE/NAME:PORT, ADDRESS:PORT or [IPV6]:PORT", text)
		}
		return text, 0, nil
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("destination %q: %q is no port from 1 to 65535", text, number)
	}
	return name, uint16(n), nil
}

// portOf returns the port that was given, or a service's only one.
func portOf(service *mesh.Service, port uint16, text string) (uint16, error) {
	if port != 0 {
		return port, nil
	}
	if service == nil {
		return 0, fmt.Errorf("destination %q has no port: write %s:PORT", text, text)
	}
	var ports []string
	if len(service.Ports) == 0 && len(service.UDPPorts) == 1 {
		return service.UDPPorts[0].Port, nil
	}
	for _, p := range service.Ports {
		ports = append(ports, strings.TrimPrefix(fmt.Sprintf("%s=%d", p.Name, p.Port), "="))
	}
	if len(ports) != 1 {
		return 0, fmt.Errorf("destination %q: service %s has %d ports (%s): write %s:PORT", text, service.Key, len(ports), strings.Join(ports, ", "), text)
	}
	return service.Ports[0].Port, nil
}

// destinationKey reads NAMESPACE/NAME, or a host name as applications have it:
// NAME.NAMESPACE, NAME.NAMESPACE.svc, NAME.NAMESPACE.svc.cluster.local.
func destinationKey(name string) (mesh.Key, error) {
	if strings.Contains(name, "/") {
		return parseKey(name)
	}
	short := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "."), "."+mesh.ClusterDomain), ".svc")
	parts := strings.Split(short, ".")
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return mesh.Key{}, fmt.Errorf("%q: write NAMESPACE/NAME, NAME.NAMESPACE.svc, or an IP address: of a host outside the mesh, one of its own; services have names of %s only", name, mesh.ClusterDomain)
	}
	return mesh.Key{Namespace: parts[1], Name: parts[0]}, nil
}
