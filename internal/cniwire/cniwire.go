// Package cniwire is what heddle-cni and the agent have between them: one
// question and one answer over a unix socket, and the list of namespaces that
// the agent leaves on disk for the time when it cannot be asked. It decides
// nothing and opens no socket.
//
// Its values are plain data; functions are safe for concurrent use.
package cniwire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"strings"
	"time"
)

// Where things are unless the CNI configuration says otherwise.
const (
	DefaultSocket  = "/run/heddle/cni.sock"
	DefaultList    = "/var/lib/heddle/cni/namespaces.json"
	DefaultTimeout = 20 * time.Second
	// PluginType is the plugin's name: the "type" of its configuration and the
	// name of its program.
	PluginType = "heddle-cni"
)

// Version is of the questions and answers; an agent answers older ones, too.
const Version = 1

// Bounds of what either end reads.
const (
	maxMessage   = 64 << 10
	maxAddresses = 32
	maxPath      = 4096
	maxID        = 256
)

// Op is what the plugin asks for.
type Op string

// The operations, as the CNI specification has them.
const (
	OpAdd   Op = "add"
	OpDel   Op = "del"
	OpCheck Op = "check"
	OpGC    Op = "gc"
)

// Request is one question.
type Request struct {
	Version int `json:"version"`
	Op      Op  `json:"op"`
	// ContainerID is the sandbox, NetNS the path of its network namespace,
	// IfName the interface in it.
	ContainerID string `json:"containerID,omitempty"`
	NetNS       string `json:"netns,omitempty"`
	IfName      string `json:"ifname,omitempty"`
	// Namespace, Name and UID are the pod's; UID is "" when the runtime does not
	// say it.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
	// Addresses are those that the plugins before gave the pod.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Timeout is how long the plugin waits for the answer.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Verdict is how a question was decided.
type Verdict string

// The verdicts. Anything else refuses.
const (
	// Protected means that the pod is behind its gate, proven.
	Protected Verdict = "protected"
	// Outside means that the pod does not belong in the mesh, or, for del and
	// gc, that nothing is left to do.
	Outside Verdict = "outside"
	// Wait means that the pod must not start yet: to be tried again.
	Wait Verdict = "wait"
	// Refused means that trying again does not help before somebody acts.
	Refused Verdict = "refused"
)

// Response is one answer. Reason says what waits for what, and what to do.
type Response struct {
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitempty"`
}

// Validate says what is wrong with a request. It looks at nothing but the
// request.
func (r *Request) Validate() error {
	if r.Version < 1 || r.Version > Version {
		return fmt.Errorf("version %d of the plugin's questions is not known, only 1 to %d: let the agent install its own %s", r.Version, Version, PluginType)
	}
	switch r.Op {
	case OpGC:
		return nil
	case OpDel:
		return validID("containerID", r.ContainerID)
	case OpAdd, OpCheck:
	default:
		return fmt.Errorf("op: %.20q is not known", r.Op)
	}
	if err := validID("containerID", r.ContainerID); err != nil {
		return err
	}
	if err := validID("ifname", r.IfName); err != nil {
		return err
	}
	if !path.IsAbs(r.NetNS) || path.Clean(r.NetNS) != r.NetNS || len(r.NetNS) > maxPath {
		return fmt.Errorf("netns: %.200q is not a plain absolute path", r.NetNS)
	}
	if !label(r.Namespace) || len(r.Namespace) > 63 {
		return fmt.Errorf("namespace: %.100q is not a namespace's name", r.Namespace)
	}
	if !subdomain(r.Name) {
		return fmt.Errorf("name: %.300q is not a pod's name", r.Name)
	}
	if r.UID != "" {
		if err := validID("uid", r.UID); err != nil {
			return err
		}
	}
	if len(r.Addresses) > maxAddresses {
		return fmt.Errorf("addresses: %d are more than %d", len(r.Addresses), maxAddresses)
	}
	if r.Timeout < 0 {
		return fmt.Errorf("timeout: %v is negative", r.Timeout)
	}
	return nil
}

// validID checks what containers, interfaces and pods are called by: printable,
// and nothing that a path or a terminal would take for something else.
func validID(field, id string) error {
	if id == "" || len(id) > maxID || id == "." || id == ".." {
		return fmt.Errorf("%s: %.100q is empty, too long, or a folder", field, id)
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f || c == '/' {
			return fmt.Errorf("%s: %.100q has a character that no identifier has", field, id)
		}
	}
	return nil
}

// subdomain reports whether a name is what Kubernetes takes for a pod's: RFC
// 1123's, but for the length of its parts (apimachinery's IsDNS1123Subdomain, which
// would bring its whole package into the plugin).
func subdomain(name string) bool {
	if len(name) > 253 {
		return false
	}
	for part := range strings.SplitSeq(name, ".") {
		if !label(part) {
			return false
		}
	}
	return true
}

func label(name string) bool {
	if name == "" || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Write sends a Request or a Response: its length in four bytes, then JSON.
func Write(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes is more than %d", len(body), maxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...))
	return err
}

// Read receives what Write sent, into a pointer to a Request or a Response.
func Read(r io.Reader, message any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n == 0 || n > maxMessage {
		return fmt.Errorf("message of %d bytes: not 1 to %d", n, maxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := json.Unmarshal(body, message); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}
