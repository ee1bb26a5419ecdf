package rotation

import (
	"crypto/x509"
	"fmt"
	"maps"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// Replaced returns the texts by which what another authority has made signs (its tls.crt
// and tls.key; nil leaves who signs), and roots are what is trusted besides those of
// roots.crt. It refuses what would end connections: nodes that trust what this Keyring
// does must accept what is signed from now on, and the other way around.
func (k *Keyring) Replaced(made Texts, roots []*x509.Certificate) (Texts, error) {
	if k.Active() {
		return nil, fmt.Errorf("%w: the rotation of the %s that began at %s is in its stage %s; remedy: wait for it (`heddle certs rotate --wait`), or abort it (`heddle certs rotate --abort`)",
			ErrRefused, k.Kind, k.Started.UTC().Format(time.RFC3339), k.Stage)
	}
	texts := maps.Clone(k.texts)
	if made != nil {
		delete(texts, identity.RootKeyFile)
		texts[certFile], texts[keyFile] = made[certFile], made[keyFile]
	}
	texts[moreFile] = identity.CertificatesText(roots)
	next, err := Parse(texts, k.cfg)
	if err != nil {
		return nil, err
	}
	if err := k.overlaps(next); err != nil {
		return nil, err
	}
	return texts, nil
}

// Further returns the roots of roots.crt, which are people's. They must not be changed.
func (k *Keyring) Further() []*x509.Certificate { return k.further }

// Trusting is who does not trust yet what this Keyring does, as in a rotation's first
// stage; Reissued who, besides, has certificates that something else has signed.
func (k *Keyring) Trusting(f Fleet) Progress { return k.would(f) }

// Reissued is told by Trusting.
func (k *Keyring) Reissued(f Fleet) Progress {
	now := *k
	now.Record = Record{Kind: KindRoot, Stage: StageReissue}
	return now.Progress(f)
}
