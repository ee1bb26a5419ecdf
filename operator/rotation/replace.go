package rotation

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Replaced returns the texts by which what another authority has made signs (its tls.crt
// and tls.key; nil leaves who signs), and roots are what is trusted besides those of
// roots.crt. It refuses what would end connections: nodes that trust what this Keyring
// does must accept what is signed from now on, and the other way around. Where what signs has
// ended, there are none.
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

// AtEnd says whether what signs has ended: then nobody has a certificate of it that is valid.
func (k *Keyring) AtEnd(now time.Time) bool {
	return now.After(k.Signing.Signing().NotAfter) || now.After(k.Signing.Root().NotAfter)
}

// Anew returns texts in which one authority takes another's place that has ended, and which
// Open would refuse; nil when it has not ended, or cannot be read, or a rotation is under way.
// What is not the authority's stays, such as the configuration key and roots.crt.
func (t Texts) Anew(ctx context.Context, first func(context.Context) (map[string][]byte, error), now time.Time) (Texts, error) {
	certs, err := keystore.ParseCertificates(t[certFile], identity.MaxBundle)
	if err != nil || !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return now.After(c.NotAfter) }) {
		return nil, nil
	}
	var record Record
	if text := t[rotationFile]; len(text) > 0 && (json.Unmarshal(text, &record) != nil || record.Active()) {
		return nil, nil
	}
	made, err := first(ctx)
	if err != nil {
		return nil, err
	}
	texts := maps.Clone(t)
	delete(texts, identity.RootKeyFile)
	texts[certFile], texts[keyFile], texts[moreFile] = made[certFile], made[keyFile], made[moreFile]
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
