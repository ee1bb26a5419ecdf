package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Versions of the protocol. An agent speaks its own and the one before, and is
// spoken to by the next, which speaks this one as its own "one before":
//
//	1  listeners and connections
//	2  the flow records of the donor, too
const (
	Oldest = 1
	Newest = 2
	// recordsSince is the version from which on flow records move.
	recordsSince = 2
)

// Versions are the versions that a process speaks; zero is this build's.
type Versions struct {
	Oldest int `json:"oldest"`
	Newest int `json:"newest"`
}

func (v Versions) orDefault() Versions {
	if v == (Versions{}) {
		return Versions{Oldest, Newest}
	}
	return v
}

// choose returns the highest version that both speak.
func (v Versions) choose(other Versions) (int, bool) {
	version := min(v.Newest, other.Newest)
	return version, version >= max(v.Oldest, other.Oldest, 1)
}

// hello is what a successor says first. JSON: later versions may add fields.
type hello struct {
	Versions Versions `json:"versions"`
	Self     Self     `json:"self"`
	// Drain says that connections that cannot move may be drained.
	Drain bool `json:"drain"`
	// Mortal says that the process at this end is the successor and nothing else:
	// a donor that goes on by itself ends it first.
	Mortal bool `json:"mortal,omitempty"`
}

// Self is what each agent says of itself.
type Self struct {
	Node string `json:"node"`
	// TrustDomain is the mesh's. It is empty of a version that does not say it, and of
	// one that has yet to learn it: whom that is about looks once it knows.
	TrustDomain string `json:"trust_domain,omitempty"`
	// Program is the program's version, for people.
	Program string `json:"program"`
	// Layout names the layout of what is pinned in the kernel: both work on the
	// same pins.
	Layout string `json:"layout"`
	// Engine names what carries tunnels; connections move between equal ones.
	Engine string `json:"engine"`
	// Moves says that the engine can give its connections away.
	Moves bool `json:"moves"`
	// PID is the process.
	PID int `json:"pid"`
}

// SameMesh is nil unless both are known to be of different meshes: the pods and the
// connections of one are nothing to the other. The error is a *Refused.
func (s Self) SameMesh(other Self) error {
	if s.TrustDomain == "" || other.TrustDomain == "" || s.TrustDomain == other.TrustDomain {
		return nil
	}
	return &Refused{
		Reason: fmt.Sprintf("it is of the mesh %q, the new one of %q", s.TrustDomain, other.TrustDomain),
		Remedy: "one mesh has a node: uninstall the other there (`heddle uninstall --system-namespace NAME`, `heddle check --cluster` names it), or keep this one's agents off by agent.nodeSelector",
	}
}

// welcome is the donor's answer.
type welcome struct {
	Version int  `json:"version"`
	Self    Self `json:"self"`
	// Moves says that connections will move; otherwise they are drained.
	Moves bool `json:"moves"`
	Pods  int  `json:"pods"`
}

// Refused is the donor's answer to a successor that cannot take over.
type Refused struct {
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

// Error implements error.
func (r *Refused) Error() string {
	return fmt.Sprintf("the running agent refuses: %s; remedy: %s", r.Reason, r.Remedy)
}

// failed says why a successor will not take over.
type failed struct {
	Reason string `json:"reason"`
}

// Listener is one listening socket of the donor.
type Listener struct {
	// Port is the port it stands for; IPv6 its family.
	Port uint16 `json:"port"`
	IPv6 bool   `json:"ipv6"`
	// Datagram tells a UDP socket from a listener of the same port. An agent that
	// has not heard of it has no use for the port either, and closes both.
	Datagram bool `json:"datagram,omitempty"`
	// File is its descriptor, which is whoever's the Listener is.
	File int `json:"-"`
}

// Pod is one enrolled pod of the donor, by the name that both know it by.
type Pod struct {
	Name      string     `json:"name"`
	Listeners []Listener `json:"listeners"`
}

// Estate is what the donor gives before any connection.
type Estate struct {
	Pods []Pod
	// Metrics is the listener at the address MetricsAddress; its Port is 0. nil
	// when there is none.
	Metrics        *Listener
	MetricsAddress string
}

// Close closes the descriptors that are in it.
func (e *Estate) Close() {
	for i := range e.Pods {
		for _, l := range e.Pods[i].Listeners {
			closeAll([]int{l.File})
		}
	}
	if e.Metrics != nil {
		closeAll([]int{e.Metrics.File})
	}
	e.Pods, e.Metrics = nil, nil
}

// estatePart is one kindListeners message: a pod, or the metrics' listener.
type estatePart struct {
	Pod     *Pod   `json:"pod,omitempty"`
	Metrics string `json:"metrics,omitempty"`
}

// add puts a part with its descriptors into the estate, which owns them then.
func (e *Estate) add(part estatePart, files []int) error {
	switch {
	case part.Pod != nil && len(files) == len(part.Pod.Listeners):
		for i := range files {
			part.Pod.Listeners[i].File = files[i]
		}
		e.Pods = append(e.Pods, *part.Pod)
	case part.Pod == nil && part.Metrics != "" && len(files) == 1 && e.Metrics == nil:
		e.Metrics, e.MetricsAddress = &Listener{File: files[0]}, part.Metrics
	default:
		return errors.New("listeners and descriptors do not match")
	}
	return nil
}

// Connection is one connection at rest. State and Data mean something to the
// engines and proxies of both agents only.
type Connection struct {
	Kind  string
	Pod   string
	State []byte
	Data  []byte
	// Files are its descriptors, in State's order.
	Files []int
}

const maxConnections, maxKind, maxPodName = 4096, 16, 600

// encodeBatch puts connections and the moment at which they came to rest,
// nanoseconds of the monotonic clock, into one body.
func encodeBatch(all []*Connection, rest int64) (body []byte, files []int) {
	body = binary.AppendUvarint(body, uint64(rest))
	body = binary.AppendUvarint(body, uint64(len(all)))
	for _, c := range all {
		body = appendBytes(body, []byte(c.Kind))
		body = appendBytes(body, []byte(c.Pod))
		body = appendBytes(body, c.State)
		body = appendBytes(body, c.Data)
		body = binary.AppendUvarint(body, uint64(len(c.Files)))
		files = append(files, c.Files...)
	}
	return body, files
}

func appendBytes(to, b []byte) []byte {
	return append(binary.AppendUvarint(to, uint64(len(b))), b...)
}

// decodeBatch is the inverse of encodeBatch. What it returns points into body.
func decodeBatch(body []byte, files []int) ([]*Connection, int64, error) {
	d := decoder{rest: body}
	rest := d.number(1<<63 - 1)
	n := d.number(maxConnections)
	all := make([]*Connection, 0, min(n, uint64(len(body)))) // each takes five bytes at least
	for range n {
		c := &Connection{Kind: string(d.bytes(maxKind)), Pod: string(d.bytes(maxPodName)), State: d.bytes(maxBody), Data: d.bytes(maxBody)}
		count := int(d.number(uint64(len(files))))
		if d.err != nil {
			return nil, 0, d.err
		}
		c.Files, files = files[:count:count], files[count:]
		all = append(all, c)
	}
	switch {
	case d.err != nil:
		return nil, 0, d.err
	case len(d.rest) > 0:
		return nil, 0, fmt.Errorf("%d bytes after the last connection", len(d.rest))
	case len(files) > 0:
		return nil, 0, fmt.Errorf("%d descriptors that are no connection's", len(files))
	}
	return all, int64(rest), nil
}

// encodeRecords puts as many records as fit into one body, and returns how many.
func encodeRecords(records [][]byte, limit int) (body []byte, n int) {
	for _, r := range records {
		if len(body)+len(r)+binary.MaxVarintLen32 > limit {
			break
		}
		body = appendBytes(body, r)
		n++
	}
	return body, n
}

// decodeRecords is the inverse of encodeRecords. What it returns points into body.
func decodeRecords(body []byte) (records [][]byte, err error) {
	d := decoder{rest: body}
	for d.err == nil && len(d.rest) > 0 {
		if r := d.bytes(maxControl); d.err == nil {
			records = append(records, r)
		}
	}
	return records, d.err
}

// decoder reads bounded fields; after the first error it returns zeros.
type decoder struct {
	rest []byte
	err  error
}

var errShort = errors.New("message is cut off or a number in it is too large")

func (d *decoder) number(limit uint64) uint64 {
	v, n := binary.Uvarint(d.rest)
	if d.err != nil || n <= 0 || v > limit {
		d.err = errShort
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) bytes(limit int) []byte {
	n := d.number(uint64(min(limit, len(d.rest))))
	if d.err != nil || n > uint64(len(d.rest)) {
		d.err = errShort
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// unmarshal reads a control message's JSON; fields that a later version added
// are passed over.
func unmarshal(m *message, want kind, into any) error {
	if m.kind != want {
		return fmt.Errorf("message %d came where %d was due", m.kind, want)
	}
	if err := json.Unmarshal(m.body, into); err != nil {
		return fmt.Errorf("read message %d: %w", want, err)
	}
	return nil
}
