package rotation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Texts are what a Store keeps, by name.
type Texts map[string][]byte

// The names that this package adds to those of an authority.
const (
	certFile = "tls.crt"
	keyFile  = "tls.key"
	moreFile = "ca.crt"
	// furtherFile has further roots that people trust: no rotation changes it,
	// or copies them elsewhere.
	furtherFile  = "roots.crt"
	next         = "next."
	previous     = "previous."
	rotationFile = "rotation.json"

	// JWTFile has the keys of JWT-SVIDs, which operator/jwtauthority reads and writes: a
	// rotation of certificates leaves it alone.
	JWTFile = "jwt.key"
)

// Kinds of rotation.
const (
	KindRoot         = "root"
	KindIntermediate = "intermediate"
)

// Stages of a rotation.
const (
	StageDistribute = "distribute"
	StageReissue    = "reissue"
)

// ErrRefused is matched when a rotation cannot begin, or be aborted or forced; the
// text says why, and the remedy.
var ErrRefused = errors.New("rotation refused")

// Record is the content of rotation.json.
type Record struct {
	// Kind and Stage are "" when no rotation is under way.
	Kind     string    `json:"kind,omitempty"`
	Stage    string    `json:"stage,omitempty"`
	Aborting bool      `json:"aborting,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Since    time.Time `json:"since,omitzero"`
	// Without are nodes that are not waited for.
	Without []string `json:"without,omitempty"`
	// Ended is when the last one ended, How "completed" or "aborted".
	Ended time.Time `json:"ended,omitzero"`
	How   string    `json:"how,omitempty"`
}

// Active says whether a rotation is under way.
func (r *Record) Active() bool { return r.Stage != "" }

// Keyring is a set of texts, read.
type Keyring struct {
	texts   Texts
	cfg     identity.AuthorityConfig
	further []*x509.Certificate // of furtherFile
	// Signing signs for others, Own the operator's own certificates. Both trust
	// the same roots.
	Signing, Own *identity.Authority
	// Next signs in the next stage; nil when there is none.
	Next *identity.Authority
	Record
}

// Parse reads texts. The error names the text.
func Parse(texts Texts, cfg identity.AuthorityConfig) (*Keyring, error) {
	k := &Keyring{texts: texts, cfg: cfg}
	if text := texts[rotationFile]; len(text) > 0 {
		if err := json.Unmarshal(text, &k.Record); err != nil {
			return nil, fmt.Errorf("%s: %w", rotationFile, err)
		}
	}
	var err error
	if k.Signing, _, err = identity.AuthorityFromTexts(texts, cfg); err != nil {
		return nil, err
	}
	if text := texts[furtherFile]; len(text) > 0 {
		if k.further, err = keystore.ParseCertificates(text, identity.MaxBundle); err != nil {
			return nil, fmt.Errorf("%s: %w", furtherFile, err)
		}
	}
	k.Own = k.Signing
	switch k.Stage {
	case "":
	case StageDistribute:
		if k.Next, err = k.other(next); err != nil {
			return nil, err
		}
	case StageReissue:
		before, err := k.other(previous)
		if err != nil {
			return nil, err
		}
		if !k.Aborting {
			k.Own = before
		}
	default:
		return nil, fmt.Errorf("%s: stage %q is not known to this version", rotationFile, k.Stage)
	}
	return k, nil
}

// JWT returns the text of JWTFile; nil when there is none. It must not be changed.
func (k *Keyring) JWT() []byte { return k.texts[JWTFile] }

// WithJWT returns the texts with another one of JWTFile.
func (k *Keyring) WithJWT(text []byte) Texts {
	texts := maps.Clone(k.texts)
	texts[JWTFile] = text
	return texts
}

// other reads the authority whose texts' names begin with a prefix.
func (k *Keyring) other(prefix string) (*identity.Authority, error) {
	texts := maps.Clone(k.texts)
	texts[moreFile] = k.Signing.BundleText()
	for _, name := range []string{certFile, keyFile} {
		texts[name] = k.texts[prefix+name[len("tls."):]]
	}
	a, _, err := identity.AuthorityFromTexts(texts, k.cfg)
	if err != nil {
		return nil, fmt.Errorf("%s*: %w", prefix, err)
	}
	return a, nil
}

// with returns the texts under another record.
func (k *Keyring) with(texts Texts, r Record) (Texts, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", rotationFile, err)
	}
	texts[rotationFile] = text
	if _, err := Parse(texts, k.cfg); err != nil {
		return nil, fmt.Errorf("next stage: %w", err) // before anybody has it
	}
	return texts, nil
}

// Begin returns the texts of a rotation's first stage.
func (k *Keyring) Begin(kind string, now time.Time) (Texts, error) {
	if k.Active() {
		return nil, fmt.Errorf("%w: the rotation of the %s that began at %s is in its stage %s; remedy: wait for it (`heddle certs rotate --wait`), or abort it (`heddle certs rotate --abort`)",
			ErrRefused, k.Kind, k.Started.UTC().Format(time.RFC3339), k.Stage)
	}
	record := Record{Kind: kind, Started: now.UTC(), Since: now.UTC(), Ended: k.Ended, How: k.How}
	switch kind {
	case KindRoot:
		record.Stage = StageDistribute
		return k.beginRoot(record)
	case KindIntermediate:
		record.Stage = StageReissue
		return k.beginIntermediate(record)
	}
	return nil, fmt.Errorf("%w: kind %q: use %s or %s", ErrRefused, kind, KindRoot, KindIntermediate)
}

func (k *Keyring) beginRoot(record Record) (Texts, error) {
	if len(k.Signing.Roots()) >= identity.MaxBundle {
		return nil, fmt.Errorf("%w: %d roots are trusted, and no more are possible; remedy: take those that nothing uses out of %s and %s", ErrRefused, len(k.Signing.Roots()), moreFile, furtherFile)
	}
	made, err := identity.NewAuthorityTexts(k.cfg)
	if err != nil {
		return nil, err
	}
	if !identity.IsRoot(k.Signing.Signing()) { // below the new root, too
		if made, err = identity.NewIntermediateTexts(made, k.cfg); err != nil {
			return nil, err
		}
	}
	texts := maps.Clone(k.texts)
	put(texts, next, made)
	a, err := k.fresh(made)
	if err != nil {
		return nil, err
	}
	texts[moreFile] = k.more(append(others(k.Signing), a.Root()))
	return k.with(texts, record)
}

// fresh reads what was just made.
func (k *Keyring) fresh(made Texts) (*identity.Authority, error) {
	texts := maps.Clone(k.texts)
	delete(texts, moreFile)
	maps.Copy(texts, made)
	a, _, err := identity.AuthorityFromTexts(texts, k.cfg)
	return a, err
}

func (k *Keyring) beginIntermediate(record Record) (Texts, error) {
	made, err := identity.NewIntermediateTexts(k.texts, k.cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; remedy: `heddle certs rotate --root` makes a root that may have one, and keeps its key", ErrRefused, err)
	}
	texts := maps.Clone(k.texts)
	move(texts, "tls.", previous)
	maps.Copy(texts, made)
	return k.with(texts, record)
}

// Advance returns the texts of the stage after this one, and what it is called.
func (k *Keyring) Advance(now time.Time) (texts Texts, what string, err error) {
	record := k.Record
	record.Since = now.UTC()
	texts = maps.Clone(k.texts)
	switch k.Stage {
	case StageDistribute:
		record.Stage = StageReissue
		roots := k.Signing.Roots()
		move(texts, "tls.", previous)
		move(texts, next, "tls.")
		texts[moreFile] = k.more(without(roots, k.Next.Root()), k.Signing.Root())
		texts, err = k.with(texts, record)
		return texts, "the new root signs", err
	case StageReissue:
		gone, err := k.other(previous)
		if err != nil {
			return nil, "", err
		}
		left := k.Signing.Roots()
		if k.Kind == KindRoot {
			left = without(left, gone.Root())
		}
		drop(texts, previous)
		texts[moreFile] = k.more(without(left, k.Signing.Root()))
		texts, err = k.with(texts, ended(record, now))
		return texts, "the old " + k.Kind + " is gone", err
	}
	return nil, "", errors.New("no rotation is under way")
}

// ended is the record of no rotation.
func ended(r Record, now time.Time) Record {
	how := "completed"
	if r.Aborting {
		how = "aborted"
	}
	return Record{Ended: now.UTC(), How: how}
}

// Abort returns the texts that lead back.
func (k *Keyring) Abort(now time.Time) (Texts, error) {
	texts, record := maps.Clone(k.texts), k.Record
	record.Aborting, record.Since, record.Without = true, now.UTC(), nil
	switch {
	case !k.Active():
		return nil, fmt.Errorf("%w: no rotation is under way; remedy: to leave the new %s again, rotate once more", ErrRefused, KindRoot)
	case k.Aborting:
		return nil, fmt.Errorf("%w: the rotation is being aborted already, since %s", ErrRefused, k.Since.UTC().Format(time.RFC3339))
	case k.Stage == StageDistribute: // nothing was signed by the new root
		drop(texts, next)
		texts[moreFile] = k.more(without(others(k.Signing), k.Next.Root()))
		return k.with(texts, ended(record, now))
	}
	before, err := k.other(previous)
	if err != nil {
		return nil, err
	}
	move(texts, "tls.", previous)
	for from, to := range names(previous, "tls.") {
		if text := k.texts[from]; len(text) > 0 {
			texts[to] = text
		}
	}
	texts[moreFile] = k.more(without(k.Signing.Roots(), before.Root()), k.Signing.Root())
	return k.with(texts, record)
}

// goOnWithout returns the texts of going on without these nodes.
func (k *Keyring) goOnWithout(nodes []string) (Texts, error) {
	record := k.Record
	record.Without = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(record.Without), nodes...))))
	return k.with(maps.Clone(k.texts), record)
}

// put adds an authority's texts under a prefix: tls.crt as next.crt, root.key as
// next.root.key.
func put(texts Texts, prefix string, made Texts) {
	for from, to := range names("tls.", prefix) {
		delete(texts, to)
		if text := made[from]; len(text) > 0 {
			texts[to] = text
		}
	}
}

// move renames an authority's texts from one prefix to another.
func move(texts Texts, from, to string) {
	for a, b := range names(from, to) {
		delete(texts, b)
		if text, ok := texts[a]; ok {
			texts[b] = text
			delete(texts, a)
		}
	}
}

func drop(texts Texts, prefix string) {
	for name := range names(prefix, prefix) {
		delete(texts, name)
	}
}

// names maps an authority's names under one prefix to those under another. The
// root's key has no prefix where the others' is "tls.".
func names(from, to string) map[string]string {
	rootKey := func(prefix string) string {
		if prefix == "tls." {
			return identity.RootKeyFile
		}
		return prefix + identity.RootKeyFile
	}
	return map[string]string{from + "crt": to + "crt", from + "key": to + "key", rootKey(from): rootKey(to)}
}

// more is the text of moreFile for roots. Those of furtherFile are left out, so that its
// owner ends their trust by taking them out of there; but not those that are part of the
// rotation, which goes on when they are taken out.
func (k *Keyring) more(roots []*x509.Certificate, part ...*x509.Certificate) []byte {
	return identity.CertificatesText(slices.DeleteFunc(slices.Clone(roots), func(root *x509.Certificate) bool {
		return slices.ContainsFunc(k.further, root.Equal) && !slices.ContainsFunc(part, root.Equal)
	}))
}

// others are the roots that an authority trusts besides its own.
func others(a *identity.Authority) []*x509.Certificate { return without(a.Roots(), a.Root()) }

func without(certs []*x509.Certificate, one *x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), one.Equal)
}

// sums are the SHA-256 of certificates.
func sums(certs []*x509.Certificate) [][]byte {
	all := make([][]byte, 0, len(certs))
	for _, cert := range certs {
		sum := sha256.Sum256(cert.Raw)
		all = append(all, sum[:])
	}
	return all
}
