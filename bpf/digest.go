package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/cilium/ebpf"
)

// digest is of a set of rules what look.bpf.c says of a table: their number, and the sum of
// one number of each, so that it follows each rule that comes or goes. Two sets that have
// the same are taken for the same: seed, which makes other numbers of rules, is drawn for
// each table, so that nobody knows beforehand which have.
type digest struct{ seed, sum, rules uint64 }

// digestFactor is DIGEST_FACTOR of c/types.h.
const digestFactor = 0x9E3779B97F4A7C15

// number is add_rule's of look.bpf.c.
func (k *gateDatagramRule) number(seed uint64) uint64 {
	h := seed
	for _, word := range [3]uint64{
		uint64(k.Remote.Word[1])<<32 | uint64(k.Remote.Word[0]),
		uint64(k.Remote.Word[3])<<32 | uint64(k.Remote.Word[2]),
		uint64(binary.LittleEndian.Uint32([]byte{byte(k.Port), byte(k.Port >> 8), k.Direction, k.Outside})),
	} {
		h = (h ^ word) * digestFactor
		h ^= h >> 32
	}
	return h * digestFactor
}

func (d datagramRules) digest() digest {
	all := digest{seed: rand.Uint64()}
	for key := range d {
		all.add(&key)
	}
	return all
}

func (d *digest) add(key *gateDatagramRule) {
	d.sum += key.number(d.seed)
	d.rules++
}

func (d *digest) remove(key *gateDatagramRule) {
	d.sum -= key.number(d.seed)
	d.rules--
}

// digestOf asks the kernel for that of the table in the pod's slot, by a seed; none is as an
// empty one. mu is held.
func (p *Pod) digestOf(seed uint64) (digest, error) {
	if p.look == nil {
		spec, err := loadLook()
		if err != nil {
			return digest{}, fmt.Errorf("read the object that looks after rules: %w", err)
		}
		if p.look, err = p.collection(spec, p.maps); err != nil {
			return digest{}, fmt.Errorf("load what looks after rules: %w", err)
		}
	}
	d := lookDigest{Seed: seed}
	code, err := p.look.Programs[lookProgDigestRules].Run(&ebpf.RunOptions{Context: &d, ContextOut: &d})
	if err == nil && code != 0 {
		err = errors.New("it was not done")
	}
	if err != nil {
		return digest{}, fmt.Errorf("look at the rules of datagrams: %w", err)
	}
	return digest{seed, d.Sum, d.Rules}, nil
}
