package flow

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/period"
)

// maxFilterValues bounds each list of a Filter that comes from outside.
const maxFilterValues = 64

// Filter selects records. A record matches when, for every field that is not
// empty, one of the field's values matches; the zero Filter matches all. Fields
// about a workload match either end of the flow.
type Filter struct {
	Namespaces []string
	// Workloads match by name and, when Key.Namespace is not empty, namespace.
	Workloads []mesh.Key
	// Identities are SPIFFE IDs; a final "*" matches any ending.
	Identities []string
	// Peers hold the address of either end.
	Peers []netip.Prefix
	// Ports are destination ports.
	Ports      []uint16
	Verdicts   []mesh.Verdict
	Reasons    []mesh.Reason
	Directions []Direction
	Transports []Transport
	// Methods and Statuses are of requests, as Routes, which match by name and, when
	// Key.Namespace is not empty, namespace: connections match none.
	Methods  []string
	Statuses []Statuses
	Routes   []mesh.Key
	// Since drops what started earlier; the zero time drops nothing.
	Since time.Time
}

// FilterKeys returns the keys that Filter.Set knows, with what each takes.
func FilterKeys() [][2]string {
	return [][2]string{
		{"namespace", "namespace of either end"},
		{"workload", "NAME or NAMESPACE/NAME of either end"},
		{"identity", "SPIFFE ID of either end; a final * matches any ending"},
		{"peer", "address or prefix of either end"},
		{"port", "destination port"},
		{"verdict", "allow, deny or audit"},
		{"reason", "reason, such as StrictPlaintext"},
		{"direction", "outbound, inbound, local, kernel, dns or request"},
		{"transport", "tunnel, splice, plaintext or none"},
		{"method", "HTTP method, such as GET"},
		{"status", "status of a request, such as 404, a class of them, such as 5xx, or 0 for no answer"},
		{"route", "NAME or NAMESPACE/NAME of the route that decided about a request"},
		{"since", "how long ago at most, such as 5m or 7d, or a time in RFC 3339"},
	}
}

// Set parses one comma-separated value list into the field that key names. now
// is what a relative "since" counts from.
func (f *Filter) Set(key, values string, now time.Time) error {
	for value := range strings.SplitSeq(values, ",") {
		value = strings.TrimSpace(value)
		if value == "" {
			return fmt.Errorf("filter %s: empty value in %q", key, values)
		}
		if err := f.add(key, value, now); err != nil {
			return fmt.Errorf("filter %s: %w", key, err)
		}
	}
	return nil
}

func (f *Filter) add(key, value string, now time.Time) (err error) {
	switch key {
	case "namespace":
		f.Namespaces = append(f.Namespaces, value)
	case "workload":
		f.Workloads = append(f.Workloads, parseWorkload(value))
	case "identity":
		f.Identities = append(f.Identities, value)
	case "peer":
		f.Peers, err = parseInto(f.Peers, value, parsePeer)
	case "port":
		f.Ports, err = parseInto(f.Ports, value, parsePort)
	case "verdict":
		f.Verdicts, err = parseInto(f.Verdicts, strings.ToLower(value), ParseVerdict)
	case "reason":
		f.Reasons, err = parseInto(f.Reasons, value, parseReason)
	case "direction":
		f.Directions, err = parseInto(f.Directions, strings.ToLower(value), ParseDirection)
	case "transport":
		f.Transports, err = parseInto(f.Transports, strings.ToLower(value), ParseTransport)
	case "method":
		f.Methods = append(f.Methods, strings.ToUpper(value))
	case "status":
		f.Statuses, err = parseInto(f.Statuses, value, parseStatuses)
	case "route":
		f.Routes = append(f.Routes, parseWorkload(value))
	case "since":
		f.Since, err = parseSince(value, now)
	default:
		err = fmt.Errorf("unknown filter %q", key)
	}
	return err
}

func parseInto[T any](list []T, value string, parse func(string) (T, error)) ([]T, error) {
	v, err := parse(value)
	if err != nil {
		return list, err
	}
	return append(list, v), nil
}

func parseWorkload(value string) mesh.Key {
	if namespace, name, ok := strings.Cut(value, "/"); ok {
		return mesh.Key{Namespace: namespace, Name: name}
	}
	return mesh.Key{Name: value}
}

func parsePeer(value string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(value); err == nil {
		addr = addr.Unmap().WithZone("")
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix", value)
	}
	return prefix.Masked(), nil
}

func parsePort(value string) (uint16, error) {
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port: use a number from 0 to 65535", value)
	}
	return uint16(port), nil
}

// parseReason takes a reason in any case and offers what resembles a wrong one.
func parseReason(value string) (mesh.Reason, error) {
	var near []string
	for _, r := range mesh.Reasons() {
		if strings.EqualFold(r.String(), value) {
			return r, nil
		}
		if strings.Contains(strings.ToLower(r.String()), strings.ToLower(value)) {
			near = append(near, r.String())
		}
	}
	if len(near) > 0 {
		return 0, fmt.Errorf("unknown reason %q: did you mean %s?", value, strings.Join(near, ", "))
	}
	return 0, fmt.Errorf("unknown reason %q: docs/cli.md lists them", value)
}

func parseSince(value string, now time.Time) (time.Time, error) {
	if d, err := period.Parse(value); err == nil {
		if d < 0 {
			return time.Time{}, fmt.Errorf("%q lies in the future: use a positive duration", value)
		}
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a duration (5m, 7d, 1d12h) nor a time (2026-01-02T15:04:05Z)", value)
	}
	return t, nil
}

// Match says whether the filter selects r.
func (f *Filter) Match(r *Record) bool {
	return !f.OfRequests() && f.match(r)
}

// OfRequests says that only requests match.
func (f *Filter) OfRequests() bool {
	return len(f.Methods)+len(f.Statuses)+len(f.Routes) > 0 || len(f.Directions) > 0 && !slices.ContainsFunc(f.Directions, func(d Direction) bool { return d != DirectionRequest })
}

func (f *Filter) match(r *Record) bool {
	return (f.Since.IsZero() || !r.Start.Before(f.Since)) &&
		has(f.Verdicts, r.Verdict) &&
		has(f.Reasons, r.Reason) &&
		has(f.Directions, r.Direction) &&
		has(f.Transports, r.Transport) &&
		has(f.Ports, r.Destination.Addr.Port()) &&
		f.matchEnds(r)
}

func has[T comparable](wanted []T, value T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, value)
}

func (f *Filter) matchEnds(r *Record) bool {
	return anyEnd(f.Namespaces, r, func(ns string, e *Endpoint) bool { return e.Workload.Namespace == ns }) &&
		anyEnd(f.Workloads, r, func(k mesh.Key, e *Endpoint) bool {
			return e.Workload.Name == k.Name && (k.Namespace == "" || k.Namespace == e.Workload.Namespace)
		}) &&
		anyEnd(f.Identities, r, func(id string, e *Endpoint) bool {
			if prefix, ok := strings.CutSuffix(id, "*"); ok {
				return !e.Identity.IsZero() && strings.HasPrefix(e.Identity.String(), prefix)
			}
			return e.Identity.String() == id
		}) &&
		anyEnd(f.Peers, r, func(p netip.Prefix, e *Endpoint) bool { return p.Contains(e.Addr.Addr()) })
}

func anyEnd[T any](wanted []T, r *Record, match func(T, *Endpoint) bool) bool {
	if len(wanted) == 0 {
		return true
	}
	for _, w := range wanted {
		if match(w, &r.Source) || match(w, &r.Destination) {
			return true
		}
	}
	return false
}
