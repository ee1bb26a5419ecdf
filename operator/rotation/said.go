package rotation

import (
	"cmp"
	"crypto/sha256"
	"errors"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
)

// Said is the authority's certificates, for who asks.
func (k *Keyring) Said() (all []*meshpb.AuthorityCertificate) {
	for _, c := range k.Certificates() {
		sum := sha256.Sum256(c.Cert.Raw)
		all = append(all, &meshpb.AuthorityCertificate{Sha256: sum[:], Kind: c.Kind, Subject: c.Cert.Subject.String(),
			Serial: c.Cert.SerialNumber.Text(16), NotBeforeNs: c.Cert.NotBefore.UnixNano(), NotAfterNs: c.Cert.NotAfter.UnixNano(),
			Key: cakey.Type(c.Cert), Signs: c.Signs, Trusted: c.Trusted, Anchors: c.Anchors, Further: c.Further})
	}
	return all
}

// ReplicaOf is what a replica, asked at an address, has answered of itself, or why it has not.
func ReplicaOf(address string, answer *meshpb.CertificatesResponse, err error) Replica {
	out := Replica{Name: cmp.Or(answer.GetReplica(), address), Err: err}
	if out.Problem = answer.GetProblem(); out.Problem != "" {
		out.Err = errors.New(out.Problem)
	}
	for _, c := range answer.GetAuthority() {
		if c.GetKind() == KindRoot && c.GetTrusted() {
			out.Roots = append(out.Roots, c.GetSha256())
		}
		if c.GetSigns() {
			out.Issuer = c.GetSha256()
		}
	}
	return out
}

// State is how far a rotation is, for who asks.
func State(r Record, p Progress) *meshpb.RotationState {
	out := &meshpb.RotationState{Kind: r.Kind, Stage: r.Stage, Aborting: r.Aborting, StartedNs: meshpb.Nanos(r.Started), SinceNs: meshpb.Nanos(r.Since),
		Nodes: uint32(p.Nodes), Done: uint32(p.Done), Without: r.Without, EndedNs: meshpb.Nanos(r.Ended), Ended: r.How}
	for _, w := range p.Waiting {
		out.Waiting = append(out.Waiting, &meshpb.RotationWait{Part: w.Part, Name: w.Name, Reason: w.Reason, Forcible: w.Forcible})
	}
	return out
}
