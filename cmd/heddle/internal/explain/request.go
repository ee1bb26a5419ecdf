package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// request says what becomes of one request of the connection. Behind is the service that a waypoint is asked for, zero where
// none is.
func (a *Answer) request(m *Model, src *mesh.Workload, client netip.Addr, t target, behind netip.AddrPort, r *asked.Request) error {
	host := a.host(t)
	if a.Behind == nil {
		a.Request = r.Unseen(host, a.Verdict, a.Reason)
		a.Notes = append(a.Notes, a.unseen(src, behind))
		return nil
	}
	w, c := m.asking(src, client, behind)
	opaque, err := w.Opaque(c)
	switch {
	case err != nil:
		return err
	case opaque != "":
		a.Request = w.Passed(c, r, host)
		a.Notes = append(a.Notes, "the request is not seen: "+opaque+"; "+consequence(a.Request.Verdict, a.Request.Reason))
		return nil
	}
	a.Notes = slices.DeleteFunc(a.Notes, func(note string) bool { return strings.HasPrefix(note, dependsOnRequest) })
	a.Request, err = w.Judge(c, r, host)
	if err != nil {
		return err
	}
	if hint := a.Request.Hint(); hint != "" {
		a.Notes = append(a.Notes, hint)
	}
	return nil
}

// host is what clients ask for who dial the destination: its name, and the port where it is not HTTP's own.
func (a *Answer) host(t target) string {
	host := t.address.Addr().String()
	if t.address.Addr().Is6() {
		host = "[" + host + "]"
	}
	if namespace, name, ok := strings.Cut(a.Destination.Service, "/"); ok {
		host = name + "." + namespace
	}
	if port := t.address.Port(); port != 80 {
		host += fmt.Sprintf(":%d", port)
	}
	return host
}

// unseen says why no waypoint sees a request, and what follows from it.
func (a *Answer) unseen(src *mesh.Workload, behind netip.AddrPort) string {
	why := "the destination is no address of a Service that is behind a waypoint"
	switch {
	case behind.IsValid():
		why = "the connection does not come to waypoint " + a.Waypoint
	case src == nil || !src.Enrolled:
		why = "the source is not in the mesh, and nobody takes it to a waypoint"
	case a.Destination.Service != "":
		why = "Service " + a.Destination.Service + " is behind no waypoint that takes this connection (the label heddle.dev/waypoint)"
	}
	return "the request is not seen: " + why + "; " + consequence(a.Verdict, a.Reason)
}

// consequence is what follows for requests from what becomes of a connection of which none is seen.
func consequence(verdict, reason string) string {
	switch {
	case verdict == "allow":
		return "what is decided is the connection, and any request of it is let in"
	case reason == mesh.ReasonRequestUnseen.String():
		return "who would have to be known by the request is refused, whatever it is"
	case verdict == "mixed":
		return "what is decided is the connection, and any request of it is let in where that is"
	}
	return "what is decided is the connection, and no request of it is let in"
}
