package cri

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Bounds of one answer.
const (
	maxSandboxes = 10_000
	maxText      = 4096 // of names, paths and addresses
	maxIPs       = 32
)

// sandbox is what a list says of one.
type sandbox struct {
	id, uid string
	key     mesh.Key
	created time.Time
	// odd says why nothing of it but its id is believed; "" for one that could be read.
	odd string
}

// status is what the runtime says of one sandbox when it is asked for details.
type status struct {
	addresses []netip.Addr
	// pid is a process in the sandbox, netNS the path by which the runtime made
	// its network namespace; 0 and "" when it does not say.
	pid   int
	netNS string
}

// listReady is a ListPodSandboxRequest for sandboxes that are ready:
// filter (1) {state (2) {state (1): SANDBOX_READY (0)}}.
func listReady() []byte {
	state := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 0)
	filter := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), state)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), filter)
}

// statusOf is a PodSandboxStatusRequest: pod_sandbox_id (1), verbose (2).
func statusOf(id string) []byte {
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), id)
	return protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), 1)
}

// fields calls visit with every field of a message that is of bytes, and number, unless it is
// nil, with those that are varints. Others are passed over: a field of another type than
// its own is none that is known (https://protobuf.dev/programming-guides/encoding/).
func fields(message []byte, number func(field protowire.Number, value uint64), visit func(field protowire.Number, value []byte) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var value []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			varint, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(field, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		switch kind {
		case protowire.VarintType:
			if number != nil {
				number(field, varint)
			}
		case protowire.BytesType:
			if err := visit(field, value); err != nil {
				return fmt.Errorf("field %d: %w", field, err)
			}
		}
	}
	return nil
}

// text takes a string within bounds.
func text(to *string, value []byte) error {
	if len(value) > maxText {
		return fmt.Errorf("%d bytes are more than %d", len(value), maxText)
	}
	*to = string(value)
	return nil
}

// decodeList reads a ListPodSandboxResponse: items (1). Sandboxes that are not
// ready are left out, whatever was asked for. One that cannot be read is odd, and no
// reason to know nothing of the others.
func decodeList(message []byte) ([]sandbox, error) {
	var all []sandbox
	err := fields(message, nil, func(field protowire.Number, value []byte) error {
		if field != 1 {
			return nil
		}
		s, ready := decodeSandbox(value)
		if !ready {
			return nil
		}
		if s.odd != "" {
			s = sandbox{id: oddID(s.id, len(all)), odd: s.odd}
		}
		if len(all) >= maxSandboxes {
			return fmt.Errorf("more than %d sandboxes", maxSandboxes)
		}
		all = append(all, s)
		return nil
	})
	return all, err
}

// decodeSandbox reads a PodSandbox: id (1), metadata (2), state (3), created_at (4).
func decodeSandbox(message []byte) (s sandbox, ready bool) {
	ready = true
	note := func(err error) {
		if err != nil && s.odd == "" {
			s.odd = err.Error()
		}
	}
	note(fields(message, func(field protowire.Number, value uint64) {
		switch field {
		case 3:
			ready = int32(value) == 0 // an enum is what is left of it in 32 bits
		case 4:
			s.created = time.Unix(0, int64(value))
		}
	}, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			note(text(&s.id, value))
		case 2:
			note(decodeMetadata(&s, value))
		}
		return nil
	}))
	return s, ready
}

// oddID names a sandbox that cannot be read, as no other is: by the id that it has, or
// by its place in the list.
func oddID(id string, place int) string {
	if id == "" {
		return fmt.Sprintf("(number %d of the list)", place+1)
	}
	return id + " (odd)"
}

// isPod is false for sandboxes that kubelet did not make: crictl runs them without the
// texts by which a pod is known.
func (s *sandbox) isPod() bool {
	return s.id != "" && s.key.Name != "" && s.key.Namespace != "" && s.uid != ""
}

// decodeMetadata reads a PodSandboxMetadata: name (1), uid (2), namespace (3).
func decodeMetadata(s *sandbox, message []byte) error {
	return fields(message, nil, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			return text(&s.key.Name, value)
		case 2:
			return text(&s.uid, value)
		case 3:
			return text(&s.key.Namespace, value)
		}
		return nil
	})
}

// decodeStatus reads a PodSandboxStatusResponse: status (1) with network (5);
// info (2), whose entry "info" is JSON of containerd's and CRI-O's making.
func decodeStatus(message []byte) (st status, err error) {
	err = fields(message, nil, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			return fields(value, nil, func(field protowire.Number, value []byte) error {
				if field != 5 {
					return nil
				}
				return decodeNetwork(&st, value)
			})
		case 2:
			return decodeInfo(&st, value)
		}
		return nil
	})
	return st, err
}

// decodeNetwork reads a PodSandboxNetworkStatus: ip (1), additional_ips (2) {ip (1)}.
func decodeNetwork(st *status, message []byte) error {
	add := func(value []byte) error {
		var s string
		if err := text(&s, value); err != nil {
			return err
		}
		if s == "" { // hostNetwork has none
			return nil
		}
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		if len(st.addresses) >= maxIPs {
			return fmt.Errorf("more than %d addresses", maxIPs)
		}
		st.addresses = append(st.addresses, addr.Unmap())
		return nil
	}
	return fields(message, nil, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			return add(value)
		case 2:
			return fields(value, nil, func(field protowire.Number, value []byte) error {
				if field != 1 {
					return nil
				}
				return add(value)
			})
		}
		return nil
	})
}

// decodeInfo reads one entry of a map<string, string>: key (1), value (2).
func decodeInfo(st *status, message []byte) error {
	var key string
	var body []byte
	err := fields(message, nil, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			return text(&key, value)
		case 2:
			body = value
		}
		return nil
	})
	if err != nil || key != "info" {
		return err
	}
	var info struct {
		PID         int `json:"pid"`
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct {
					Type string `json:"type"`
					Path string `json:"path"`
				} `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal(body, &info); err != nil {
		return fmt.Errorf("info: %w", err)
	}
	st.pid = info.PID
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && len(ns.Path) <= maxText {
			st.netNS = ns.Path
		}
	}
	return nil
}
